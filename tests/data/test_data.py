import gzip
import hashlib
import io
import json
import os
import tracemalloc
from concurrent.futures import Future
from importlib import import_module
from types import SimpleNamespace

import pytest
from conftest import compose_config
from rich.console import Console

from expo.cli import reporting
from expo.config import UserError, build, check, data_content, identity, run_dir, run_id
from expo.config.world import CLEAR
from expo.data.account import Account, Part
from expo.data.checks import NUMBER, lacks_number, unusable
from expo.ground.problem import Problem
from expo.ladder import problems as ladder
from expo.step.problems import within_length
from expo.verifier.answers import Verdict
from expo.verifier.pool import Verifier


@pytest.fixture(autouse=True)
def _all_is_logged(caplog):
    caplog.set_level("INFO")


def reader(*overrides):
    return build(compose_config(*overrides).dataset)


def test_math_rows(math_file, caplog):
    problems = reader("dataset=math", f"dataset.path={math_file}").whole()
    assert len(problems) == 40
    first = next(p for p in problems if p.id == "math.jsonl:1")
    assert (first.answer, first.level, first.subject) == ("0", 1, "Algebra")
    assert "math.jsonl:41" in caplog.text
    assert "skipped 2 rows" in caplog.text


def test_bad_rows_stop_where_asked(math_file):
    with pytest.raises(UserError, match=r"math.jsonl:41 .*no \\boxed"):
        reader("dataset=math", f"dataset.path={math_file}", "dataset.on_bad_row=stop").train()


def test_a_line_that_is_no_json_is_a_bad_row(math_file, caplog):
    math_file.write_text(math_file.read_text() + "{broken\n[1, 2]\n")
    assert len(reader("dataset=math", f"dataset.path={math_file}").whole()) == 40
    assert "skipped 4 rows" in caplog.text
    assert "math.jsonl:43: not JSON" in caplog.text
    assert "math.jsonl:44: not a JSON object" in caplog.text


def test_blank_lines_are_no_rows(math_file):
    whole = reader("dataset=math", f"dataset.path={math_file}").whole()
    math_file.write_text(math_file.read_text().replace("\n", "\n \n", 1) + "\n\r\n\t\n")
    data = reader("dataset=math", f"dataset.path={math_file}")
    assert {p.question for p in data.whole()} == {p.question for p in whole}
    assert (data.sources[0].rows, data.sources[0].used) == (42, 40)
    assert "math.jsonl:3" in {p.id for p in data.whole()}  # as an editor numbers lines
    math_file.write_text("\n".join(math_file.read_text().splitlines()[:20]) + "\n\n")
    assert len(reader("dataset=math", f"dataset.path={math_file}", "dataset.on_bad_row=stop").whole()) == 19


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_packed_file_is_known_by_what_is_in_it(math_file, tmp_path, name, packed):
    path = tmp_path / name
    path.write_bytes(gzip.compress(math_file.read_bytes()) if packed else math_file.read_bytes())
    columns = [f"dataset.columns.{k}={v}" for k, v in (("question", "problem"), ("answer", "level"))]
    check(compose_config("dataset=custom", f"dataset.path={path}", *columns))  # its columns are looked for
    with pytest.raises(UserError, match=r"no row of .* has it, only problem, level"):
        check(compose_config("dataset=custom", f"dataset.path={path}", "dataset.columns.question=query"))
    assert len(reader("dataset=math", f"dataset.path={path}").whole()) == 40
    if packed:
        path.write_bytes(path.read_bytes()[:-20])
        check(compose_config("dataset=math", f"dataset.path={path}"))
        with pytest.raises(UserError, match=f"{name}: cannot be read .*; make the file again"):
            reader("dataset=math", f"dataset.path={path}").whole()


def test_levels_and_held_out_problems(math_file):
    data = reader("dataset=math_level5", f"dataset.path={math_file}", "dataset.eval_limit=3")
    train, held_out = data.train(), data.evaluation()
    assert {p.level for p in [*train, *held_out]} == {5}
    assert len(train) == 5
    assert len(held_out) == 3
    assert not {p.id for p in train} & {p.id for p in held_out}


def test_a_question_that_is_evaluated_is_not_trained_on(math_file, tmp_path, caplog):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(math_file.read_text().splitlines(keepends=True)[5:12]))
    data = reader("dataset=math", f"dataset.path={math_file}", f"dataset.eval_path={other}")
    assert len(data.train()) == 33
    assert not {p.question for p in data.train()} & {p.question for p in data.evaluation()}
    assert "7 questions of dataset.eval_path" in caplog.text


def test_null_is_no_answer_and_no_solution(tmp_path, caplog):
    path = tmp_path / "x.jsonl"
    rows = [{"question": "1?", "answer": None, "why": "x"}, {"question": "2?", "answer": 2, "why": None}]
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + "caf\u00e9".encode("latin-1").decode("latin-1") + "\n"
    )
    (problem,) = reader("dataset=custom", f"dataset.path={path}", "dataset.columns.solution=why").whole()
    assert (problem.answer, problem.solution) == ("2", None)
    assert "skipped 2 rows" in caplog.text


def test_a_file_that_is_no_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"dataset\.path=.*parquet"):
        reader("dataset=custom", f"dataset.path={path}").whole()


def test_gsm8k_removes_calculator_marks(gsm8k_file):
    problem = reader("dataset=gsm8k", f"dataset.path={gsm8k_file}").train()[-1]
    assert problem.solution.startswith("She has ")
    assert "<<" not in problem.solution
    assert problem.solution.endswith(rf"\boxed{{{problem.answer}}}")


def test_answers_of_a_float32_column_are_as_they_were_written(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    path = tmp_path / "mine.parquet"
    answers = pa.array([0.1, 0.7, 12.0, None], pa.float32())
    pa.parquet.write_table(pa.table({"question": ["a", "b", "c", "d"], "answer": answers}), path)
    found = reader("dataset=custom", f"dataset.path={path}").whole()
    assert {p.question: p.answer for p in found} == {"a": "0.1", "b": "0.7", "c": "12"}


def test_any_columns_from_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    path = tmp_path / "mine.parquet"
    rows = [{"q": f"{i}?", "a": i, "why": "because", "hard": f"L{i % 3}"} for i in range(9)]
    pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    names = {"question": "q", "answer": "a", "solution": "why", "level": "hard"}
    data = reader(
        "dataset=custom", f"dataset.path={path}", *(f"dataset.columns.{k}={v}" for k, v in names.items()),
        "dataset.known_levels=[0,1,2]", "dataset.levels=[2]",
    )  # fmt: skip
    assert [(p.question, p.answer, p.level) for p in sorted(data.whole(), key=lambda p: p.question)] == [
        ("2?", "2", 2), ("5?", "5", 2), ("8?", "8", 2)
    ]  # fmt: skip
    assert data.whole()[0].solution.endswith("}")


def test_a_column_without_a_name_is_none_that_is_meant(tmp_path):
    path = own_file(tmp_path, [{"": str(i), "question": f"{i}?", "answer": "1"} for i in range(4)])
    data = reader("dataset=custom", f"dataset.path={path}")
    assert {(p.level, p.subject, p.solution) for p in data.whole()} == {(None, None, None)}
    empty = reader("dataset=custom", f"dataset.path={path}", "dataset.columns.answer=''")
    with pytest.raises(UserError, match="no usable problem"):
        empty.whole()


def test_a_missing_column_is_named(tmp_path, caplog):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"question": "1?", "result": 1}) + "\n")
    with pytest.raises(UserError, match=r"dataset\.path=.*no usable problem"):
        reader("dataset=custom", f"dataset.path={path}").whole()
    assert "no column 'answer'" in caplog.text


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_column_that_no_row_has_is_told_before_anything_is_loaded(tmp_path, suffix):
    import pyarrow as pa
    import pyarrow.parquet

    path = tmp_path / f"x.{suffix}"
    rows = [{"question": f"{i}?", "results": i} for i in range(3)]
    if suffix == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:  # a column of later rows is a column
        rows.append({"late": 1})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not JSON\n")
        check(
            compose_config("dataset=custom", f"dataset.path={path}", "dataset.columns.answer=late", "model=random_tiny")
        )
    with pytest.raises(UserError) as error:
        check(compose_config("dataset=custom", f"dataset.path={path}", "dataset.columns.answer=result"))
    assert str(error.value).startswith(
        f"dataset.columns.answer=result: no row of {path} has it, only question, results"
    )
    assert str(error.value).endswith("perhaps dataset.columns.answer=results")


@pytest.mark.parametrize("level", ladder.LEVELS)
def test_ladder_problems_are_consistent(level):
    for problem in ladder.generate(level, "train", 50):
        parts = ladder.parse_question(problem.question)
        assert len(parts) == level
        assert ladder.question_text(parts) == problem.question
        cot = ladder.cot_text(parts, [p.meaning for p in parts])
        assert ladder.check_steps(problem.question, cot) == ladder.StepCheck(1.0, 1.0, True)
        assert all(len({p.result(s) for s in ladder.SKILLS}) == 5 for p in parts)


def test_ladder_splits_share_no_question_and_do_not_change():
    train = [p.question for p in ladder.generate(2, "train", 300)]
    test = [p.question for p in ladder.generate(2, "test", 100)]
    assert not set(train) & set(test)
    assert train[:2] == [p.question for p in ladder.generate(2, "train", 2)]


def test_meaning_weights_sum_to_one():
    for symbol, (level, true, _) in ladder.SYMBOLS.items():
        weights = ladder.meaning_weights(symbol)
        assert sum(weights.values()) == pytest.approx(1)
        assert weights[true] == CLEAR.familiarity[level - 1]


def test_the_oracle_sees_wrong_steps_behind_a_right_answer():
    problem = next(ladder.generate(2, "train", 1))
    parts = ladder.parse_question(problem.question)
    wrong = ladder.cot_text(parts, ["add", "add"]).split(r"\boxed")[0]
    right_answer = ladder.expert_text(parts, "own").split(r"\boxed")[1]
    check = ladder.check_steps(problem.question, wrong + r"\boxed" + right_answer)
    assert not check.sound
    assert check.arithmetic == 1.0


@pytest.mark.parametrize("style", ladder.EXPERT_STYLES)
def test_expert_styles_end_in_the_answer(style):
    from expo.verifier.answers import Verdict, fast_verdict
    from expo.verifier.extraction import last_boxed

    problem = next(ladder.generate(5, "train", 1, style))
    assert fast_verdict(last_boxed(problem.solution), problem.answer) is Verdict.CORRECT


def test_base_corpus_explains_the_answer_it_shows():
    import random

    from expo.jobs.pretrain import corpus_item
    from expo.verifier.extraction import last_boxed

    rng = random.Random(0)
    for _ in range(50):
        problem, completion, explain = corpus_item(4, rng)
        assert last_boxed(completion) == problem.answer or not explain


def test_many_bad_rows_are_counted_and_the_first_are_named(tmp_path, caplog):
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "1?", "answer": 1}\n' + "{}\n" * 50)
    assert len(reader("dataset=custom", f"dataset.path={path}").whole()) == 1
    assert caplog.text.count("skipped row") == 5
    assert "skipped 50 rows" in caplog.text


@pytest.mark.parametrize(("part", "mark"), [("held_out", "-held_out"), ("train", "-train"), ("all", "")])
def test_an_evaluation_takes_the_part_of_a_shared_file_that_training_leaves_out(math_file, part, mark):
    overrides = ["dataset=math", f"dataset.path={math_file}", "dataset.eval_limit=15", f"dataset.part={part}"]
    data, cfg = reader(*overrides), compose_config(*overrides)
    expected = {"held_out": data.evaluation(), "train": data.train(), "all": data.whole()}[part]
    taken = {p.id for p in data.part()}
    assert taken == {p.id for p in expected}
    assert len(taken) == {"held_out": 15, "train": 25, "all": 40}[part]
    assert (taken & {p.id for p in data.train()} == set()) is (part == "held_out")
    # Evaluations of different parts never share a directory; `all` is what 0.2 took, under the same name.
    assert run_id(cfg, "evaluate") == f"evaluate-math-{identity(cfg)}{mark}"
    assert run_dir(cfg, "evaluate").name.endswith(f"-{identity(cfg)}{mark}")


def test_the_part_of_other_data_is_the_same_as_ever(math_file):
    for overrides in (
        ["dataset=ladder"],
        ["dataset=math", f"dataset.path={math_file}", f"dataset.eval_path={math_file}"],
    ):
        cfg = compose_config(*overrides)
        assert run_id(cfg, "evaluate") == f"evaluate-{cfg.dataset.name}-{identity(cfg)}"
        assert [p.id for p in reader(*overrides).part()] == [p.id for p in reader(*overrides).whole()]


def own_file(tmp_path, rows, extra=""):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + extra)
    return path


def twenty(**changed):
    rows = [{"question": f"{i} + {i}?", "answer": str(2 * i)} for i in range(20)]
    for at, answer in changed.items():
        rows[int(at[1:])]["answer"] = answer
    return rows


def test_an_answer_that_can_never_be_right_is_skipped_and_named(tmp_path, caplog):
    path = own_file(tmp_path, twenty(_3="she has 6 apples", _4="}{", _5="result: 10"))
    data = reader("dataset=custom", f"dataset.path={path}")
    assert len(data.whole()) == 17
    (source,) = data.sources
    assert {reason[:24]: lines for reason, lines in source.skipped.items()} == {
        "the answer is a sentence": [4, 6],
        "the verifier cannot read": [5],
    }
    assert "mine.jsonl:4: the answer is a sentence; set dataset.answer_pattern" in caplog.text
    assert "6 is not judged equal to 'she has 6 apples'" in next(iter(source.examples.values()))


@pytest.mark.parametrize(
    "answer",
    [
        r"6 \text{ PM}",
        "29 apples",
        r"\frac{1}{2}",
        "June 20",
        "(A)",
        "Paris",
        "x = 5",
        r"99\pi \text{ square inches}",
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
    ],
)
def test_answers_that_are_no_sentences_are_kept(tmp_path, answer):
    path = own_file(tmp_path, twenty(_3=answer))
    assert len(reader("dataset=custom", f"dataset.path={path}").whole()) == 20


def test_answer_pattern_finds_the_answer(tmp_path):
    path = own_file(tmp_path, twenty(_3="she has 6 apples", _4="5 + 3 = 8\n#### 8", _5="none"))
    data = reader("dataset=custom", f"dataset.path={path}", r"dataset.answer_pattern='(\d+)'")
    answers = {p.id: p.answer for p in data.whole()}
    assert answers["mine.jsonl:4"] == "6"
    assert answers["mine.jsonl:5"] == "8"
    assert data.sources[0].skipped == {"the answer does not match dataset.answer_pattern": [6]}
    whole = reader("dataset=custom", f"dataset.path={path}", "dataset.answer_pattern='(?s).+'")
    assert {p.answer for p in whole.whole()} >= {"she has 6 apples", "none"}


def test_a_broken_answer_pattern_is_told(tmp_path):
    path = own_file(tmp_path, twenty())
    config = compose_config("dataset=custom", f"dataset.path={path}", "dataset.answer_pattern='(x'")
    with pytest.raises(UserError, match=r"answer_pattern=\(x: no regular expression"):
        check(config)


def test_a_solution_with_another_answer_is_skipped(tmp_path):
    rows = [row | {"why": rf"so \boxed{{{row['answer']}}}"} for row in twenty()]
    rows[7]["why"] = r"so \boxed{15}"
    data = reader("dataset=custom", f"dataset.path={own_file(tmp_path, rows)}", "dataset.columns.solution=why")
    assert len(data.whole()) == 19
    assert data.sources[0].skipped == {"the solution has another answer": [8]}


def test_prompts_of_the_trained_part_show_the_answer_where_it_is_trained_on():
    part = Part(9, 0, [38, 39, 39])

    def told(**parts):
        console = Console(width=200, file=io.StringIO())
        console.print(Account([], parts).table())
        return console.file.getvalue()

    assert "tokens with the answer shown" in told(train=part, held_out=part)
    assert "shown" not in told(train=part)  # expo evaluate dataset.part=train


def test_the_account_of_the_data(tmp_path):
    rows = twenty(_2="she has 4 pears")
    rows += [rows[7], {"question": "8 + 8?", "answer": "17"}]
    path = own_file(tmp_path, rows, "oops\n")
    data = reader("dataset=custom", f"dataset.path={path}", "dataset.eval_limit=5")
    train, held_out = data.train(), data.evaluation()
    (source,) = data.account().sources
    assert (source.rows, source.used, source.duplicates, source.contradictions) == (23, 21, [21], [22])
    assert source.answer_characters == [1, 2, 2]
    assert len(held_out) == 5
    assert len(train) + len(held_out) + data.asked_in_held_out == 21
    assert not {p.asked for p in train} & {p.asked for p in held_out}


def test_one_good_row_is_not_called_none(tmp_path):
    path = own_file(tmp_path, [{"question": "1 + 1?", "answer": "2"}, {"question": "?"}])
    with pytest.raises(UserError, match=r"only 1 problem can be used.*2 rows, 1 usable.*no column 'answer'.*eval_path"):
        reader("dataset=custom", f"dataset.path={path}").train()


def test_one_problem_alone_says_why_the_other_rows_are_none(tmp_path):
    rows = [{"question": "Which one?", "answer": "ABCD"[i % 4], "choices": [i]} for i in range(12)]
    path = own_file(tmp_path, rows)
    told = r"only 1 problem can be used.*11 \(lines 2, 3, .*asks what an earlier row asks; write .*show choices\); mend"
    with pytest.raises(UserError, match=told):
        reader("dataset=custom", f"dataset.path={path}").train()
    rows = [row | {"question": f"{i}?", "level": i} for i, row in enumerate(rows)]
    levels = ("dataset.columns.level=level", "dataset.levels=[3]")
    with pytest.raises(UserError, match=r"only 1 problem of dataset\.levels=\[3\] can be used.*12 rows, 12 usable"):
        reader("dataset=custom", f"dataset.path={own_file(tmp_path, rows)}", *levels).train()


def test_columns_that_no_prompt_shows_are_named(tmp_path, math_file, capsys):
    rows = [row | {"choices": "A) 1 B) 2", "of": {"level": 1}, "why": "none"} for row in twenty()]
    columns = ("dataset.columns.level=of.level", "dataset.columns.solution=why")
    data = reader("dataset=custom", f"dataset.path={own_file(tmp_path, rows)}", *columns)
    data.train()
    data.account().show()
    assert "choices; write into the question" in " ".join(capsys.readouterr().out.split())
    assert data.account().record()["sources"][0]["unshown"] == ["choices"]
    data = reader("dataset=math", f"dataset.path={math_file}")
    data.train()
    assert data.sources[0].unshown == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([1], "the answer is neither text nor a number; write it as text, as json.dumps does"),
        ({"a": 1}, "the answer is neither text nor a number; write it as text, as json.dumps does"),
        (True, "the answer is neither text nor a number; write it as text, as json.dumps does"),
        (float("nan"), "the answer is not a finite number"),
        ("\ud800", "the answer holds half a character"),
        (" ", "empty question or answer"),
        (None, "no question or no answer"),
    ],
)
def test_what_is_no_answer_is_a_bad_row(tmp_path, answer, reason):
    data = reader("dataset=custom", f"dataset.path={own_file(tmp_path, twenty(_3=answer))}")
    assert len(data.whole()) == 19
    assert data.sources[0].skipped == {reason: [4]}


def test_odd_lines_cost_only_themselves(tmp_path, math_file):
    odd = "[" * 100_000 + "]" * 100_000 + "\n"
    data = reader("dataset=custom", f"dataset.path={own_file(tmp_path, twenty(), odd)}")
    assert len(data.whole()) == 20
    rows = math_file.read_text().splitlines()
    rows[3] = json.dumps(json.loads(rows[3]) | {"type": 7})
    math_file.write_text("\n".join(rows) + "\n")
    data = reader("dataset=math", f"dataset.path={math_file}")
    assert len(data.whole()) == 39
    assert data.sources[0].skipped["the subject is not text"] == [4]


@pytest.mark.parametrize(
    ("text", "pattern", "found"),
    [
        ("She has 14,013 dollars in total", r"(\d+)", None),
        ("It costs 12.50 dollars", r"(\d+)", None),
        ("It is -5 then", r"(\d+)", None),
        ("She has 14,013 dollars in total", NUMBER, "14,013"),
        ("It costs 12.50 dollars", NUMBER, "12.50"),
        ("It is -5.", NUMBER, "-5"),
        ("From 3 to -5 degrees", NUMBER, "-5"),
        ("The score was 21-14", r"(-?\d+)", None),
        ("The score was 21-14", NUMBER, None),
        ("between 3-5 apples", NUMBER, None),
        ("on 2024-01-05", NUMBER, None),
        ("as 5.-3 says", r"(-?\d+)", None),
        ("between 3–5 apples", NUMBER, None),
        ("It is −5 then", NUMBER, None),
        ("It is 2+3", r"([+-]?\d+)", None),
    ],
)
def test_a_pattern_that_cuts_a_number_is_told(tmp_path, text, pattern, found):
    data = reader(
        "dataset=custom", f"dataset.path={own_file(tmp_path, twenty(_3=text))}", f"dataset.answer_pattern='{pattern}'"
    )
    answers = {p.id: p.answer for p in data.whole()}
    assert answers.get("mine.jsonl:4") == found
    if found is None:
        assert data.sources[0].skipped == {"dataset.answer_pattern finds a part of a number": [4]}


def test_a_verdict_that_came_too_late_drops_no_row(tmp_path):
    class Slow(Verifier):
        def submit(self, completion, problem):
            result = Future()
            result.set_result(Verdict.TIMEOUT)
            return result

    rows = [row | {"why": rf"\boxed{{{row['answer']}}}"} for row in twenty()]
    conf = compose_config(
        "dataset=custom", f"dataset.path={own_file(tmp_path, rows)}", "dataset.columns.solution=why"
    ).dataset
    assert len(build(conf, Slow()).whole()) == 20


def test_what_is_evaluated_from_a_file_is_not_trained_on_from_the_hub(tmp_path, monkeypatch):
    rows = [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(6)]
    path = own_file(tmp_path, rows[:2])
    data = reader("dataset=gsm8k", f"dataset.eval_path={path}")
    monkeypatch.setattr(data, "_hub_rows", lambda split: rows)
    assert len(data.train()) == 4


def test_what_the_hubs_splits_share_is_named(monkeypatch, caplog):
    rows = [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(6)]
    data = reader("dataset=gsm8k")
    monkeypatch.setattr(data, "_hub_rows", lambda split: rows if split == "train" else rows[:2])
    assert len(data.train()) == 6
    assert "2 questions to train on are also evaluated on" in caplog.text


@pytest.mark.parametrize(
    "overrides",
    [
        ["dataset=ladder_level5", "dataset.split=test"],
        ["dataset=ladder", "dataset.eval_split=train"],
    ],
)
def test_generated_problems_are_not_trained_and_evaluated_on(overrides):
    with pytest.raises(UserError, match="is evaluated on this very split"):
        reader(*overrides).train()


def test_a_system_message_hides_no_question_that_is_held_out(tmp_path):
    def asked(i, *system):
        return {"question": [*system, {"role": "user", "content": f"{i} + {i}?"}], "answer": str(2 * i)}

    system = {"role": "system", "content": "Be brief."}
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(asked(i, system)) for i in range(20)))
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(asked(i)) for i in range(5)))
    own = [f"dataset.path={tmp_path / 'train.jsonl'}", f"dataset.eval_path={tmp_path / 'test.jsonl'}"]
    data = reader("dataset=custom", *own)
    assert (len(data.train()), len(data.evaluation()), data.asked_in_held_out) == (15, 5, 5)


# --- rows that are not what they seem


def read_own(tmp_path, rows, *overrides, extra=""):
    data = reader("dataset=custom", f"dataset.path={own_file(tmp_path, rows, extra)}", *overrides)
    try:
        return sorted(data.whole(), key=lambda p: int(p.id.rpartition(":")[2])), data.sources[0].skipped
    except UserError:
        return [], data.sources[0].skipped


@pytest.mark.parametrize(
    "eaten",
    [
        r"\frac{1}{2}",
        r"\boxed{3}",
        r"\text{a}",
        r"\times 3",
        r"\theta",
        r"\neq 3",
        r"\right)",
        r"\nabla f",
        r"\beta",
        r"\rho",
    ],
)
def test_a_backslash_that_json_has_eaten_costs_the_row_and_is_named(tmp_path, eaten):
    line = f'{{"question": "What is {eaten}?", "answer": "3"}}\n'
    problems, skipped = read_own(tmp_path, [{"question": "1?", "answer": "1"}], extra=line)
    assert [p.answer for p in problems] == ["1"]
    assert skipped == {r"JSON has eaten a backslash of the question; write each as \\, as json.dumps does": [2]}


@pytest.mark.parametrize(
    "kept", ["Name\tAge\nAnn\t5", "a\r\nnew line", "x\nu = 3\ne = 2", "tab\tan (old) one", "é\n\nnot so"]
)
def test_white_space_that_is_meant_is_kept(tmp_path, kept):
    problems, _ = read_own(tmp_path, [{"question": kept, "answer": "1"}])
    assert [p.question for p in problems] == [kept]


def test_chat_messages_are_messages(tmp_path):
    rows = [
        {"question": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}], "answer": 2},
        {"question": [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}], "answer": 4},
        {"question": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "answer": 1},
        {"question": [{"role": "user", "content": [{"type": "image"}]}], "answer": 1},
        {"question": [1, 2], "answer": 1},
    ]
    problems, skipped = read_own(tmp_path, rows)
    assert [(p.earlier, p.question) for p in problems] == [((("system", "Be brief."),), "1 + 1?"), ((), "2 + 2?")]
    assert skipped == {
        "the last message is not the user's": [3],
        "the content of a message is no text": [4],
        "a list that is no chat messages": [5],
    }


def test_rows_of_verl_and_trl_are_read_as_they_are(tmp_path):
    verl = {
        "data_source": "gsm8k", "prompt": [{"role": "user", "content": "3 + 4?"}], "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "7"}, "extra_info": {"split": "train", "index": 0},
    }  # fmt: skip
    mapped = [
        f"dataset.columns.{k}={v}"
        for k, v in (("question", "prompt"), ("answer", "reward_model.ground_truth"), ("subject", "data_source"))
    ]
    [problem], _ = read_own(tmp_path, [verl], *mapped)
    assert (problem.question, problem.answer, problem.subject) == ("3 + 4?", "7", "gsm8k")
    assert problem.columns["extra_info"]["index"] == 0
    trl = {"prompt": "3 + 4?", "solution": r"It is \boxed{7}."}
    [problem], _ = read_own(
        tmp_path,
        [trl],
        "dataset.columns.question=prompt",
        "dataset.columns.answer=solution",
        "dataset.columns.solution=solution",
    )
    assert (problem.answer, problem.solution) == ("7", r"It is \boxed{7}.")
    said = [{"role": "assistant", "content": "Seven."}]
    mapped = ["dataset.columns.question=prompt", "dataset.columns.solution=completion"]
    [problem], _ = read_own(tmp_path, [{"prompt": "3 + 4?", "completion": said, "answer": "7"}], *mapped)
    assert problem.solution == "Seven.\n\\boxed{7}"


@pytest.mark.parametrize("value", [{"text": "1?"}, 5, True, 1.5])
def test_what_is_no_text_is_no_question_and_no_solution(tmp_path, value):
    rows = [
        {"question": value, "answer": "1"},
        {"question": "1?", "answer": "1", "why": value},
        {"question": "2?", "answer": "2", "why": ""},
    ]
    problems, skipped = read_own(tmp_path, rows, "dataset.columns.solution=why")
    assert [p.answer for p in problems] == ["2"]
    assert skipped == {"the question is no text": [1], "the solution is no text": [2]}


@pytest.mark.parametrize("nothing", ["", "None", "nan", None, float("nan"), "null"])
def test_what_tables_write_for_nothing_is_no_solution(tmp_path, nothing):
    rows = [
        {"question": "1?", "answer": "1", "why": nothing},
        {"question": "2?", "answer": "2"},
        {"question": "3?", "answer": "3", "why": "So."},
    ]
    problems, skipped = read_own(tmp_path, rows, "dataset.columns.solution=why")
    assert [p.solution for p in problems] == [None, None, "So.\n\\boxed{3}"]
    assert skipped == {}


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([1, 2, None], [1, 2, None]),
        ([1.0, 2.0, float("nan")], [1, 2, None]),
        (["Level 5", "5", "level 3"], [5, 5, 3]),
        (["hard", "easy", None], ["hard", "easy", None]),
        ([4.5, 5, 1], ["4.5", "5", "1"]),
        (["Level 5 (hard)", "Level 4", ""], ["Level 5 (hard)", "4", None]),
        ([0, 1, 2], [0, 1, 2]),
        (["A1", "B1", "hard1"], ["A1", "B1", "hard1"]),
        (["AIME 2024", "AMC 2024", "level_3"], ["AIME 2024", "AMC 2024", "3"]),
        (["L5", "Grade 4", "lvl-3"], [5, 4, 3]),
        (["tier 1", "Tier 2", None], [1, 2, None]),
        (["stage2", "stage3", "stage 10"], [2, 3, 10]),
    ],
)
def test_levels_are_numbers_or_words(tmp_path, values, levels):
    rows = [{"question": f"{i}?", "answer": i, "hard": value, "of": None} for i, value in enumerate(values)]
    problems, _ = read_own(tmp_path, rows, "dataset.columns.level=hard", "dataset.columns.subject=of")
    assert [p.level for p in sorted(problems, key=lambda p: p.answer)] == levels
    assert {p.subject for p in problems} == {None}
    wanted, _ = read_own(tmp_path, rows, "dataset.columns.level=hard", f"dataset.levels=['{levels[0]}']")
    assert {p.level for p in wanted} == {levels[0]}


def test_a_level_that_no_row_has_is_told(tmp_path):
    rows = [{"question": f"{i}?", "answer": i, "hard": word} for i, word in enumerate(["easy", "hard"] * 3)]
    path = own_file(tmp_path, rows)
    data = reader("dataset=custom", f"dataset.path={path}", "dataset.columns.level=hard", "dataset.levels=[hrad,easy]")
    with pytest.raises(UserError, match=r"no row of .* is of level hrad; its levels are easy, hard"):
        data.whole()


def test_an_integer_that_became_a_float_and_lost_digits_is_refused(tmp_path):
    problems, skipped = read_own(
        tmp_path, [{"question": "1?", "answer": 1.3782604899597243e18}, {"question": "2?", "answer": 29.0}]
    )
    assert [p.answer for p in problems] == ["29"]
    assert next(iter(skipped)).startswith("the answer has lost digits")


def test_a_question_that_is_asked_twice_is_evaluated_once(tmp_path):
    rows = [{"question": f"{i % 14}?", "answer": i % 14} for i in range(30)]
    data = reader("dataset=custom", f"dataset.path={own_file(tmp_path, rows)}", "dataset.eval_limit=30")
    assert len(data.evaluation()) == 7  # half of 14 questions
    assert len({p.asked for p in data.evaluation()}) == 7
    assert len(data.whole()) == 14
    data.conf.part = "train"
    assert len({p.asked for p in data.part()}) == len(data.part()) == 7
    assert not {p.asked for p in data.train()} & {p.asked for p in data.evaluation()}


def test_the_account_tells_what_may_be_meant_otherwise(tmp_path):
    answers = ["05/06/2024", "28/07/1914", "100,200", "1000", r"1{,}000", "07/08/2024", "A. Rome", "b", "A. 5", "x"]
    data = reader(
        "dataset=custom",
        f"dataset.path={own_file(tmp_path, [{'question': f'{i}?', 'answer': a} for i, a in enumerate(answers)])}",
    )
    data.whole()
    assert [lines for _, lines in sorted(data.sources[0].doubts.items())] == [[1, 6], [3], [7, 8]]


def test_the_account_tells_of_solutions_that_do_not_have_the_answers_number(tmp_path):
    solutions = {"48 + 16 = 64": "66", "4 + 4 = 8": "8", "$1,000.00 in all": "1000", "by symmetry": "5", "3 x": "x"}
    solutions[r"48 + 16 = \boxed{66}"] = "66"
    rows = [{"question": f"{i}?", "answer": a, "solution": s} for i, (s, a) in enumerate(solutions.items())]
    data = reader("dataset=custom", f"dataset.path={own_file(tmp_path, rows)}", "dataset.columns={solution: solution}")
    data.whole()
    assert [*data.sources[0].doubts.values()] == [[1]]


def test_the_account_tells_the_kinds_of_answers(tmp_path):
    rows = [
        {"question": f"{i}?", "answer": answer}
        for i, answer in enumerate(["7", "8", "May 3, 2020", "Paris", "10.0.0.1"])
    ]
    data = reader("dataset=custom", f"dataset.path={own_file(tmp_path, rows)}")
    data.whole()
    assert data.sources[0].kinds == {"number": 2, "date": 1, "words": 1, "exact": 1}
    assert data.account().record()["sources"][0]["kinds"]["number"] == 2


def wide_rows(path, count=400, blanks=10_000):
    """Rows whose bytes are mostly no part of what is kept of them."""
    path.write_text("".join(f'{{"question": "{i}?",{" " * blanks}"answer": "1"}}\n' for i in range(count)))
    return path


def test_a_large_file_is_read_row_by_row(tmp_path):
    """Neither its identity nor its rows take the whole of it into memory at once, packed or not."""
    path = wide_rows(tmp_path / "x.jsonl")
    packed = tmp_path / "x.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    cfg = compose_config("dataset=custom", f"dataset.path={path}")
    reader("dataset=custom", f"dataset.path={packed}").whole()  # what is imported is no part of it
    for take in (
        lambda: data_content(cfg),
        build(cfg.dataset).whole,
        reader("dataset=custom", f"dataset.path={packed}").whole,
    ):
        tracemalloc.start()
        take()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < path.stat().st_size / 2


def test_rows_are_judged_and_prompts_made_some_at_a_time(tmp_path, monkeypatch):
    """What a judge and a tokenizer make of all rows of a large file at once is many times its size."""
    monkeypatch.setattr("expo.data.reader.AT_ONCE", 3)
    monkeypatch.setattr("expo.step.problems.AT_ONCE", 3)
    asked, judged = [], []

    def some(problems, *rest):
        judged.append(len(problems))
        return unusable(problems, *rest)

    def ids(tokenizer, problems):
        asked.append(len(problems))
        return [[0] * len(p.question) for p in problems]

    monkeypatch.setattr("expo.data.reader.unusable", some)
    problems = reader("dataset=custom", f"dataset.path={wide_rows(tmp_path / 'x.jsonl', 11, 1)}").whole()
    kept, part = within_length(problems, [ids, ids], None, 2)
    assert sorted(p.question for p in kept) == [f"{i}?" for i in range(10)]
    assert (part.too_long, part.prompt_tokens) == (1, [2, 2, 3])
    assert judged == [3, 3, 3, 2]
    assert asked == [3, 3, 3, 3, 3, 3, 2, 2]


def test_rows_that_the_memory_cannot_hold_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("expo.data.reader.AT_ONCE", 4)
    data = reader("dataset=custom", f"dataset.path={wide_rows(tmp_path / 'x.jsonl', 9, 1)}")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=2**34, available=2**20))
    assert reporting(data.whole) == 1
    assert capsys.readouterr().err == (
        "expo: out of memory (x.jsonl: 4 rows are read, and the machine has 1 MiB left); give it more (ulimit -v), "
        "or take fewer rows\n"
    )


def test_a_large_file_is_known_by_what_is_in_it_and_read_once(tmp_path, monkeypatch):
    """A run asks for its data's identity some thirty times."""
    path, reads, digest = wide_rows(tmp_path / "x.jsonl", 9, 1), [], hashlib.file_digest

    def counted(*given):
        reads.append(given)
        return digest(*given)

    monkeypatch.setattr(import_module("expo.config.identity"), "LARGE", 1)
    monkeypatch.setattr("hashlib.file_digest", counted)
    cfg = compose_config("dataset=custom", f"dataset.path={path}")
    before = [data_content(cfg) for _ in range(3)]
    assert len(reads) == 1
    path.write_text(path.read_text().replace("8?", "7!"))
    os.utime(path, ns=(1, 1))  # even back in time
    assert data_content(cfg) != before[0]
    assert before[0] == before[2]


@pytest.mark.parametrize(
    ("answer", "solution", "lacks"),
    [
        ("7", "3 + 5 = 8", True),
        ("200", "It is 1200", True),
        ("-5", "It is \u22125", False),
        ("0.5", "that is .5", False),
        ("0.5", "that is 1/2", False),
        ("1200", "1 200 in all", False),
        ("1,200", "1200 in all", False),
        ("7", "seven", False),  # no number at all
    ],
)
def test_a_solution_lacks_the_answers_number_however_it_is_written(answer, solution, lacks):
    assert lacks_number(Problem("a", "q", answer, solution)) is lacks
