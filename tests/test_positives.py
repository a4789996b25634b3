import pickle
from dataclasses import replace

import pytest
import torch

from expo.config import Aggregation, Explainer, Filter, Gate, Schedule, ShownAnswer
from expo.data.problem import Problem
from expo.model.prompts import Prompts
from expo.rollout.engine import Completion, Sampling
from expo.step.experience import Candidate, Experience, Tools
from expo.step.positives.cache import ExplanationCache
from expo.step.positives.filters import early_answer, rejection
from expo.step.positives.properties import Scorer
from expo.step.positives.selection import Limits, select
from expo.step.positives.sources import ExpertParaphrase, ExpertSolution, NoPositives, SelfExplanation, STaR
from expo.verifier.answers import Verdict

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
        ("It is 3. We add.", False, CORRECT, "early_answer"),
    ],
)
def test_rejection(text, truncated, verdict, reason):
    assert rejection(text, "q", "3", truncated, verdict, ["the given answer"], list(Filter)) == reason
    assert rejection(text, "q", "3", truncated, verdict, ["the given answer"], []) is None


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
    assert not source(explainer=Explainer.current, shown_answer=ShownAnswer.wrong).joins_rollouts
    assert not ExpertSolution().joins_rollouts


def candidate(problem, ids, logp=None, lift=None, text=""):
    return Candidate(problem, ids, text, logp_given_q=logp, answer_lift=lift)


TWO = [Problem("a", "(1) 1 + 1 | 3", "( 3 )", subject="ladder"), Problem("b", "q", "2")]


def chosen(selection, candidates, **limits):
    return [c.ids for c in select(candidates, TWO, selection, Limits(**limits))]


def test_selections_by_hand():
    found = [
        candidate(0, [1], -0.9, 3.0),
        candidate(0, [2], -0.2, 1.0),
        candidate(0, [3], -0.5, 2.0),
        candidate(1, [4], -2.0, -1.0),
    ]
    assert chosen("first", found) == [[1], [4]]
    assert chosen("most_likely", found) == [[2], [4]]
    # ranks of the three by likelihood 0 2 1, by lift 2 0 1
    assert chosen("two_properties", found, rank_weight=0.9) == [[2], [4]]
    assert chosen("two_properties", found, rank_weight=0.1) == [[1], [4]]
    assert chosen("threshold", found, min_logp=-1.0, min_lift=1.5) == [[1], [3]]
    assert chosen("first", []) == []


def test_two_properties_does_not_depend_on_the_order_of_equals():
    """Equal ranks for equal numbers: the first of equals wins, whatever else there is."""
    found = [candidate(0, [1], -0.5, 1.0), candidate(0, [2], -0.5, 1.0)]
    assert chosen("two_properties", found) == [[1]]


def test_the_oracle_takes_sound_steps_only():
    right, wrong = "(1) 1 + 1 = 2 max 3 = 3 ; \\boxed{( 3 )}", "(1) 1 + 1 = 2 add 3 = 3 ; \\boxed{( 3 )}"
    assert chosen("oracle_sound", [candidate(0, [1], text=wrong), candidate(0, [2], text=right)]) == [[2]]
    assert chosen("oracle_sound", [candidate(0, [1], text=wrong)]) == []


class FakeVerifier:
    """Right where the text contains the answer."""

    def verify(self, texts, answers):
        return [CORRECT if answer in text else Verdict.INCORRECT for text, answer in zip(texts, answers, strict=True)]


class FakeTokenizer:
    """A token is a character."""

    eos_token_id = 0

    def batch_decode(self, rows, skip_special_tokens):
        return ["".join(map(chr, row)) for row in rows]

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(c) for c in text]}

    def apply_chat_template(self, chats, **options):
        return [[ord(c) for c in chat[-1]["content"]] for chat in chats]


PROMPTS = Prompts("{question}?", "{question}={answer}", paraphrase="{question}:{solution}")
TOOLS = Tools(PROMPTS, FakeTokenizer(), FakeVerifier(), Sampling(1.0, 1.0, 0, 40), 7, 200)


def completion(text, truncated=False):
    ids = [ord(c) for c in text]
    return Completion((1,), ids, [-0.5] * len(ids), truncated)


def experience(texts, verdicts, problems=None):
    """Two problems, two rollouts each."""
    problems = problems or [Problem("a", "1+1", "2", "expert 2"), Problem("b", "1+2", "3", None)]
    correct = torch.tensor([float(v is CORRECT) for v in verdicts]).view(2, 2)
    completions = [completion(text) for text in texts]
    return Experience(
        problems,
        [(1,), (2,)],
        5,
        completions=completions,
        texts=texts,
        verdicts=verdicts,
        correct=correct,
        rewards=correct,
    )


WRONG = Verdict.INCORRECT
MIXED = experience(["is 2", "\\boxed{9}", "\\boxed{7}", "\\boxed{8}"], [CORRECT, WRONG, WRONG, WRONG])


def shown(source, e=MIXED):
    return ["".join(map(chr, r.prompt)) for r in source.requests(e, [0, 1], TOOLS)]


def test_which_answer_is_shown():
    assert shown(source()) == ["1+1=2", "1+2=3"]
    assert shown(source(shown_answer=ShownAnswer.wrong)) == ["1+1=9", "1+2=7"]
    assert shown(source(shown_answer=ShownAnswer.shuffled)) == ["1+1=3", "1+2=2"]
    same = [Problem("a", "1+1", "2"), Problem("b", "3-1", "2")]
    equal = experience(MIXED.texts, MIXED.verdicts, same)
    assert shown(source(shown_answer=ShownAnswer.shuffled), equal) == []  # never the true answer
    none_wrong = experience(["is 2"] * 4, [CORRECT] * 4)
    assert shown(source(shown_answer=ShownAnswer.wrong), none_wrong) == []


def test_explanations_are_verified_against_the_answer_that_was_shown():
    control = source(shown_answer=ShownAnswer.wrong)
    found = control.candidates(MIXED, [0, 1], [completion("so 9"), completion("so 3")], TOOLS)
    assert [(c.problem, c.rejected) for c in found] == [(0, None), (1, "wrong")]


def test_explanations_have_noise_of_their_own_in_a_refilled_step():
    first, second = source(samples=2).requests(MIXED, [0, 1], TOOLS), []
    later = experience(MIXED.texts, MIXED.verdicts)
    later.first = 2
    second = source(samples=2).requests(later, [0, 1], TOOLS)
    assert len({r.key for r in [*first, *second]}) == 8


def test_star_takes_own_right_samples_and_explains_the_rest():
    star = STaR(explainer=Explainer.snapshot)
    assert shown(star) == ["1+2=3"]
    found = star.candidates(MIXED, [0, 1], [completion("so 3")], TOOLS)
    assert [(c.problem, c.text, c.rejected) for c in found] == [(0, "is 2", None), (1, "so 3", None)]
    assert found[0].ids == MIXED.completions[0].ids
    assert [c.text for c in star.choose(found, MIXED.problems)] == ["is 2", "so 3"]
    cut_off = experience(MIXED.texts, MIXED.verdicts)
    cut_off.completions[0] = completion("is 2", truncated=True)
    assert star.candidates(cut_off, [0, 1], [completion("so 3")], TOOLS)[0].rejected == "truncated"


def test_a_paraphrase_shows_the_solution_and_has_to_match_in_length():
    paraphrase = ExpertParaphrase(length_ratio=1.5)
    assert shown(paraphrase) == ["1+1:expert 2"]  # the other problem has none
    lengths = [len(c.ids) for c in MIXED.completions]
    mean = sum(lengths) / len(lengths)
    texts = {"fits": "2" * round(mean), "long": "2" * round(mean * 2), "short": "2"}
    reasons = {
        name: paraphrase.candidates(MIXED, [0], [completion(text)], TOOLS)[0].rejected for name, text in texts.items()
    }
    assert reasons == {"fits": None, "long": "length", "short": "length"}
    no_room = replace(TOOLS, longest_prompt=len("1+1:expert 2") - 1)
    assert paraphrase.requests(MIXED, [0, 1], no_room) == []
    assert [(c.problem, c.rejected) for c in paraphrase.candidates(MIXED, [0, 1], [], no_room)] == [(0, "long_prompt")]


def test_an_expert_solution_is_the_data_sets_own():
    found = ExpertSolution().candidates(MIXED, [0, 1], [], TOOLS)
    assert [(c.problem, c.text, c.rejected) for c in found] == [(0, "expert 2", None)]
    assert found[0].ids == [*map(ord, "expert 2"), 0]


@pytest.mark.parametrize(
    ("text", "early"),
    [
        ("The answer is 42. First we add.", True),
        ("First we add. So it is 42.", False),
        ("It is 42.", False),  # one sentence has to end in it
        ("We have 42.5 pens. So 42.", False),
        ("Take 142 of them. So 42.", False),
    ],
)
def test_early_answer(text, early):
    assert early_answer(text, "How many?", "42") is early
    assert not early_answer(text, "Are there 42?", "42")


class FakeScorer:
    def __init__(self):
        self.logps = {}

    def mean_logp(self, prompts, completions):
        return torch.tensor([self.logps[tuple(c)] for c in completions])


def test_cached_explanations_leave_by_age_and_by_likelihood():
    scorer = FakeScorer()
    scorer.logps = {(1,): -0.5, (2,): -0.5}
    cache, prompts = ExplanationCache(steps=10, max_drop=0.3), [(0,), (0,)]
    cache.keep([candidate(0, [1]), candidate(1, [2])], TWO, prompts, 3, scorer)
    resumed = ExplanationCache(steps=10, max_drop=0.3)
    resumed.load_state_dict(pickle.loads(pickle.dumps(cache.state_dict())))
    assert [(c.problem, c.ids) for c in resumed.find(TWO[::-1], prompts, 13, scorer)] == [(0, [2]), (1, [1])]
    assert resumed.find(TWO, prompts, 14, scorer) == []  # too old
    scorer.logps[(1,)] = -0.9
    assert [c.ids for c in cache.find(TWO, prompts, 4, scorer)] == [[2]]
    scorer.logps[(1,)] = -0.5
    assert [c.ids for c in cache.find(TWO, prompts, 4, scorer)] == [[2]]  # what has fallen once is gone


def test_the_cache_keeps_all_of_a_problems_explanations_without_what_was_measured():
    scorer = FakeScorer()
    scorer.logps = {(1,): -0.5, (2,): -0.5}
    cache = ExplanationCache(steps=10, max_drop=0.3)
    cache.keep([candidate(0, [1], -0.5, 3.0), candidate(0, [2], -0.5, 2.0)], TWO, [(0,), (0,)], 3, scorer)
    found = cache.find(TWO, [(0,), (0,)], 4, scorer)
    assert [(c.ids, c.answer_lift, c.logp_given_q) for c in found] == [([1], None, None), ([2], None, None)]
    scorer.logps[(1,)] = -1.5
    assert [c.ids for c in cache.find(TWO, [(0,), (0,)], 5, scorer)] == [[2]]


def test_a_cache_of_zero_steps_keeps_nothing():
    cache = ExplanationCache(0, 0.0)
    cache.keep([candidate(0, [1])], TWO, [(0,), (0,)], 3, None)
    assert cache.find(TWO, [(0,), (0,)], 3, None) == []


def test_reasoning_ends_before_the_final_statement(ladder):
    model, tokenizer, prompts = ladder
    scorer = Scorer(model, tokenizer, prompts, 4)
    text = r"(1) 3 + 4 = 7 max 2 = 7 ; \boxed{( 7 )}"
    ids = tokenizer(text)["input_ids"]
    end = ids.index(tokenizer.convert_tokens_to_ids(r"\boxed{("))
    assert scorer.reasoning([*ids, tokenizer.eos_token_id]) == ids[:end]
    assert scorer.reasoning(ids[:end]) == ids[:end]
    assert scorer.reasoning(ids[:3]) == ids[:3]


def test_answer_lift_is_the_difference_of_two_likelihoods(ladder):
    """log π(a*|q,c) by hand: the tokens of the final statement after the reasoning, under the model's own logits."""
    model, tokenizer, prompts = ladder
    question = tokenizer("(1) 3 + 4 | 2")["input_ids"]
    reasoning = tokenizer("(1) 3 + 4 = 7 max 2 = 7 ;")["input_ids"]
    answer = tokenizer(r"\boxed{( 7 )}")["input_ids"]
    logits = model(input_ids=torch.tensor([[*question, *reasoning, *answer]])).logits[0].log_softmax(-1)
    start = len(question) + len(reasoning)
    expected = sum(logits[start - 1 + i, token].item() for i, token in enumerate(answer))
    ours = Scorer(model, tokenizer, prompts, 4).answer_logp([question], [[*reasoning, *answer[:1]]], ["( 7 )"])
    assert ours.item() == pytest.approx(expected, abs=1e-4)


def test_explain_prompts_show_question_and_answer_and_solve_prompts_do_not():
    from expo.data.problem import Problem
    from expo.model.prompts import Prompts

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
    from expo.model.prompts import Prompts

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
