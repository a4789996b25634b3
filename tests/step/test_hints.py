from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import compose_config, make_prompts

from expo.algorithms.base import StepSums
from expo.config import NoHintsConf, NoPositivesConf, PrefixConf, RewardConf, SelfHintConf, UserError, check
from expo.config.explaining import When
from expo.ground.problem import Problem
from expo.model.policy import PLAIN
from expo.model.small import random_tiny
from expo.rollout.engine import Completion, Sampling
from expo.step.experience import Batch, Experience, Group, Timer, Tools
from expo.step.hints import ExpertPrefix, NoHints, SelfHint, gives_away
from expo.step.metrics import step_metrics
from expo.step.pipeline import Engines, Pipeline
from expo.step.positives.sources import NoPositives
from expo.step.rewards import Correct
from expo.verifier.answers import Verdict

QUESTION = "(1) 3 + 4 | 2"
PROBLEM = Problem("a", QUESTION, "( 7 )", r"(1) > 7 ; \boxed{( 7 )}")


def batch_of(tokenizer, correct):
    ids = tuple(tokenizer(QUESTION)["input_ids"])
    return Batch([PROBLEM] * len(correct), [ids] * len(correct), 3)


def group(correct, ids=(5,), prompt=()):
    verdicts = [Verdict.CORRECT if right else Verdict.INCORRECT for right in correct]
    completions = [Completion(prompt, list(ids), [0.0], False) for _ in correct]
    return Group(PROBLEM, prompt, completions, [""] * len(correct), verdicts, list(correct))


@pytest.fixture
def tools(ladder):
    _, tokenizer, _ = ladder
    prompts = make_prompts("{question}", "{question} answer {answer}")
    return Tools(prompts, tokenizer, None, Sampling(1.0, 1.0, 0, 40), 0, 200)


def test_only_all_wrong_groups_get_a_hint():
    groups = {0: group([0.0, 1.0]), 1: group([0.0, 0.0])}
    assert ExpertPrefix(PrefixConf()).wanted(groups) == [1]
    assert NoHints(NoHintsConf()).wanted(groups) == []


def test_an_expert_prefix_follows_the_prompt_and_never_reaches_the_final_statement(tools):
    e = batch_of(tools.tokenizer, [[0.0, 0.0]])
    solution = tools.tokenizer(PROBLEM.solution)["input_ids"]
    whole = ExpertPrefix(PrefixConf(share_low=1.0, share_high=1.0)).hinted(e, [0], [], tools)[0]
    assert whole == [*e.prompts[0], *solution[:4]]  # "(1) > 7 ;"
    half = ExpertPrefix(PrefixConf(share_low=0.5, share_high=0.5)).hinted(e, [0], [], tools)[0]
    assert half == whole[:-2]


def test_an_expert_prefix_begins_as_the_template_begins_an_answer(tools):
    _, tokenizer = random_tiny()
    tokenizer.chat_template = PLAIN
    e = replace(batch_of(tokenizer, [[0.0]]), problems=[replace(PROBLEM, solution="Therefore it is two.")])
    hint = ExpertPrefix(PrefixConf(share_low=1.0, share_high=1.0)).hinted(
        e, [0], [], replace(tools, tokenizer=tokenizer)
    )
    whole = tools.prompts.solution_ids(tokenizer, "Therefore it is two.")
    assert hint[0] == [*e.prompts[0], *whole[:-1]]
    assert tokenizer.decode(whole).startswith(" Therefore")


@pytest.mark.parametrize(("room", "hinted"), [(4, [0]), (3, [])])
def test_a_prompt_with_a_hint_that_an_engine_has_no_room_for_is_not_used(tools, caplog, room, hinted):
    e = batch_of(tools.tokenizer, [[0.0, 0.0]])
    groups = {0: group([0.0, 0.0], prompt=e.prompts[0])}
    verifier = SimpleNamespace(score=lambda texts, answers: [(Verdict.INCORRECT, 0.0)] * len(texts))
    tools = replace(tools, verifier=verifier, longest_prompt=len(e.prompts[0]) + room)  # "(1) > 7 ;" has 4 tokens
    engine = SimpleNamespace(
        generate=lambda asked, sampling: [Completion(r.prompt, [6], [0.0], False, r.problem) for r in asked]
    )
    hints = ExpertPrefix(PrefixConf(share_low=1.0, share_high=1.0))
    source, reward = NoPositives(NoPositivesConf()), Correct(RewardConf())
    engines = Engines(engine, engine, engine, engine)
    found, tokens = Pipeline(engines, source, hints, reward, None, tools, When.AFTERWARDS).hint(e, groups)
    assert [i for i, g in found.items() if g.before_hint] == hinted
    assert {tuple(c.ids) for c in found[0].completions} == ({(6,)} if hinted else {(5,)})
    assert tokens == 2 * len(hinted)
    assert ("1 prompts with a hint not used" in caplog.text) is not bool(hinted)


def test_a_self_made_beginning_is_cut_the_same_way(tools):
    e = batch_of(tools.tokenizer, [[0.0, 0.0]])
    ids = tools.tokenizer(PROBLEM.solution)["input_ids"]
    hint = SelfHint(SelfHintConf(share_low=1.0, share_high=1.0))
    asked = hint.requests(e, [0], tools)
    assert "answer" in tools.tokenizer.decode(list(asked[0].prompt))
    hinted = hint.hinted(e, [0], [Completion(asked[0].prompt, ids, [0.0] * len(ids), False)], tools)
    assert hinted[0] == [*e.prompts[0], *ids[:4]]


def test_a_beginning_that_states_the_answer_first_is_no_hint(tools):
    """In the world `leaky`, some explanations do."""
    e = batch_of(tools.tokenizer, [[0.0, 0.0]] * 2)
    chain = tools.tokenizer(PROBLEM.solution)["input_ids"]
    ids = [*chain[4:], *tools.tokenizer(";")["input_ids"], *chain]
    hint = SelfHint(SelfHintConf(share_low=0.8, share_high=0.8))
    written = [Completion((1,), own, [], False, i) for i, own in enumerate((ids, chain))]
    assert list(hint.hinted(e, [0, 1], written, tools)) == [1]


def test_a_hint_in_words_that_gives_the_answer_away_is_not_used(tools):
    prompts = make_prompts(
        "{question}", "{question} {answer}", hint="{question} {answer}", solve_with_hint="{question} {hint}"
    )
    tools = Tools(prompts, tools.tokenizer, None, tools.sampling, 0, 200)
    e = batch_of(tools.tokenizer, [[0.0, 0.0]] * 3)
    written = [tools.tokenizer(text)["input_ids"] for text in ("max ( 7 ) ;", "max ;", "max ;")]
    completions = [Completion((1,), ids, [0.0] * len(ids), i == 2, i) for i, ids in enumerate(written)]
    hinted = SelfHint(SelfHintConf()).hinted(e, [0, 1, 2], completions, tools)
    assert list(hinted) == [1]  # the first leaks, the last is cut off
    assert "max" in tools.tokenizer.decode(hinted[1])


def test_gives_away():
    assert gives_away("It is 12.", Problem("a", "How many?", "12"))
    assert not gives_away("Add them.", Problem("a", "How many?", "12"))
    assert not gives_away("Add 12.", Problem("a", "What is 12 + 0?", "12"))
    assert gives_away("The answer is 2.", Problem("a", "In 2024, how many?", "2"))
    assert not gives_away("Use the 12th root.", Problem("a", "How many?", "2"))


def test_the_share_shown_and_the_hint_draw_from_different_noise(tools):
    from expo.rollout.noise import uniforms

    e = batch_of(tools.tokenizer, [[0.0, 0.0]] * 40)
    hint = SelfHint(SelfHintConf(share_low=0.0, share_high=1.0))
    ids = list(range(10, 50))
    noise = [row[0] for row in uniforms([r.key for r in hint.requests(e, range(40), tools)], 1)]
    shown = [len(hint.beginning(ids, e, i, tools)) / 40 for i in range(40)]
    assert abs(torch.corrcoef(torch.tensor([noise, shown]))[0, 1]) < 0.5


WORDS = {
    "hint": "{question} answer {answer}",
    "solve_with_hint": "{question} : {hint}",
    "go_on": "{question} : {beginning} :",
    "hint_from_solution": "{question} > {solution}",
    "abstract": "{question} ; {explanation}",
}


def with_words(tools):
    return replace(tools, prompts=make_prompts("{question}", "{question} answer {answer} ;", **WORDS))


def test_an_expert_prefix_can_stand_in_the_prompt_with_the_request_to_go_on(tools):
    e = batch_of(tools.tokenizer, [[0.0, 0.0]])
    prefix = ExpertPrefix(PrefixConf(share_low=1.0, share_high=1.0, instructed=True))
    instructed = prefix.hinted(e, [0], [], with_words(tools))[0]
    assert "(1) > 7 ; :" in tools.tokenizer.decode(instructed)
    assert r"\boxed" not in tools.tokenizer.decode(instructed)
    plain = replace(tools, prompts=make_prompts("{question}", "{question} {answer}", go_on=None))
    solution = tools.tokenizer(PROBLEM.solution)["input_ids"]
    assert prefix.hinted(e, [0], [], plain)[0] == [*e.prompts[0], *solution[:4]]  # the ladder's


def test_a_hint_in_two_stages_is_made_of_the_explanation(tools):
    """NuRL: the answer is explained, and the explanation abstracted; the second stage draws from noise of its own."""
    e, tools = batch_of(tools.tokenizer, [[0.0, 0.0]] * 2), with_words(tools)
    hint = SelfHint(SelfHintConf(stages=2))
    asked = hint.requests(e, [0, 1], tools)
    assert tools.tokenizer.decode(list(asked[0].prompt)).count("answer") == 1
    written = [Completion(r.prompt, tools.tokenizer("max ;")["input_ids"], [], False, r.problem) for r in asked]
    further = hint.second_requests(e, written, tools)
    assert [r.problem for r in further] == [0, 1]
    assert "; max ;" in tools.tokenizer.decode(list(further[0].prompt))
    assert "answer" not in tools.tokenizer.decode(list(further[0].prompt))
    assert asked[0].key != further[0].key
    assert SelfHint(SelfHintConf()).second_requests(e, written, tools) is None
    assert (
        hint.second_requests(e, written, replace(tools, longest_prompt=5)) == []
    )  # and not the explanations themselves


def test_a_hint_can_be_made_of_the_experts_solution_and_one_without_room_is_not_asked_for(tools, caplog):
    e, tools = batch_of(tools.tokenizer, [[0.0, 0.0]]), with_words(tools)
    hint = SelfHint(SelfHintConf(sees="solution"))
    asked = hint.requests(e, [0], tools)
    assert PROBLEM.solution in tools.tokenizer.decode(list(asked[0].prompt))
    assert hint.requests(e, [0], replace(tools, longest_prompt=5)) == []
    assert "1 hints not asked for: over 5 tokens" in caplog.text
    assert hint.hinted(e, [0], [], tools) == {}
    bare = replace(e, problems=[replace(PROBLEM, solution=None)])  # a row without one
    assert hint.requests(bare, [0], tools) == []


def pipeline_of(tools, conf, right):
    """A pipeline whose policy writes "max" whatever it is asked, right or not, and finds it likelier behind a longer
    prompt."""
    verifier = SimpleNamespace(score=lambda texts, answers: [(right, 0.0)] * len(texts))
    engine = SimpleNamespace(
        generate=lambda asked, sampling: [Completion(r.prompt, [6], [0.0], False, r.problem) for r in asked]
    )
    scorer = SimpleNamespace(mean_logp=lambda prompts, ids: torch.tensor([float(len(p)) for p in prompts]))
    source, reward = NoPositives(NoPositivesConf()), Correct(RewardConf())
    return Pipeline(
        Engines(engine, engine, engine, engine),
        source,
        SelfHint(conf),
        reward,
        scorer,
        replace(tools, verifier=verifier),
        When.AFTERWARDS,
    )


def test_reliance_is_what_a_hint_in_words_adds_to_the_likelihood_of_right_rollouts(tools):
    e = replace(batch_of(tools.tokenizer, [[0.0, 0.0]]), step=10)
    groups = {0: group([0.0, 0.0], prompt=e.prompts[0])}
    pipeline = pipeline_of(with_words(tools), SelfHintConf(keep=0), Verdict.CORRECT)
    made, _ = pipeline.hint(e, groups)
    assert pipeline.reliance(e, made) == len(made[0].completions[0].prompt) - len(e.prompts[0]) > 0
    assert pipeline.reliance(replace(e, step=3), made) is None
    assert pipeline.reliance(e, groups) is None  # no hint was given
    wrong = pipeline_of(with_words(tools), SelfHintConf(keep=0), Verdict.INCORRECT)
    assert wrong.reliance(e, wrong.hint(e, groups)[0]) is None
    beginning = pipeline_of(tools, SelfHintConf(keep=0, share_low=1.0, share_high=1.0), Verdict.CORRECT)
    assert beginning.reliance(e, beginning.hint(e, groups)[0]) is None  # the ladder's, which begins the completion


@pytest.mark.parametrize("gradient", ["hint", "question"])
def test_the_gradient_uses_the_prompt_that_the_key_names(tools, gradient):
    e = batch_of(tools.tokenizer, [[0.0, 0.0]])
    groups = {0: group([0.0, 0.0], prompt=e.prompts[0])}
    pipeline = pipeline_of(with_words(tools), SelfHintConf(keep=0, gradient=gradient), Verdict.CORRECT)
    hinted = pipeline.hint(e, groups)[0]
    made = pipeline.without_hints(hinted)
    expected = hinted[0].completions[0].prompt if gradient == "hint" else e.prompts[0]
    assert {c.prompt for c in made[0].completions} == {expected}
    assert made[0].before_hint is not None


def test_the_first_rollouts_of_a_hinted_group_are_not_counted_as_hinted():
    judged = [Verdict.INCORRECT, Verdict.CORRECT]
    plain = Group(PROBLEM, (1,), [Completion((1,), [2], [-1.0], False)] * 2, ["a", "b"], judged, [0.0, 1.0])
    hinted = replace(plain, before_hint=replace(plain, verdicts=[Verdict.INCORRECT] * 2, rewards=[0.0] * 2), kept=1)
    assert hinted.hinted == [False, True]
    e = Experience([hinted], gives_hints=True, timer=Timer({"rollout": 1.0}))
    metrics = step_metrics(e, StepSums(), None)
    assert (metrics["hint/used_frac"], metrics["hint/reward_mean"]) == (1.0, 1.0)
    metrics = step_metrics(replace(e, groups=[plain]), StepSums(), None)
    assert (metrics["hint/used_frac"], metrics["hint/reward_mean"]) == (0.0, None)
    assert "hint/used_frac" not in step_metrics(replace(e, groups=[plain], gives_hints=False), StepSums(), None)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["algorithm=nurl", "dataset=ladder", "hints.gradient=question"],
            "what follows it is no answer to the question alone",
        ),
        (["algorithm=opsd", "hints=expert_prefix"], "one made with a hint may go on from elsewhere"),
        (["algorithm=opsd", "positives=self_explanation", "positives.use=group_member"], "would have no advantage"),
        (["algorithm=opsd", "algorithm.refills=1"], "would choose the problems"),
        (["algorithm=op2sd", "trainer.problems_per_step=1"], "the other problem is one of the same step"),
        (["algorithm=sdpo", "model.dtype=bfloat16"], "stands still in 16 bits"),
        (["algorithm=sdpo", "algorithm.group_size=1"], "has no siblings"),
        (["algorithm=sdpo", "algorithm.surrogate=cispo"], "leaves the divergence alone"),
        (["positives.member_baseline=own"], "no positive joins a group"),
        (["algorithm=grpo", "algorithm.advantage=none"], "would learn nothing from its rollouts"),
        (["algorithm=rlcsd", "algorithm.privilege=solution"], "between the right answer and a wrong one"),
        (["algorithm=rlcsd", "algorithm.ratio=sequence"], "would average away"),
        (["algorithm=grpo", "algorithm.kl_coef=0.1", "algorithm.kl_estimator=k1"], "would add noise alone"),
        (["algorithm=exp_grpo", "positives.weight=0"], "would not learn from its positives"),
        (["algorithm=exp_grpo_member", "positives.selection=threshold"], "one positive joins a group"),
        (
            ["algorithm=exp_grpo_member", "reward._target_=collections.Counter"],
            "a positive that joins a group has reward 1",
        ),
        (["algorithm=nurl", "hints.sees=solution"], "set hints.sees=answer or hints.stages=1"),
        (
            ["algorithm=opsd", "prompts.with_solution=x", "dataset=ladder"],
            "the ladder's policy can read no such prompt",
        ),
    ],
)
def test_what_would_train_on_nonsense_is_refused(overrides, told):
    with pytest.raises(UserError, match=told) as error:
        check(compose_config(*overrides))
    assert "\n" not in str(error.value)
