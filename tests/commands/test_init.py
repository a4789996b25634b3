"""expo init: a study of one's own from a data file."""

import json
import os

import pytest
from conftest import compose_config
from omegaconf import OmegaConf

from expo.cli import main
from expo.commands.init import in_override, mapping
from expo.config import UserError, check
from expo.tables.request import Request


def expo(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["expo", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"problem": f"{i} + {i}?", "result": str(2 * i), "cot": f"It is {2 * i}.", "choices": [i]} for i in range(12)
    ]
    rows[4]["result"] = "she has 8 apples"
    (tmp_path / "my rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize("text", ["plain", "a b", "a\\", 'x\\" y', "it's", "${oc.env:HOME}", r"\(([A-D])\)"])
def test_a_value_reaches_the_config_as_it_is_written(text):
    assert (
        compose_config("dataset=custom", f"dataset.columns.question={in_override(text)}").dataset.columns.question
        == text
    )


def test_a_study_from_a_file_whose_columns_are_guessed(here, monkeypatch, capsys):
    code, said = expo(monkeypatch, capsys, "init", "study", "data=my rows.jsonl")
    assert code == 0
    assert "columns: question=problem, answer=result, solution=cot\n" in said.out
    assert "not shown choices; write into the question" in " ".join(said.out.split())
    assert "1 (line 5): the answer is a sentence" in " ".join(said.out.split())
    assert Request("study", "cpu").title == "study-cpu"
    runs = Request("study/plan.yaml", "cpu").runs()
    assert [run.arm for run in runs] == ["grpo", "exp_grpo"] * 2
    assert runs[0].cfg.dataset.path == "my rows.jsonl"
    assert Request("study", "cpu").folder("outputs").parts[-3:] == ("study", "results", "cpu")
    assert "expo table study" in (here / "study" / "README.md").read_text()


def test_a_study_with_the_name_of_a_shipped_table_is_named_by_its_path(here, monkeypatch, capsys):
    code, said = expo(monkeypatch, capsys, "init", "demo", "data=my rows.jsonl")
    assert code == 0
    assert said.out.splitlines()[-1].endswith("next: expo table ./demo")
    assert "expo report ./demo " in (here / "demo" / "README.md").read_text()
    assert Request("./demo", "cpu").runs()[0].cfg.dataset.path == "my rows.jsonl"
    for arguments in (["table", "demo", "dry_run=true"], ["report", "demo"]):
        code, said = expo(monkeypatch, capsys, *arguments)
        assert (code, "use ./demo, or" in said.err) == (2, True)


def test_a_pattern_finds_the_answers(here, monkeypatch, capsys):
    code, said = expo(monkeypatch, capsys, "init", "study", "data=my rows.jsonl", r"answer_pattern=(\d+)")
    assert code == 0
    assert ["skipped", "0"] in [line.split() for line in said.out.splitlines()]
    assert Request("study", "cpu").runs()[0].cfg.dataset.answer_pattern == r"(\d+)"
    assert OmegaConf.load("study/plan.yaml").scales.gpu1.seeds == [0, 1, 2]


@pytest.mark.parametrize(("given", "takes"), [([], "option"), (["verifier=exact"], "exact")])
def test_letters_are_judged_as_options_unless_told_otherwise(here, monkeypatch, capsys, given, takes):
    rows = [{"question": f"{i} + 1? (A) {i} (B) {i + 1}", "answer": "B"} for i in range(4)]
    rows.append({"question": "5 + 1? (A) 5 (B) 6", "answer": "F"})
    (here / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said = expo(monkeypatch, capsys, "init", "study", "data=letters.jsonl", *given)
    assert code == 0
    assert ("every answer is a letter: verifier=choice" in said.out) == (not given)
    # The account is that of the runs.
    assert ("(line 5): the answer is none of the options A, B" in said.out) == (not given)
    assert {run.cfg.verifier.kind for run in Request("study", "cpu").runs()} == {takes}


def test_a_readme_names_the_packages_that_its_commands_need(here, monkeypatch, capsys):
    (here / "my_lab.py").touch()
    monkeypatch.setenv("EXPO_PLUGINS", "my_lab")
    monkeypatch.syspath_prepend(here)
    expo(monkeypatch, capsys, "init", "study", "data=my rows.jsonl")
    assert "```bash\nexport EXPO_PLUGINS=my_lab\nexpo table study" in (here / "study" / "README.md").read_text()


def test_a_readme_of_others_is_not_written_over(here, monkeypatch, capsys):
    (here / "study").mkdir()
    (here / "study" / "README.md").write_text("mine")
    code, said = expo(monkeypatch, capsys, "init", "study", "data=my rows.jsonl")
    assert (code, (here / "study" / "README.md").read_text()) == (2, "mine")
    assert "study: has a README.md, which would be written over" in said.err


def test_two_plans_of_one_folder_have_results_of_their_own(here, monkeypatch, capsys):
    expo(monkeypatch, capsys, "init", "study", "data=my rows.jsonl")
    (here / "study" / "b.yaml").write_text((here / "study" / "plan.yaml").read_text())
    one, two = Request("study", "cpu"), Request("study/b.yaml", "cpu")
    assert (one.title, two.title) == ("study-cpu", "study-b-cpu")
    assert one.folder("outputs") != two.folder("outputs")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["study"], "data: not given"),
        (["study", "data=nowhere.jsonl"], "no .jsonl or .parquet file"),
        (["study", "data=my rows.jsonl", "answer=reslt"], "did you mean answer=result?"),
        (["study", "other", "data=my rows.jsonl"], "not one folder"),
        (["study", "data=odd.jsonl"], "which column of odd.jsonl is it? It has a, b; give question=COLUMN"),
        (["study", "data=empty.jsonl"], "no row with columns"),
        (["there", "data=my rows.jsonl"], "has a plan.yaml already"),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_made(here, monkeypatch, capsys, arguments, told):
    (here / "odd.jsonl").write_text('{"a": 1, "b": 2}\n')
    (here / "empty.jsonl").write_text("")
    (here / "there").mkdir()
    (here / "there" / "plan.yaml").write_text("mine")
    code, said = expo(monkeypatch, capsys, "init", *arguments)
    assert code == 2
    assert told in said.err
    assert said.err.count("\n") == 1
    assert not (here / "study").exists()
    assert (here / "there" / "plan.yaml").read_text() == "mine"


def test_a_file_that_this_user_may_not_read_is_no_empty_one(tmp_path, monkeypatch):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "1+1?", "answer": "2"}\n')
    allowed = os.access
    monkeypatch.setattr("os.access", lambda at, mode: str(at) != str(path) and allowed(at, mode))
    with pytest.raises(UserError, match=r"data=.*mine\.jsonl: this user may not read it"):
        mapping(path, {})
    with pytest.raises(UserError, match=r"dataset\.path=.*mine\.jsonl: this user may not read it"):
        check(compose_config("dataset=custom", f"dataset.path={path}"))
