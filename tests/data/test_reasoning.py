"""Problems of reasoning-gym (`dataset=reasoning_gym`), partial scores, worked examples in prompts, and rows of a
function."""

import importlib.util
import sys

import pytest
from conftest import compose_config

from expo.config import DatasetConf, PromptsConf, UserError, build, check, identity
from expo.config.reasoning import ReasoningGymConf
from expo.data.formats import _steps
from expo.data.reader import Reader
from expo.ground.problem import Problem, Steps
from expo.jobs.wiring import make_reward
from expo.model import small
from expo.model.prompts import Prompts
from expo.step.experience import Candidate
from expo.step.positives.selection import SELECTIONS
from expo.step.rewards import Rollout
from expo.tables.aggregate import pass_values
from expo.verifier.answers import Verdict
from expo.verifier.pool import Verifier

INIT = '''
"""A stand-in for reasoning-gym: sums of two numbers, the same with worked solutions, a board, and tasks that fail."""

__version__ = "0"


def create_dataset(name, **settings):
    from reasoning_gym import factory

    made, config = factory.DATASETS[name]
    return made(config(**settings))


def get_score_answer_fn(name):
    return create_dataset(name).score_answer
'''
FACTORY = '''
import random
import time
from dataclasses import dataclass
from types import SimpleNamespace


@dataclass
class Numbers:
    low: int = 0
    max_value: int = 99
    kind: str = "plain"
    seed: int = 0
    size: int = 500

    def __post_init__(self):
        assert self.max_value > 0, "max_value must be positive"


class Sums:
    """Problem i of seed s is problem 0 of seed s + i, as in reasoning-gym."""

    name = "sums"

    def __init__(self, config):
        self.config = config

    def numbers(self, i):
        draw = random.Random(self.config.seed + i)
        return [draw.randint(self.config.low, self.config.max_value) for _ in range(2)]

    def __getitem__(self, i):
        a, b = self.numbers(i)
        return self.entry(f"{a} + {b} = ?", str(a + b))

    def entry(self, question, answer, **more):
        return {"question": question, "answer": answer, "metadata": {"source_dataset": self.name, **more}}

    def score_answer(self, answer, entry):
        return 1.0 if answer == entry["answer"] else 0.25 if answer[:1] == entry["answer"][:1] else 0.0


class Worked(Sums):
    name = "gsm_symbolic"

    def __getitem__(self, i):
        a, b = self.numbers(i)
        return self.entry(f"{a} and {b}?", str(a + b), answer_cot=f"{a} + {b} = {a + b}\\n#### {a + b}")


class Board(Sums):
    """Many answers are right: one stands in the metadata."""

    name = "board"

    def __getitem__(self, i):
        a, b = self.numbers(i)
        return self.entry(f"a board of {a} and {b}", None, example_answer=f"_ {a}\\n{b} _")

    def score_answer(self, answer, entry):
        return float(answer.count("_") == 2)


class Failing(Sums):
    name = "failing"

    def score_answer(self, answer, entry):
        if answer == "hang":
            while True:
                time.process_time()
        if answer == "raise":
            raise RuntimeError("no such answer")
        return float(answer == entry["answer"])


class Raising(Sums):
    def __getitem__(self, i):
        raise RuntimeError("no problem")


class Few(Sums):
    name = "few"

    def __getitem__(self, i):
        return self.entry(f"{i % 3}?", "1")


class Curriculum:
    attributes = {"max_value": SimpleNamespace(levels=[9, 99, 999])}

    def set_global_level(self, level):
        self.level = level

    def generate_configuration(self, context):
        return Numbers(low=10**self.level, max_value=self.attributes["max_value"].levels[self.level])


DATASETS = {
    task.name if name is None else name: (task, Numbers)
    for name, task in ((None, Sums), (None, Worked), (None, Board), (None, Failing), ("raising", Raising), (None, Few))
}
CURRICULA = {"sums": Curriculum}
'''
COACHING = """
from enum import Enum

RangeAttributeMode = Enum("RangeAttributeMode", "UPPER_BOUND")


class DefaultCurriculumContext:
    def __init__(self, mode):
        self.mode = mode
"""
OURS = ("expo.data.reasoning", "expo.verifier.reasoning", "reasoning_gym")


def forget():
    for name in [name for name in sys.modules if name.startswith(OURS)]:
        del sys.modules[name]


@pytest.fixture
def gym(tmp_path, monkeypatch):
    """Put the stand-in in the place of the package."""
    folder = tmp_path / "reasoning_gym"
    (folder / "coaching").mkdir(parents=True)
    (folder / "__init__.py").write_text(INIT)
    (folder / "factory.py").write_text(FACTORY)
    (folder / "coaching" / "__init__.py").touch()
    (folder / "coaching" / "base_curriculum.py").write_text(COACHING)
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield
    forget()


def config(*overrides):
    cfg = compose_config("dataset=reasoning_gym", "dataset.limit=30", "dataset.eval_limit=10", *overrides)
    check(cfg)
    return cfg


def reader(cfg, verifier) -> Reader:
    return build(cfg.dataset, verifier, of=Reader)


def problems(*overrides) -> tuple[Reader, list[Problem], list[Problem]]:
    cfg = config(*overrides)
    with Verifier(cfg.verifier) as verifier:
        made = reader(cfg, verifier)
        return made, made.train(), made.evaluation()


def refused(*overrides) -> str:
    with pytest.raises(UserError) as told:
        problems(*overrides)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_no_question_is_in_two_splits_and_a_split_is_the_same_each_time(gym):
    found = {split: problems("dataset.task=sums", f"dataset.eval_split={split}") for split in ("test", "table")}
    asked = {split: {p.asked for p in held_out} for split, (_, _, held_out) in found.items()}
    trained = {p.asked for p in found["test"][1]}
    assert len(trained) == 30
    assert [len(questions) for questions in asked.values()] == [10, 10]
    assert not asked["test"] & asked["table"]
    assert not trained & (asked["test"] | asked["table"])
    again = problems("dataset.task=sums", "dataset.limit=20")
    assert [p.id for p in again[2]] == [p.id for p in found["test"][2]]
    assert {p.asked for p in again[1]} < trained  # fewer are a part of more


def test_worked_solutions_lose_the_mark_and_end_in_the_answer_as_the_verifier_reads_it(gym):
    _, trained, _ = problems("dataset.task=gsm_symbolic")
    p = trained[0]
    assert p.solution == f"{p.asked.removesuffix('?').replace('and', '+')} = {p.answer}\n\\boxed{{{p.answer}}}"
    check(config("dataset.task=gsm_symbolic", "algorithm=grpo_sft_gt_cot"))
    assert "gsm_symbolic alone has them" in refused("dataset.task=sums", "algorithm=grpo_sft_gt_cot")


def test_the_tasks_own_scorer_is_the_verdict_and_a_board_is_an_answer(gym):
    cfg = config("dataset.task=board", "verifier.workers=1")
    with Verifier(cfg.verifier) as verifier:
        [p, *_] = reader(cfg, verifier).evaluation()
        assert p.answer.count("_") == 2
        verdicts = verifier.verify([r"\boxed{_ 1" + "\n" + "2 _}", r"\boxed{1 2}", "no box"], [p] * 3)
    assert verdicts == [Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNPARSEABLE]


def test_a_scorer_that_raises_or_hangs_costs_its_own_answer_alone(gym, caplog):
    cfg = config("dataset.task=failing", "verifier.workers=1", "verifier.timeout_s=0.3")
    with Verifier(cfg.verifier) as verifier:
        [p, *_] = reader(cfg, verifier).evaluation()
        said = [rf"\boxed{{{answer}}}" for answer in ("raise", "hang", p.answer)]
        assert verifier.verify(said, [p] * 3) == [Verdict.UNPARSEABLE, Verdict.TIMEOUT, Verdict.CORRECT]
    assert "raised RuntimeError: no such answer" in caplog.text


def test_a_partial_reward_is_the_score_of_a_wrong_answer(gym):
    cfg = config("dataset.task=sums", "dataset.task_config={low: 10}", "reward=partial", "verifier.workers=1")
    with Verifier(cfg.verifier) as verifier:
        [p, *_] = reader(cfg, verifier).evaluation()
        near = f"{p.answer[0]}?"
        texts = [rf"\boxed{{{a}}}" for a in (p.answer, near, near, "x")] + ["nothing"]
        judged = verifier.score(texts, [p] * 5)
        made = [Rollout(p, t, v, 3, i == 2, 0, s) for i, (t, (v, s)) in enumerate(zip(texts, judged, strict=True))]
        assert make_reward(cfg)(made) == [1, 0.25, 0.25, 0, 0]
        cfg.reward.truncated = "zero"
        assert make_reward(cfg)(made) == [1, 0.25, 0, 0, 0]
    with pytest.raises(UserError, match=r"reward=partial: .* set verifier=reasoning_gym"):
        check(compose_config("reward=partial"))


def test_levels_are_the_curriculums_or_those_of_a_named_setting(gym):
    _, trained, _ = problems("dataset.task=sums", "dataset.levels=[0,2]")
    digits = {
        level: {len(n) for p in trained if p.level == level for n in p.question.split()[::2][:2]} for level in (0, 2)
    }
    assert digits == {0: {1}, 2: {3}}
    assert [sum(p.level == level for p in trained) for level in (0, 2)] == [15, 15]
    _, trained, held_out = problems(
        "dataset.task=sums", "dataset.level_by=value", "dataset.levels=[5]", "dataset.eval_levels=[7]"
    )
    numbers = [max(int(n) for n in p.question.split()[::2][:2]) for p in (*trained, *held_out)]
    assert max(numbers) == 7
    assert max(numbers[: len(trained)]) == 5


def test_several_tasks_have_their_shares(gym):
    _, trained, held_out = problems(
        "dataset.tasks={sums: 2, gsm_symbolic: 1}", "dataset.task_config={sums: {low: 50}}", "dataset.eval_limit=9"
    )
    assert [sum(p.subject == "sums" for p in part) for part in (trained, held_out)] == [20, 6]
    assert min(int(p.question.split()[0]) for p in trained if p.subject == "sums") >= 50


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["dataset.task=sum"], "no task of reasoning-gym; did you mean sums?"),
        (["dataset.task=composite"], "no task of reasoning-gym"),
        (["dataset.task=sums", "dataset.task_config={max_valu: 3}"], "did you mean max_value"),
        (["dataset.task=sums", "dataset.task_config={max_value: 0}"], "max_value must be positive"),
        (["dataset.task=board", "dataset.levels=[1]"], "has no curriculum"),
        (["dataset.task=board", "dataset.levels=[1]"], "set dataset.level_by to a setting that counts: low, max_value"),
        (["dataset.task=sums", "dataset.levels=[3]"], "has the levels 0 to 2"),
        (["dataset.task=sums", "dataset.levels=[hard]"], "is a whole number"),
        (["dataset.task=sums", "dataset.levels=[1]", "dataset.level_by=kind"], "those that count are low, max_value"),
        (["dataset.task=sums", "dataset.level_by=value"], "has no effect without levels"),
        (["dataset.task=raising"], "raises RuntimeError"),
        ([], "give one task"),
        (["dataset.task=sums", "dataset.tasks={few: 1}"], "give one task"),
        (["dataset.tasks={few: 0}"], "must be a number above 0"),
        (["dataset.tasks={few: 1}", "dataset.task_config={low: 3}"], "the settings of each by its name"),
        (["dataset.task=sums", "dataset.eval_split=validation"], "use train or test or table"),
        (["dataset.task=sums", "verifier=math"], "set verifier=reasoning_gym"),
        (["dataset.task=sums", "dataset.path=a.jsonl"], "a.jsonl"),
    ],
)  # fmt: skip
def test_what_reasoning_gym_does_not_have_is_one_line(gym, overrides, told):
    assert told in refused(*overrides)


def test_a_task_with_few_questions_gives_what_it_has(gym):
    _, trained, held_out = problems("dataset.task=few", "dataset.eval_split=table")
    assert len(trained) + len(held_out) <= 3


def test_a_missing_package_names_its_one_command(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "reasoning_gym" else found(name, *more)
    )
    with pytest.raises(UserError, match=r"not installed; pip install reasoning-gym==0.1.25 \(make setup EXTRA=smol\)$"):
        check(compose_config("dataset=reasoning_gym", "dataset.task=chain_sum"))


def test_the_scorer_without_the_package_names_its_one_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.delitem(sys.modules, "expo.verifier.reasoning", raising=False)
    with pytest.raises(UserError, match=r"not installed; pip install reasoning-gym"):
        Verifier(compose_config("verifier=reasoning_gym").verifier)


@pytest.mark.slow
def test_every_task_of_the_package_gives_problems_that_its_scorer_accepts():
    pytest.importorskip("reasoning_gym")
    for task in ("chain_sum", "gsm_symbolic", "mini_sudoku", "word_sorting", "knights_knaves", "graph_color"):
        made, trained, _ = problems(f"dataset.task={task}", "dataset.limit=5", "dataset.eval_limit=3")
        assert len(trained) == 5, made.account()
    _, trained, _ = problems("dataset.task=chain_sum", "dataset.level_by=terms", "dataset.levels=[2,5]")
    assert all(len(p.question.partition(": ")[2].split()) == 2 * p.level for p in trained)
    assert problems("dataset.task=gsm_symbolic")[1][0].solution is not None


TEXTS = {"solve": "Q: {question}", "explain": "Q: {question} A: {answer}", "final": "So {answer}."}


def shown(number: int, explain: bool = False, **more) -> list[str]:
    _, tokenizer = small.random_tiny()
    prompts = Prompts(PromptsConf(**TEXTS, examples=number, **more))
    prompts.examples = [Problem("1", "one?", "1", "It is 1."), Problem("2", "two?", "2"), Problem("3", "three?", "3")]
    asked = [Problem("4", "four?", "4", earlier=(("system", "Be brief."),)), Problem("1", "one?", "1")]
    return [tokenizer.decode(i) for i in (prompts.explain_ids if explain else prompts.solve_ids)(tokenizer, asked)]


def test_worked_examples_stand_before_the_question_and_never_are_it():
    four, one = shown(2)
    turns = ["Be brief.", "Q: one?", "It is 1.", "Q: two?", "So 2.", "Q: four?"]
    places = [four.index(turn) for turn in turns]
    assert places == sorted(places)
    assert "three?" not in four
    assert one.count("one?") == 1
    assert "three?" in one
    assert "Q: one? A: 1" in shown(2, explain=True)[0]
    assert "one?" not in shown(0)[0]


def test_a_teacher_and_a_hint_see_the_worked_examples_of_the_question():
    _, tokenizer = small.random_tiny()
    more = {"solve_with_hint": "Q: {question} Hint: {hint}", "go_on": "Q: {question} Go on: {beginning}"}
    prompts, asked = Prompts(PromptsConf(**TEXTS, **more, examples=1)), Problem("4", "four?", "4")
    prompts.examples = [Problem("1", "one?", "1", "It is 1.")]
    for ids, last in (
        (prompts.privileged_ids(tokenizer, [asked])[0], "Q: four? A: 4"),
        (prompts.solve_with_hint_ids(tokenizer, asked, "add"), "Q: four? Hint: add"),
        (prompts.go_on_ids(tokenizer, asked, "It"), "Q: four? Go on: It"),
    ):
        text = tokenizer.decode(ids)
        assert text.index("Q: one?") < text.index("It is 1.") < text.index(last)


def test_examples_are_of_the_training_part_whatever_is_evaluated_and_however_many_are_trained_on(gym):
    found = []
    for limit in (10, 30):
        cfg = config("dataset.task=gsm_symbolic", f"dataset.limit={limit}", "prompts.examples=3")
        with Verifier(cfg.verifier) as verifier:
            made = reader(cfg, verifier)
            found.append([p.asked for p in made.examples(3)])
            assert not {*found[-1]} & {p.asked for p in made.evaluation()}
    assert found[0] == found[1]
    assert len(found[0]) == 4
    plain, three = (compose_config("dataset=math", f"prompts.examples={n}") for n in (0, 3))
    assert identity(plain) != identity(three)
    with pytest.raises(UserError, match=r"prompts.examples=3: the ladder"):
        check(compose_config("dataset=ladder", "prompts.examples=3"))


OWN_ROWS = """
def rows(split):
    if split == "broken":
        raise RuntimeError("no such split")
    yield {"question": "both?", "answer": "1"}
    for i in range(5):
        yield {"question": f"{split} {i}?", "answer": str(i)}
    yield "no row"
"""


def test_rows_of_a_function_are_read_as_those_of_a_file(tmp_path, monkeypatch):
    (tmp_path / "own_rows.py").write_text(OWN_ROWS)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = compose_config("dataset=function", "dataset.function=own_rows.rows")
    check(cfg)
    with Verifier(cfg.verifier) as verifier:
        made = reader(cfg, verifier)
        assert sorted(p.question for p in made.train()) == [f"train {i}?" for i in range(5)]  # `both?` is held out
        assert len(made.evaluation()) == 6
        assert made.sources[0].skipped == {"no dictionary": [7]}
        for function, split, told in (
            ("own_rows.rows", "broken", "raises RuntimeError"),
            ("own_rows.no", "test", "cannot be imported"),
        ):
            cfg.dataset.function, cfg.dataset.eval_split = function, split
            with pytest.raises(UserError, match=rf"dataset.function={function}: {told}"):
                reader(cfg, verifier).evaluation()


def test_a_function_may_bring_an_oracle_of_steps(tmp_path, monkeypatch):
    (tmp_path / "own_steps.py").write_text(
        OWN_ROWS + "rows.oracle = lambda question, completion: [step in completion for step in question.split()]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg = compose_config("dataset=function", "dataset.function=own_steps.rows", "positives.selection=oracle_sound")
    check(cfg)
    with Verifier(cfg.verifier) as verifier:
        problem = next(p for p in reader(cfg, verifier).train() if p.answer == "3")
    checked = [problem.oracle(problem.question, text) for text in ("train 3? 3", "train, so 3")]
    assert checked == [Steps(1.0, True), Steps(0.5, False)]
    for nothing in ([], True, [0.5]):  # no step that is wrong is no step that is right
        with pytest.raises(UserError, match="let it return a list with true or false for each step"):
            _steps(lambda question, completion, nothing=nothing: nothing, "q", "c")
    candidates = [Candidate([1], text="train, so 3"), Candidate([2], text="train 3? 3")]
    assert SELECTIONS["oracle_sound"](candidates, problem, None) == candidates[1:]
    row = {"problem": "a", "level": None, "subject": None, "verdict": "correct", "question": "q", "answer": "1"}
    found = [row | {"sound": True}, row | {"sound": False, "problem": "b"}]
    assert {name[0]: value for name, value in pass_values(found, "sound@1").items()} == {"a": 1.0, "b": 0.0}
    with pytest.raises(UserError, match="sound@1: no steps were checked"):
        pass_values([row], "sound@1")
    cfg.dataset.function = "own_rows.rows"
    with pytest.raises(UserError, match=r"positives.selection=oracle_sound: .* cannot check steps"):
        check(cfg)


def test_sums_of_the_real_model_are_right_in_every_step_and_splits_share_none():
    from experiments.real_lm import sums

    asked = {}
    for split in sums.SPLITS:
        made = list(sums.cold(split)) if split == "cold" else [*sums.sums(split), *sums.totals(split)]
        asked[split] = {row["question"].partition(":")[0] for row in made}
        for row in made:
            terms = [int(term) for term in row["question"].partition(":")[0].split("+")]
            *steps, box = row["solution"].splitlines()
            assert len(terms) == row["level"] == len(steps) + 1
            assert all(eval(left) == int(whole) for left, _, whole in (step.partition("=") for step in steps))
            wholes = [sum(terms[: i + 1]) for i in range(1, len(terms))]
            assert row["answer"] in (str(wholes[-1]), ",".join(map(str, wholes)))
            assert box == rf"\boxed{{{row['answer']}}}"
            assert sums.right_steps(row["question"], row["solution"]) == [True] * len(steps)
    assert sum(map(len, asked.values())) == len(set().union(*asked.values()))
    shown = [row["question"] for row in sums.cold("cold") if " It is " in row["question"]]
    assert 3 * len(shown) == sum(sums.COLD.values())
    bent = "48+27=75\n75+93=160\n\\boxed{168}"
    assert sums.right_steps("48+27+93: sum?", bent) == [True, False]
    assert sums.right_steps("48+27+93: sum?", "75+93=168\n\\boxed{168}") == [False, False]  # at its place


def test_steps_before_the_last_are_counted_apart_and_banks_of_other_tasks_are_none_of_sums(tmp_path, capsys):
    from experiments.real_lm import count

    def row(kind, problem, completion, right):
        asked = f"{problem}: sum?"
        return {"base": "b", "seed": 0, "level": 4, "kind": kind, "id": asked, "question": asked,
                "completion": completion, "right": right}  # fmt: skip

    right = "10+11=21\n21+12=33\n33+13=46\n\\boxed{46}"
    rows = [row(kind, "10+11+12+13", right, True) for kind in ("own", "self_explanation")]
    rows += [row("own", "10+11+12+14", right, False)]  # its last step is another's
    rows += [row("self_explanation", "10+11+12+14", "10+11=20\n20+12=32\n33+14=47\n\\boxed{47}", True)]
    count.of_steps(rows)
    before, each = capsys.readouterr().out.splitlines()[:2]
    assert "before the last: own 1.00, explained 0.50, difference -0.50" in before
    assert "each step: own 0.50, explained 0.50, difference 0.00" in each
    (tmp_path / "banks" / "templates-1").mkdir(parents=True)
    (tmp_path / "banks" / "templates-1" / "steps-1.parquet").touch()
    assert count.banked(tmp_path) == []


def test_settings_of_a_task_count_and_are_written_back_as_they_were():
    one, other = (ReasoningGymConf(name="r", task="sums", task_config={"low": n}) for n in (1, 2))
    assert isinstance(one, DatasetConf)
    cfg = compose_config("dataset=reasoning_gym", "dataset.task=sums")
    marks = set()
    for dataset in (one, other):
        cfg.dataset = dataset
        marks.add(identity(cfg))
    assert len(marks) == 2
