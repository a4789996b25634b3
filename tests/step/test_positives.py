import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import make_prompts

from expo.config import (
    ExpertConf,
    GRPOConf,
    NoPositivesConf,
    ParaphraseConf,
    PositiveLossConf,
    SelfExplanationConf,
    SFTConf,
    StarConf,
)
from expo.config.explaining import When, explanation_timing
from expo.ground.problem import Problem
from expo.ladder.problems import oracle
from expo.model.prompts import Prompts
from expo.model.small import random_tiny
from expo.rollout.engine import Completion, Sampling
from expo.step.experience import Batch, Candidate, Group, Tools
from expo.step.positives.cache import ExplanationCache
from expo.step.positives.filters import FILTERS, Written, early_answer, rejection
from expo.step.positives.properties import Scorer, with_lift
from expo.step.positives.selection import SELECTIONS
from expo.step.positives.sources import ExpertParaphrase, ExpertSolution, NoPositives, SelfExplanation, STaR
from expo.step.schedules import weight_at
from expo.verifier.answers import Verdict
from expo.verifier.extraction import extraction

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
        (r"\boxed{3} ; 1 + 2 = 3 ; \boxed{3}", False, CORRECT, "early_answer"),  # the ladder's steps are no sentences
        (r"$\boxed{3}$", False, CORRECT, "early_answer"),  # and nothing else
        (r"1 + 2 = 3 ; \boxed{3}", False, CORRECT, None),
    ],
)
def test_rejection(text, truncated, verdict, reason):
    written = Written(text, "q", "3", truncated, verdict, ["The given  Answer"], r"\boxed{")
    assert rejection(written, list(FILTERS)) == reason
    assert rejection(written, []) is None


def source(**changes):
    return SelfExplanation(SelfExplanationConf(weight=0.2, **changes))


def test_schedules_by_hand():
    def weights(schedule):
        return [weight_at(PositiveLossConf(weight=0.2, schedule=schedule), done, 0.25) for done in (0.0, 0.5, 1.0)]

    assert weights("constant") == pytest.approx([0.2, 0.2, 0.2])
    assert weights("linear") == pytest.approx([0.2, 0.1, 0.0])
    assert weights("cosine") == pytest.approx([0.2, 0.1, 0.0])
    cosine = PositiveLossConf(weight=0.2, schedule="cosine")
    assert weight_at(cosine, 0.25, 1.0) == pytest.approx(0.2 * 0.8535534)
    assert weights("all_wrong_fraction") == pytest.approx([0.05] * 3)


def test_gates():
    all_wrong = [True, False, True]
    assert [source(gate="always").gets_positive(wrong) for wrong in all_wrong] == [True] * 3
    assert [source(gate="all_wrong").gets_positive(wrong) for wrong in all_wrong] == all_wrong
    assert [NoPositives(NoPositivesConf()).gets_positive(wrong) for wrong in all_wrong] == [False] * 3


def test_when_explanations_are_asked_for():
    def when(group_size=8, restart_every=None, kind=SelfExplanationConf, **changes):
        algorithm = SFTConf(restart_every=4, group_size=4) if restart_every else GRPOConf(group_size=group_size)
        return explanation_timing(kind(**changes), algorithm)

    assert when(explainer="current") is When.WITH_ROLLOUTS
    assert when(explainer="current", group_size=0) is When.WITH_ROLLOUTS
    assert when(explainer="current", gate="all_wrong") is When.AS_GROUPS_END
    assert when(explainer="current", kind=StarConf) is When.AS_GROUPS_END
    assert when(explainer="current", kind=ParaphraseConf) is When.AS_GROUPS_END
    assert when(explainer="snapshot", kind=StarConf, restart_every=4) is When.AS_GROUPS_END
    assert when(explainer="snapshot", restart_every=4) is When.AS_GROUPS_END  # as in 0.1, to the last digit
    assert when(explainer="current", gate="all_wrong", group_size=0) is When.AFTERWARDS
    assert when(explainer="current", shown_answer="wrong") is When.AFTERWARDS  # hints come first
    assert when(explainer="reference") is When.AFTERWARDS  # other weights write
    assert when(explainer="snapshot") is When.AFTERWARDS
    assert when(kind=ExpertConf) is When.AFTERWARDS


def candidate(ids, logp=None, lift=None, text=""):
    return Candidate(ids, text, logp_given_q=logp, answer_lift=lift)


TWO = [Problem("a", "1", "1"), Problem("b", "q", "2")]
LADDER = Problem("a", "(1) 1 + 1 | 3", "( 3 )", subject="ladder", oracle=oracle)


def chosen(selection, candidates, **limits):
    return [c.ids for c in SELECTIONS[selection](candidates, LADDER, SelfExplanationConf(**limits))]


def test_selections_by_hand():
    found = [candidate([1], -0.9, 3.0), candidate([2], -0.2, 1.0), candidate([3], -0.5, 2.0)]
    assert chosen("first", found) == [[1]]
    assert chosen("most_likely", found) == [[2]]
    # ranks of the three by likelihood 0 2 1, by lift 2 0 1
    assert chosen("two_properties", found, rank_weight=0.9) == [[2]]
    assert chosen("two_properties", found, rank_weight=0.1) == [[1]]
    assert chosen("threshold", found, min_logp=-1.0, min_lift=1.5) == [[1], [3]]
    assert chosen("threshold", found, min_logp=-1.0, min_lift=3.5) == []


def test_two_properties_does_not_depend_on_the_order_of_equals():
    """Equal ranks for equal numbers: the first of equals wins, whatever else there is."""
    found = [candidate([1], -0.5, 1.0), candidate([2], -0.5, 1.0)]
    assert chosen("two_properties", found) == [[1]]


def test_the_oracle_takes_sound_steps_only():
    right, wrong = "(1) 1 + 1 = 2 max 3 = 3 ; \\boxed{( 3 )}", "(1) 1 + 1 = 2 add 3 = 3 ; \\boxed{( 3 )}"
    assert chosen("oracle_sound", [candidate([1], text=wrong), candidate([2], text=right)]) == [[2]]
    assert chosen("oracle_sound", [candidate([1], text=wrong)]) == []


class FakeVerifier:
    """Right where the text contains the answer."""

    extraction = extraction("boxed")

    def verify(self, texts, problems):
        return [CORRECT if p.answer in text else Verdict.INCORRECT for text, p in zip(texts, problems, strict=True)]


class FakeTokenizer:
    """A token is a character."""

    eos_token_id = 0
    all_special_tokens = all_special_ids = ()

    def get_added_vocab(self):
        return {}

    def batch_decode(self, rows, skip_special_tokens):
        return ["".join(map(chr, row)) for row in rows]

    def __call__(self, text, add_special_tokens, split_special_tokens=False):
        return {"input_ids": [ord(c) for c in text] if isinstance(text, str) else [[ord(c) for c in t] for t in text]}

    def apply_chat_template(self, chat, tokenize, **options):
        return chat[-1]["content"]


PROMPTS = make_prompts("{question}?", "{question}={answer}", paraphrase="{question}:{solution}")
TOOLS = Tools(PROMPTS, FakeTokenizer(), FakeVerifier(), Sampling(1.0, 1.0, 0, 40), 7, 200)


def completion(text, problem=0, truncated=False):
    ids = [ord(c) for c in text]
    return Completion((1,), ids, [-0.5] * len(ids), truncated, problem)


def step_of(texts, verdicts, problems=None, offset=0):
    """The batch and the groups of a step of two problems, two rollouts each."""
    problems = problems or [Problem("a", "1+1", "2", "expert 2"), Problem("b", "1+2", "3", None)]
    rows = [(completion(text), text, verdict, 0.0) for text, verdict in zip(texts, verdicts, strict=True)]
    lists = [[list(column) for column in zip(*rows[2 * i : 2 * i + 2], strict=True)] for i in range(2)]
    groups = {i: Group(problems[i], (i + 1,), *lists[i]) for i in range(2)}
    return Batch(problems, [(1,), (2,)], 5, offset), groups


def told(found):
    """Problem, text and rejection of each candidate."""
    return [(i, c.text, c.rejected) for i, some in found.items() for c in some]


WRONG = Verdict.INCORRECT
TEXTS, VERDICTS = ["is 2", "\\boxed{9}", "\\boxed{7}", "\\boxed{8}"], [CORRECT, WRONG, WRONG, WRONG]
MIXED = step_of(TEXTS, VERDICTS)


def shown(source, step=MIXED):
    return ["".join(map(chr, r.prompt)) for r in source.requests(*step, [0, 1], TOOLS)]


def test_which_answer_is_shown():
    assert shown(source()) == ["1+1=2", "1+2=3"]
    assert shown(source(shown_answer="wrong")) == ["1+1=9", "1+2=7"]
    assert shown(source(shown_answer="shuffled")) == ["1+1=3", "1+2=2"]
    same = [Problem("a", "1+1", "2"), Problem("b", "3-1", "2")]
    equal = step_of(TEXTS, VERDICTS, same)
    assert shown(source(shown_answer="shuffled"), equal) == []  # never the true answer
    alike = step_of(TEXTS, VERDICTS, [Problem("a", "1/2", "0.5"), Problem("b", "2/4", r"\frac{1}{2}")])
    assert shown(source(shown_answer="shuffled"), alike) == []
    none_wrong = step_of(["is 2"] * 4, [CORRECT] * 4)
    assert shown(source(shown_answer="wrong"), none_wrong) == []


def test_a_wrong_answer_that_has_no_room_in_the_prompt_is_not_shown():
    shows_wrong, texts = source(shown_answer="wrong"), ["is 2", f"\\boxed{{{'9' * 40}}}", "\\boxed{7}", "is 3"]
    step, room = step_of(texts, [CORRECT, WRONG, WRONG, CORRECT]), replace(TOOLS, longest_prompt=20)
    assert [r.problem for r in shows_wrong.requests(*step, [0, 1], room)] == [1]
    found = shows_wrong.candidates(*step, [0, 1], [completion("so 7", 1)], room)
    assert told(found) == [(0, "", "long_prompt"), (1, "so 7", None)]


def test_explanations_are_verified_against_the_answer_that_was_shown():
    control = source(shown_answer="wrong")
    found = control.candidates(*MIXED, [0, 1], [completion("so 9", 0), completion("so 3", 1)], TOOLS)
    assert told(found) == [(0, "so 9", None), (1, "so 3", "wrong")]


def test_explanations_have_noise_of_their_own_in_a_refilled_step():
    first = source(samples=2).requests(*MIXED, [0, 1], TOOLS)
    second = source(samples=2).requests(*step_of(TEXTS, VERDICTS, offset=2), [0, 1], TOOLS)
    assert len({r.key for r in [*first, *second]}) == 8


def test_star_takes_own_right_samples_and_explains_the_rest():
    star = STaR(StarConf(explainer="snapshot"))
    assert shown(star) == ["1+2=3"]
    found = star.candidates(*MIXED, [0, 1], [completion("so 3", 1)], TOOLS)
    assert told(found) == [(0, "is 2", None), (1, "so 3", None)]
    batch, groups = MIXED
    assert found[0][0].ids == groups[0].completions[0].ids
    assert [star.choose(found[i], batch.problems[i])[0].text for i in range(2)] == ["is 2", "so 3"]
    cut_off = replace(groups[0], completions=[completion("is 2", truncated=True), completion("")])
    found = star.candidates(batch, groups | {0: cut_off}, [0, 1], [completion("so 3", 1)], TOOLS)
    assert found[0][0].rejected == "truncated"


def test_a_paraphrase_shows_the_solution_and_has_to_match_in_length():
    paraphrase = ExpertParaphrase(ParaphraseConf(length_ratio=1.5))
    assert shown(paraphrase) == ["1+1:expert 2"]  # the other problem has none
    lengths = [len(c.ids) for c in MIXED[1][0].completions]  # of the problem's own rollouts
    mean = sum(lengths) / len(lengths)
    texts = {"fits": "2" * round(mean), "long": "2" * round(mean * 2), "short": "2"}
    reasons = {
        name: paraphrase.candidates(*MIXED, [0], [completion(text)], TOOLS)[0][0].rejected
        for name, text in texts.items()
    }
    assert reasons == {"fits": None, "long": "length", "short": "length"}
    no_room = replace(TOOLS, longest_prompt=len("1+1:expert 2") - 1)
    assert paraphrase.requests(*MIXED, [0, 1], no_room) == []
    assert told(paraphrase.candidates(*MIXED, [0, 1], [], no_room)) == [(0, "", "long_prompt")]


def test_an_expert_solution_is_the_data_sets_own():
    found = ExpertSolution(ExpertConf()).candidates(*MIXED, [0, 1], [], TOOLS)
    assert told(found) == [(0, "expert 2", None)]
    assert found[0][0].ids == [*map(ord, "expert 2"), 0]


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


def at(step, problems=TWO):
    return Batch(problems, [(0,), (0,)], step)


def test_cached_explanations_leave_by_age_and_by_likelihood():
    scorer = FakeScorer()
    scorer.logps = {(1,): -0.5, (2,): -0.5}
    cache = ExplanationCache(steps=10, max_drop=0.3)
    cache.keep({0: [candidate([1])], 1: [candidate([2])]}, at(3), scorer)
    resumed = ExplanationCache(steps=10, max_drop=0.3)
    resumed.load_state_dict(json.loads(json.dumps(cache.state_dict())))  # plain data: a checkpoint runs no code
    assert resumed.find(at(13, TWO[::-1]), scorer) == {0: [candidate([2])], 1: [candidate([1])]}
    assert resumed.find(at(14), scorer) == {}  # too old
    scorer.logps[(1,)] = -0.9
    assert cache.find(at(4), scorer) == {1: [candidate([2])]}
    scorer.logps[(1,)] = -0.5
    assert cache.find(at(4), scorer) == {1: [candidate([2])]}  # what has fallen once is gone
    old = {"a": [(3, -0.5, {"problem": 0, "ids": [1], "text": ""})]}  # of 0.3's checkpoints
    cache.load_state_dict(old)
    assert cache.find(at(4), scorer) == {0: [candidate([1])]}


def test_the_cache_keeps_all_of_a_problems_explanations_without_what_was_measured():
    scorer = FakeScorer()
    scorer.logps = {(1,): -0.5, (2,): -0.5}
    cache = ExplanationCache(steps=10, max_drop=0.3)
    cache.keep({0: [candidate([1], -0.5, 3.0), candidate([2], -0.5, 2.0)]}, at(3), scorer)
    assert cache.find(at(4), scorer) == {0: [candidate([1]), candidate([2])]}
    scorer.logps[(1,)] = -1.5
    assert cache.find(at(5), scorer) == {0: [candidate([2])]}


def test_of_a_problem_that_a_step_meets_twice_the_cache_keeps_one_choice_of_explanations():
    """Both would be learned from at later steps, where it stands once: with twice the weight of the others."""
    scorer = FakeScorer()
    scorer.logps = {(1,): -0.5, (2,): -0.5}
    cache = ExplanationCache(steps=10, max_drop=0.3)
    cache.keep({0: [candidate([1])], 1: [candidate([2])]}, at(3, [TWO[0], TWO[0]]), scorer)
    assert cache.find(at(4), scorer) == {0: [candidate([2])]}


def test_a_cache_of_zero_steps_keeps_nothing():
    cache = ExplanationCache(0, 0.0)
    cache.keep({0: [candidate([1])]}, at(3), None)
    assert cache.find(at(3), None) == {}


def test_reasoning_ends_before_the_final_statement(ladder):
    model, tokenizer, prompts = ladder
    scorer = Scorer(model, tokenizer, prompts, 4)
    text = r"(1) 3 + 4 = 7 max 2 = 7 ; \boxed{( 7 )}"
    ids = tokenizer(text)["input_ids"]
    end = ids.index(tokenizer.convert_tokens_to_ids(r"\boxed{("))
    assert scorer.reasoning([*ids, tokenizer.eos_token_id]) == (ids[:end], " ")
    assert scorer.reasoning(ids[:end]) == (ids[:end], " ")
    assert scorer.reasoning([*ids[:3], tokenizer.eos_token_id]) == (ids[:3], " ")
    assert scorer.reasoning(ids[:3]) == (ids[:3], " ")  # cut off, and no step is whole
    assert scorer.reasoning([*ids[:end], *ids[:3]]) == (ids[:end], " ")  # cut off within the second step


@pytest.mark.parametrize("stated", ["Answer: 3", "Answer:3", "Answer:\n3", "**Answer:** 3"])
def test_a_final_line_is_no_reasoning_however_it_is_written(stated):
    model, tokenizer = random_tiny()
    scorer = Scorer(model, tokenizer, make_prompts("{question}", "{question} {answer}", final="Answer: {answer}"), 4)
    found, _ = scorer.reasoning(tokenizer(f"It is three.\n{stated}", add_special_tokens=False)["input_ids"])
    assert tokenizer.decode(found).rstrip("*\n") == "It is three."


@pytest.mark.parametrize(
    ("completion", "kept", "joined"),
    [
        (r"So it is \boxed{3}.", "So it is", " "),  # the space belongs to the statement's first token
        (r"So it is $\boxed{3}$.", "So it is", " $"),
        ("So:\n\\boxed{3}", "So:\n", ""),
        (r"First \boxed{1}. Then \boxed{3}", r"First \boxed{1}. Then", " "),
        ("It is three.", "It is three.", " "),
        ("It is three. And the", "It is three.", " "),
        ("It is 3.5 and the", "It is 3.5 and the", " "),
    ],
)
def test_the_final_statement_is_written_as_the_model_would_write_it(completion, kept, joined):
    model, tokenizer = random_tiny()
    scorer = Scorer(model, tokenizer, make_prompts("{question}", "{question} {answer}"), 4)
    ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
    if completion.endswith((".", "}")):
        ids = [*ids, tokenizer.eos_token_id]
    found, before = scorer.reasoning(ids)
    assert (tokenizer.decode(found), before) == (kept, joined)
    if "boxed{3}" in completion:  # the very tokens that the completion has
        stated = scorer.prompts.answer_ids(tokenizer, "3", before)
        assert ids[: len(found) + len(stated) - 1] == [*found, *stated[:-1]]


def test_one_odd_rollout_does_not_decide_the_lift():
    completions = [Completion((1,), [i], [0.0], False) for i in (10, 11, 12, 13, 14)]
    groups = {0: Group(Problem("p", "q", "a"), (1,), completions, [], [], [])}
    likely = {
        10: -500.0,
        11: -3.0,
        12: -2.0,
        13: -3.0,
        14: 99.0,
        20: -1.0,
    }  # the first is odd, the fifth is not looked at
    scorer = SimpleNamespace(
        answer_logp=lambda prompts, completions, answers: torch.tensor([likely[c[0]] for c in completions])
    )
    [found] = with_lift(scorer, groups, {0: [candidate([20])]})[0]
    assert found.answer_lift == 2.0
    hinted = replace(groups[0], completions=completions[::-1], before_hint=groups[0])
    assert with_lift(scorer, {0: hinted}, {0: [candidate([20])]})[0][0].answer_lift == 2.0  # of those without the hint


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
    prompts = make_prompts(r"{question} = ?", r"{question} = \boxed{{answer}}")
    tricky = [Problem("1", "1 {answer} + 2", "3 {question}")]
    texts = []

    class Spy(FakeTokenizer):
        def apply_chat_template(self, chat, **options):
            texts.append(chat[-1]["content"])
            return texts[-1]

    spy = Spy()
    prompts.solve_ids(spy, tricky)
    prompts.explain_ids(spy, tricky)
    assert texts == ["1 {answer} + 2 = ?", r"1 {answer} + 2 = \boxed{3 {question}}"]


def test_the_shipped_math_prompt_shows_the_answer_wherever_it_is_named():
    from conftest import compose_config

    conf = compose_config("dataset=math").prompts
    seen = []

    class Spy(FakeTokenizer):
        def apply_chat_template(self, chat, **options):
            seen.append(chat[-1]["content"])
            return seen[-1]

    Prompts(conf).explain_ids(Spy(), [Problem("1", "What is 1+1?", "2")])
    assert "answer is 2." in seen[0]
    assert r"\boxed{2}" in seen[0]
    assert "{answer}" not in seen[0]
