"""Judges of one's own, and where an answer is looked for: `verifier=` and `verifier.extract`."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, compose_config
from omegaconf import OmegaConf

from expo.commands import verify as verify_command
from expo.config import UserError, VerifierConf, build, check, identity
from expo.config.compose import plugins
from expo.config.from_run import config_from_run
from expo.config.own_code import own_code
from expo.data.checks import unusable
from expo.ground.problem import Problem
from expo.jobs.checks import check_extraction
from expo.verifier.answers import Verdict
from expo.verifier.extraction import extraction
from expo.verifier.judges import Judge, verdict_of
from expo.verifier.pool import Verifier


@pytest.mark.parametrize(
    ("how", "text", "answer"),
    [
        ("boxed", r"so \boxed{3} and \boxed{4}", "4"),  # the last counts
        ("last_number", "First 3, then 1,250.5 of them.", "1,250.5"),
        ("last_number", "It is -3/4.", "-3/4"),
        ("last_number", "none", None),
        ("whole", "  B\n", "B"),
        ("after:Answer:", "Answer: A\nNo. Answer: **B**\nbye", "B"),
        ('after:"Answer:"', "Answer: 7", "7"),
        ("after:Answer:", "no such line", None),
        ("tag:answer", "<answer>1</answer> or <answer> {2} </answer>", "{2}"),
        ("tag:answer", "<answer>1", None),
        ("regex:#### (.*)$", "72\n#### 5", "5"),
        ("regex:[A-D]", "A or B", "B"),
        (r"regex:is (\d+)|####\s*(\d+)", "it is 4\n#### 5", "5"),
    ],
)
def test_where_an_answer_is_looked_for(how, text, answer):
    assert extraction(how).of(text) == answer


@pytest.mark.parametrize("how", ["boxed", "last_number", "whole", "after:Answer:", "tag:answer"])
def test_an_answer_is_found_where_it_is_stated(how):
    places = extraction(how)
    assert places.of(f"{places.stated('12')}") == "12"


@pytest.mark.parametrize("pattern", ["[A-D]", r"#### *([A-D])\b", r"[Aa]nswer(?: is)?:? *\(?([A-D])\b"])
def test_a_pattern_finds_the_answers_of_rows_as_the_prompts_state_them(tmp_path, pattern):
    final = "#### {answer}" if "#" in pattern else "The answer is {answer}"
    overrides = ["verifier=choice", f"verifier.extract='regex:{pattern}'", f"prompts.final='{final}'"]
    overrides += ["prompts.solve='{question}'", "prompts.explain='{question} {answer}'"]
    check_extraction(compose_config("dataset=gsm8k", "model=random_tiny", *overrides))
    rows = [{"question": str(i), "answer": answer, "solution": "since."} for i, answer in enumerate("BDE")]
    found = rows_of(tmp_path, rows, *overrides, "dataset.columns.solution=solution").whole()
    assert {p.solution for p in found} == {f"since.\n{final.format(answer=answer)}" for answer in "BD"}


@pytest.mark.parametrize("how", ["nowhere", "after", "after:", "boxed:x", "regex:("])
def test_a_place_that_is_none_is_told_before_anything_is_loaded(how):
    cfg = compose_config()
    cfg.verifier.extract = how
    with pytest.raises(UserError, match=r"verifier.extract="):
        check(cfg)


def test_prompts_and_extraction_have_to_fit():
    check_extraction(compose_config("dataset=gsm8k", "model=random_tiny"))
    check_extraction(
        compose_config("dataset=gsm8k", "model=random_tiny", "prompts=final_line", "verifier.extract='after:Answer:'")
    )
    for overrides, told in (
        (["verifier.extract='after:Answer:'"], "finds no answer in"),
        (["verifier.extract=whole"], "finds no answer in"),
        (
            ["verifier.extract='tag:answer'", "prompts.final='<answer>{answer}</answer>'"],
            "where the verifier does not look",
        ),
        (["prompts=final_line"], "finds no answer in"),
    ):
        with pytest.raises(UserError, match=told):
            check_extraction(compose_config("dataset=gsm8k", "model=random_tiny", *overrides))


def verdicts(name, gold, answers, *overrides, columns=None, text=r"\boxed{{{}}}"):
    cfg = compose_config(f"verifier={name}", *overrides)
    check(cfg)
    with Verifier(cfg.verifier) as verifier:
        problem = Problem("p", "q", gold, columns=columns or {})
        return [v.value[0] for v in verifier.verify([text.format(a) for a in answers], [problem] * len(answers))]


@pytest.mark.parametrize("parts", [[0.1] * 10, [1 / 6] * 6, [0.7, 0.2, 0.1]])
def test_parts_that_add_up_to_one_are_right(parts):
    assert sum(parts) < 1
    assert verdict_of(sum(parts)) is Verdict.CORRECT
    assert verdict_of(0.999) is Verdict.INCORRECT


@pytest.mark.parametrize(
    ("name", "gold", "answers", "found"),
    [
        ("math", "7", ["7.0", "8"], "ci"),
        ("exact", "x + 1", ["x  + 1", "1 + x", "x+1"], "cii"),
        ("exact", "<b>A_2</b>", ["<b>A_2</b>", r"\text{<b>A\_2</b>}", "A_2", "<i>A_2</i>", "<b>A2</b>"], "cciii"),
        ("exact", "$HOME", ["$HOME", "HOME"], "ci"),
        ("choice", "B", ["(B) four", "b", "A", "four"], "cciu"),
        ("choice", "B", ["(B), (c), (d)", "b, c", "B, c", "B. c", "B, the second"], "uuucc"),
        ("json", '{"a": [1, 2]}', ['{ "a" : [1,2] }', '{"a": [2, 1]}', "{"], "ciu"),
        ("regex", r"colou?r\d+", ["color12", "colour1", "colors", "my color1"], "ccii"),
    ],
)
def test_judges_that_need_no_code(name, gold, answers, found):
    assert "".join(verdicts(name, gold, answers)) == found


OWN = '''
"""Judges of our own."""

import subprocess
import os
import re
import subprocess
import sys
from pathlib import Path


def passes(answer, problem):
    """Run the answer, a function, against the row's tests."""
    if "def " not in answer:
        return None
    program = answer + "\\n" + problem.columns["tests"]
    return subprocess.run([sys.executable, "-c", program], timeout=10, capture_output=True).returncode == 0


def half(answer, problem):
    return 0.5 if answer == "nearly" else float(answer == problem.answer)


def broken(answer, problem):
    return problem.columns["no such column"]


def endless(answer, problem):
    while True:
        pass
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_judges.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_judges", None)


@pytest.mark.runs
def test_code_is_judged_by_the_tests_of_its_row(own):
    columns = {"tests": "assert double(2) == 4"}
    answers = ["def double(x): return 2 * x", "def double(x): return x", "x", "def double(x): return 1/0"]
    overrides = ["verifier.function=own_judges.passes", "verifier.extract=whole", "verifier.timeout_s=60"]
    assert verdicts("python", "", answers, *overrides, columns=columns, text="{}") == ["c", "i", "u", "i"]


@pytest.mark.runs
def test_a_partial_score_is_wrong_and_what_raises_is_told(own, caplog):
    assert verdicts("python", "x", ["x", "nearly", "y"], "verifier.function=own_judges.half") == ["c", "i", "i"]
    assert verdicts("python", "x", ["x", "x"], "verifier.function=own_judges.broken") == ["u", "u"]
    assert caplog.text.count("verifier.function=own_judges.broken: raised KeyError: 'no such column'") == 1
    ended = verdicts("python", "x", ["x"], "verifier.function=own_judges.endless", "verifier.timeout_s=0.2")
    assert ended == ["t"]


def test_a_judge_that_is_not_there_is_told():
    with pytest.raises(UserError, match=r"verifier.function=no.such.judge: cannot be called with"):
        Verifier(compose_config("verifier=python", "verifier.function=no.such.judge").verifier)


def test_rows_that_no_answer_fits_are_refused_by_line(tmp_path):
    rows = [{"question": f"{i}?", "answer": answer} for i, answer in enumerate(["A", "carbon dioxide", "(B)", "1?"])]
    for overrides, reason, lines in (
        (["verifier=choice"], "the answer is no option", [2, 4]),
        (["dataset.answer_kind=number"], "the answer is no number", [1, 2, 3, 4, 5]),
        (["verifier=regex"], "the answer is no regular expression", [5]),
    ):
        reader = rows_of(tmp_path, rows + [{"question": "z", "answer": "(a"}], *overrides)
        with contextlib.suppress(UserError):
            reader.whole()
        skipped = {why.partition(":")[0]: at for why, at in reader.sources[0].skipped.items()}
        assert skipped[reason] == lines
    with pytest.raises(UserError, match="two kinds for one answer"):
        check(compose_config("dataset=gsm8k", "model=random_tiny", "verifier=choice", "dataset.answer_kind=date"))


def test_a_letter_that_is_none_of_the_options_is_refused(tmp_path):
    asked = [
        "Which? (A) 1 (B) 2",
        "Which?\nA. 1\nB. 2\nC. 3",
        "Professors A. Miller and B. Klein met",
        "A) 1\nB) 2 C)3 D)4",
    ]
    rows = [{"question": question, "answer": answer} for question in asked for answer in "BCD"]
    reader = rows_of(tmp_path, rows, "verifier=choice")
    reader.whole()
    assert reader.sources[0].skipped == {
        "the answer is none of the options A, B": [2, 3], "the answer is none of the options A, B, C": [6]
    }  # fmt: skip


class Settling:
    accepts_itself = True

    def __init__(self, conf):
        self.conf = conf

    def settle(self, answer, problem):
        return {"right": True, "wrong": Verdict.INCORRECT}.get(answer, "yes")

    def refuses(self, problem):
        return None

    def task(self, answer, problem):
        raise AssertionError("settle always answers")


def test_what_a_judge_class_settles_is_a_verdict_or_true_or_false():
    conf = VerifierConf(_target_=f"{__name__}.Settling", extract="whole")
    verifier = Verifier(conf)
    assert verifier.score(["right", "wrong"], ["x", "x"]) == [(Verdict.CORRECT, 1.0), (Verdict.INCORRECT, 0.0)]
    with pytest.raises(UserError, match=r"verifier\._target_: Settling\.settle: .*'yes'"):
        verifier.submit("else", "x")
    with pytest.raises(UserError, match=r"_target_=decimal.Decimal: is no Judge \(it has no .*task"):
        build(VerifierConf(_target_="decimal.Decimal"), of=Judge)


def test_the_identity_knows_the_judge_where_it_is_another():
    plain = identity(compose_config("dataset=gsm8k", "model=random_tiny"))
    others = ["verifier=choice", "verifier.extract=last_number", "dataset.answer_kind=words", "reward.truncated=zero"]
    assert len({plain, *(identity(compose_config("dataset=gsm8k", "model=random_tiny", o)) for o in others)}) == 5
    assert identity(compose_config("dataset=gsm8k", "model=random_tiny", "verifier=math")) == plain


def rows_of(tmp_path, rows, *overrides):
    path = tmp_path / "mcq.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = compose_config("dataset=custom", f"dataset.path={path}", "model=random_tiny", *overrides)
    check(cfg)
    return build(cfg.dataset, Verifier(cfg.verifier, final=cfg.prompts.final))


def test_a_multiple_choice_file_is_read_by_its_own_judge(tmp_path):
    rows = [{"question": f"Which of {i}?", "answer": "ABCD"[i % 4], "why": f"Because of {i}."} for i in range(8)]
    reader = rows_of(
        tmp_path,
        rows,
        "verifier=choice",
        "prompts=final_line",
        "verifier.extract='after:Answer:'",
        "dataset.columns.solution=why",
    )
    problems = reader.whole()
    assert {p.solution.splitlines()[-1] for p in problems} == {f"Answer: {letter}" for letter in "ABCD"}
    assert reader.account().sources[0].kinds == {"option": 8}
    texts = [f"I think so.\nAnswer: ({p.answer})" for p in problems]
    assert set(reader.verifier.verify(texts, problems)) == {Verdict.CORRECT}


def test_answer_kind_says_how_answers_are_compared(tmp_path):
    rows = [{"question": f"{i}?", "answer": f"{i}-{i + 1}"} for i in range(4)]
    problems = rows_of(tmp_path, rows).whole()
    assert Verifier().verify([r"\boxed{-1}"], [problems[0]]) == [Verdict.INCORRECT]  # a score, a range: opaque
    asked = rows_of(tmp_path, rows, "dataset.answer_kind=expression").whole()
    assert Verifier().verify([r"\boxed{-1}"], [asked[0]]) == [Verdict.CORRECT]


def test_the_command_tells_kind_forms_and_verdict(capsys):
    assert verify_command.main(["0.5", "1/2", "50%", r"\sqrt{1/4}", "2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("0.5: number, 1/2")
    assert [line.split()[-2:] for line in said.splitlines()[2:]] == [
        ["its", "kind"], ["its", "kind"], ["correct", "math-verify"], ["its", "kind"]
    ]  # fmt: skip
    with pytest.raises(UserError, match="kind=color: no kind of answer"):
        verify_command.main(["a", "b", "kind=color"])
    assert VerifierConf().kind == "auto"
    assert verify_command.main(["A", "B", "(A) because", "so Answer: A", "verifier=choice", "prompts=final_line",
        "verifier.extract=after:Answer:"]) == 0  # fmt: skip
    assert [line.split()[-2:] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["incorrect", "0"], ["correct", "1"], ["correct", "1"]
    ]  # fmt: skip
    for setting in ("verifier.kind=foo", "verifier.extract=blah", "verifier.timeout_s=-1", "prompts.final=foo"):
        with pytest.raises(UserError, match=setting.partition("=")[0]):
            verify_command.main(["1", "1", setting])
    for settings in (["dataset.answer_kind=exact"], ["kind=auto", "verifier=choice"]):
        with pytest.raises(UserError, match=rf"{settings[-1]}: expo verify takes kind"):
            verify_command.main(["5", "5", *settings])
    with pytest.raises(UserError, match="as a right answer of verifier=choice: the answer is no option"):
        verify_command.main(["Rome", "A", "verifier=choice"])


GUIDE = ROOT / "docs" / "answers.md"
FILES = {
    "choices.jsonl": lambda i: {"question": f"Which? (A) {i} (B) {i + 1}", "answer": "AB"[i % 2]},
    "objects.jsonl": lambda i: {"question": f"Town {i}?", "answer": json.dumps({"city": f"Paris {i}"})},
    "code.jsonl": lambda i: {
        "question": f"Write times(x) for {i}.",
        "answer": f"def times(x): return {i} * x",
        "tests": f"assert times(2) == {2 * i}",
    },
}


@pytest.mark.long
@pytest.mark.runs
@pytest.mark.usefixtures("warm")
def test_the_recipes_of_the_page_on_answers(tmp_path):
    text = GUIDE.read_text()
    (tmp_path / "unit_tests.py").write_text(
        re.search(r"```python title=\"unit_tests.py\"\n(.*?)```", text, re.DOTALL)[1]
    )
    for name, row in FILES.items():
        (tmp_path / name).write_text("".join(json.dumps(row(i)) + "\n" for i in range(8)))
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        line = block.replace(
            "trainer.max_steps=1", "debug=tiny trainer.max_steps=1 rollout.max_completion_tokens=8 k=[1]"
        )
        done = subprocess.run(
            ["bash", "-e", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )  # fmt: skip
        assert done.returncode == 0, (block, done.stderr[-2000:])
        assert "done at step 1" in done.stdout or "expo verify" in block
    answers = {
        "def times(x): return 2 * x": True,
        "def times(x): return 3 * x": False,
        "def times(x): return 3 * x\nraise SystemExit(0)": False,
        "def times(x): return 3 * x\nimport os\nos._exit(0)": False,
        "def times(x):": False,
        "no function": None,
    }
    script = "import types, unit_tests; tests = types.SimpleNamespace(columns={'tests': 'assert times(2) == 4'})\n"
    script += f"print([unit_tests.judge(answer, tests) for answer in {[*answers]!r}])"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([*answers.values()])
    accounts = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/*/*/data.json")]
    assert len(accounts) == 3
    assert all(account["sources"][0]["used"] == 8 for account in accounts)


def test_another_judge_of_a_run_keeps_where_the_answer_stands(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints" / "final").mkdir(parents=True)
    (folder / "checkpoints" / "final" / "config.json").write_text("{}")
    cfg = compose_config("verifier.extract=last_number", "verifier.workers=3")
    OmegaConf.save(OmegaConf.structured(cfg), folder / "config.yaml")
    taken = config_from_run("evaluate", [f"run={folder}", "verifier=choice"]).verifier
    assert (taken.kind, taken.extract, taken.workers) == ("option", "last_number", 3)


GYM = '''
"""A stand-in for reasoning-gym."""


def get_score_answer_fn(name):
    return lambda answer, entry: {"sums": 1.0 if answer == entry["answer"] else 0.3}[name]
'''


@pytest.mark.runs
def test_rows_of_reasoning_gym_are_judged_by_the_task_that_made_them(tmp_path, monkeypatch):
    (tmp_path / "reasoning_gym.py").write_text(GYM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "expo.verifier.reasoning", raising=False)
    columns = {"answer": "7", "metadata": {"source_dataset": "sums"}}
    assert verdicts("reasoning_gym", "7", ["7", "8"], columns=columns) == ["c", "i"]
    sys.modules.pop("reasoning_gym", None)


def test_a_judge_of_ones_own_is_code_that_a_run_is_made_of(own, tmp_path):
    cfg = compose_config("verifier=python", "verifier.function=own_judges.half")
    before = own_code(cfg)
    assert list(before) == ["own_judges.py"]
    (tmp_path / "own_judges.py").write_text(OWN.replace("0.5 if", "0.9 if"))
    assert own_code(cfg) != before
    assert own_code(compose_config()) == {}


SLOW_TO_IMPORT = """
import time

end = time.process_time() + 1
while time.process_time() < end:
    pass


def judge(answer, problem):
    return answer == problem.answer
"""


def test_what_a_judge_imports_is_no_part_of_the_first_answers_time(tmp_path, monkeypatch):
    (tmp_path / "slow_judge.py").write_text(SLOW_TO_IMPORT)
    monkeypatch.syspath_prepend(tmp_path)
    conf = compose_config("verifier=python", "verifier.function=slow_judge.judge", "verifier.timeout_s=0.3").verifier
    with Verifier(conf) as verifier:
        assert verifier.verify([r"\boxed{7}"], [Problem("", "", "7")]) == [Verdict.CORRECT]


def test_an_answer_that_no_completion_may_be_as_long_as_is_named_with_its_key():
    with Verifier(VerifierConf(max_answer_chars=3)) as verifier:
        [told] = unusable([Problem("", "?", "1234")], verifier)
    assert "verifier.max_answer_chars=3" in str(told)


ODD = """
def two(answer, problem):
    return 2


def nan(answer, problem):
    return float("nan")


def raises(answer, problem):
    raise KeyError(answer)
"""


@pytest.fixture
def odd(tmp_path, monkeypatch):
    (tmp_path / "odd_judge.py").write_text(ODD)
    (tmp_path / "no_python.py").write_text("def judge(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def judge_by(name):
    return compose_config("verifier=python", f"verifier.function={name}").verifier


@pytest.mark.parametrize("name", ["two", "nan"])
def test_a_number_that_is_no_score_is_not_right(odd, name, caplog):
    with Verifier(judge_by(f"odd_judge.{name}")) as verifier:
        judging = verifier.submit(r"\boxed{7}", Problem("", "", "7"))
        assert (judging.result(), judging.score) == (Verdict.UNPARSEABLE, 0.0)
        assert "a judge's number is a score from 0 to 1, not" in judging.raised
    assert "a judge's number is a score from 0 to 1, not" in caplog.text


def test_a_judge_that_raises_is_known_when_the_rows_are_read(odd):
    rows = odd / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{i}?", "answer": str(i)}) + "\n" for i in range(8)))
    cfg = compose_config("dataset=custom", f"dataset.path={rows}", "model=random_tiny")
    told = r"verifier.function=odd_judge.raises: raised KeyError.* mend it"
    with Verifier(judge_by("odd_judge.raises")) as verifier, pytest.raises(UserError, match=told):
        build(cfg.dataset, verifier).train()


@pytest.mark.parametrize("key", ["verifier.function", "dataset.function"])
def test_a_file_of_ones_own_that_is_no_python_is_one_line(odd, key, monkeypatch):
    if key == "verifier.function":
        with pytest.raises(UserError, match=r"verifier.function=no_python.judge: cannot be called .*invalid syntax"):
            Verifier(judge_by("no_python.judge"))
        monkeypatch.setenv("EXPO_PLUGINS", "no_python")
        plugins.cache_clear()
        with pytest.raises(UserError, match=r"EXPO_PLUGINS=no_python: cannot be imported \(invalid syntax"):
            plugins()
        plugins.cache_clear()
    else:
        cfg = compose_config("dataset=function", "dataset.function=no_python.judge", "model=random_tiny")
        with pytest.raises(UserError, match=r"dataset.function=no_python.judge: cannot be imported \(invalid syntax"):
            build(cfg.dataset, Verifier(VerifierConf())).train()


def test_a_slip_in_a_setting_is_no_answer(capsys):
    with pytest.raises(UserError, match=r"verifer=choice: did you mean verifier=choice\?"):
        verify_command.main(["B", "A", "verifer=choice"])
    with pytest.raises(UserError, match="reward=partial: expo verify has no such key"):
        verify_command.main(["B", "A", "reward=partial"])
    assert verify_command.main(["x=5", "5", "k=5"]) == 0
    capsys.readouterr()
    assert verify_command.main(["B", "The answer is B.", "verifier=choice"]) == 0
    assert r"\boxed{The answer is B.}" in capsys.readouterr().out  # what was judged: without the box there is none
