import pytest
import torch

from expo.positives.filters import rejection
from expo.positives.sources import Candidate, ExpertSolution, NoPositives, SelfExplanation
from expo.schema_learning import Aggregation, Explainer, Filter, Gate, Schedule, Selection
from expo.verifier import Verdict

CORRECT = Verdict.CORRECT


@pytest.mark.parametrize(
    ("text", "truncated", "verdict", "reason"),
    [
        ("We add.", False, CORRECT, None),
        ("We add.", True, CORRECT, "truncated"),
        ("We add.", False, Verdict.UNPARSEABLE, "unparseable"),
        ("We add.", False, Verdict.TIMEOUT, "unparseable"),
        ("We add.", False, Verdict.INCORRECT, "wrong"),
        ("Since The  given\nanswer is 3", False, CORRECT, "leak"),
    ],
)
def test_rejection(text, truncated, verdict, reason):
    assert rejection(text, truncated, verdict, ["the given answer"], list(Filter)) == reason
    assert rejection(text, truncated, verdict, ["the given answer"], []) is None


def source(**changes):
    return SelfExplanation(0.2, Schedule.constant, Aggregation.token_mean, **changes)


def test_schedules_by_hand():
    def weights(schedule):
        return [SelfExplanation(0.2, schedule).weight_at(done, all_wrong=0.25) for done in (0.0, 0.5, 1.0)]

    assert weights(Schedule.constant) == pytest.approx([0.2, 0.2, 0.2])
    assert weights(Schedule.linear) == pytest.approx([0.2, 0.1, 0.0])
    assert weights(Schedule.cosine) == pytest.approx([0.2, 0.1, 0.0])
    assert SelfExplanation(0.2, Schedule.cosine).weight_at(0.25, 1.0) == pytest.approx(0.2 * 0.8535534)
    assert weights(Schedule.all_wrong_fraction) == pytest.approx([0.05] * 3)


def test_gates():
    all_wrong = [True, False, True]
    assert source(gate=Gate.always).wanted(all_wrong) == [0, 1, 2]
    assert source(gate=Gate.all_wrong).wanted(all_wrong) == [0, 2]
    assert NoPositives().wanted(all_wrong) == []


def test_only_what_the_current_policy_always_explains_joins_the_rollouts():
    assert source(explainer=Explainer.current).joins_rollouts
    assert not source(explainer=Explainer.current, gate=Gate.all_wrong).joins_rollouts
    assert not source(explainer=Explainer.reference).joins_rollouts
    assert not ExpertSolution().joins_rollouts


def candidate(problem, ids, rejected=None):
    return Candidate(problem, ids, "", rejected, None)


def test_selection():
    candidates = [
        candidate(0, [1]),
        candidate(0, [2]),
        candidate(1, [3], "wrong"),
        candidate(1, [4]),
        candidate(2, [5], "leak"),
    ]

    def scorer(ids, problems):
        return torch.tensor([float(i[0]) for i in ids])

    assert [c.ids for c in source().choose(candidates, scorer)] == [[1], [4]]
    likely = source(selection=Selection.most_likely)
    assert [c.ids for c in likely.choose(candidates, scorer)] == [[2], [4]]
    assert likely.choose([candidate(0, [1], "wrong")], scorer) == []


def test_explain_prompts_show_question_and_answer_and_solve_prompts_do_not():
    from expo.data.problem import Problem
    from expo.prompts import Prompts

    prompts = Prompts(r"{question} = ?", r"{question} = \boxed{{answer}}")
    tricky = [Problem("1", "1 {answer} + 2", "3 {question}")]
    texts = []

    class Spy:
        def apply_chat_template(self, chats, **options):
            texts.extend(chat[-1]["content"] for chat in chats)
            return [[1]]

    spy = Spy()
    prompts.solve_ids(spy, tricky)
    prompts.explain_ids(spy, tricky)
    assert texts == ["1 {answer} + 2 = ?", r"1 {answer} + 2 = \boxed{3 {question}}"]


def test_the_shipped_math_prompt_shows_the_answer_wherever_it_is_named():
    from conftest import compose_config

    from expo.data.problem import Problem
    from expo.prompts import Prompts

    conf = compose_config("dataset=math").prompts
    seen = []

    class Spy:
        def apply_chat_template(self, chats, **options):
            seen.extend(chat[-1]["content"] for chat in chats)
            return [[1]]

    Prompts(conf.solve, conf.explain).explain_ids(Spy(), [Problem("1", "What is 1+1?", "2")])
    assert "answer is 2." in seen[0]
    assert r"\boxed{2}" in seen[0]
    assert "{answer}" not in seen[0]
