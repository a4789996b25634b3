"""The distilling update against its formula, row by row in float64 on unpadded rows; what a teacher sees, and who it
is."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import make_prompts
from rollouts import PROMPTS, ROLLOUTS, TEMPERATURE, experience, row_logp

from expo.algorithms.base import Components, StepSums
from expo.algorithms.distillation import Distill, SelfDistillation, evenness
from expo.algorithms.terms import Rows
from expo.algorithms.updates import Updates
from expo.config import NoPositivesConf, OptimizerConf, SelfDistillationConf, TrainerConf
from expo.ground.problem import Problem
from expo.model.modes import frozen_copy
from expo.model.scoring import TokenBatch
from expo.rollout.engine import Completion, Sampling
from expo.step.experience import Experience, Group, Timer, Tools
from expo.step.metrics import step_metrics
from expo.step.positives.sources import NoPositives
from expo.step.privilege import PRIVILEGES, privileged_prompts, wrong_answer
from expo.step.sums import COUNT, TOTAL
from expo.verifier.answers import Verdict
from expo.verifier.extraction import extraction

BOXES = SimpleNamespace(extraction=extraction("boxed"))

SEEN, WRONG = [(60, 61, 62, 63, 64), (65, 66), (67, 68, 69)], [(70, 71), (72,), (73, 74)]
SGD = 0.05


def module(policy, reference=None, seen=SEEN, micro_batch_size=64, trainer=None, **changes) -> SelfDistillation:
    """As in test_grpo, with given prompts of the teacher: those of the right answer, and of wrong ones."""

    def privileged_ids(tokenizer, problems):
        return [list((WRONG if p.answer == "wrong" else seen)[int(p.id)] or range(999)) for p in problems]

    prompts, tokenizer = SimpleNamespace(privileged_ids=privileged_ids), SimpleNamespace(pad_token_id=0)
    tools = Tools(prompts, tokenizer, BOXES, Sampling(TEMPERATURE, 1.0, 0, 8), 0, 100)
    hints = SimpleNamespace(under_question=False)
    pipeline = SimpleNamespace(source=NoPositives(NoPositivesConf()), hints=hints, tools=tools)
    conf = SelfDistillationConf(**{"group_size": 2, "advantage": "none"} | changes)
    average = frozen_copy(policy) if conf.uses_average else None
    trainer_conf = TrainerConf(micro_batch_size=micro_batch_size, problems_per_step=3, **(trainer or {}))
    components = Components(
        policy, reference, None, pipeline, None, OptimizerConf(), trainer_conf, None, average=average
    )
    made = SelfDistillation(conf, components)
    made.manual_backward = lambda loss: loss.backward()
    made.gradients = []

    def step(sums: StepSums) -> None:
        made.gradients.append([p.grad.clone() for p in policy.parameters()])
        with torch.no_grad():
            for p in policy.parameters():
                p -= SGD * p.grad
                p.grad = None
        if made.average is not None:
            made.average_in()

    made.take_step = step
    return made


def row_distribution(model, prompt, ids):
    logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
    return logits.log_softmax(-1)


def compare(made, policy, loss_of, updates=1, e=None):
    """Check every update's gradients and the sum of losses against `loss_of(update, double)`. Args: policy, as it was
    before."""
    double, total = copy.deepcopy(policy).double(), 0.0
    sums = made.update(e or experience(beta=0.0))
    assert len(made.gradients) == updates
    for update, ours in enumerate(made.gradients):
        loss = loss_of(update, double)
        theirs = torch.autograd.grad(loss, list(double.parameters()))
        total += loss.item()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=1e-3)
        with torch.no_grad():
            for p, gradient in zip(double.parameters(), theirs, strict=True):
                p -= SGD * gradient
    assert sums["loss/total"] == pytest.approx(total, abs=1e-4)
    return sums


def jsd(s, t, beta=0.5):
    m = ((1 - beta) * s.exp() + beta * t.exp()).log()
    return beta * (t.exp() * (t - m)).sum(-1) + (1 - beta) * (s.exp() * (s - m)).sum(-1)


@pytest.mark.parametrize("micro_batch_size", [1, 4, 64])
@pytest.mark.parametrize("trainer", [{}, {"packing": True, "share_prompts": False}])
def test_two_updates_of_opsd_are_those_of_the_formula(models, micro_batch_size, trainer):
    """The initial policy teaches; in the second update, each token weighs min(π / π_old, 2)."""
    policy, reference = copy.deepcopy(models[0]), models[1]
    double_reference = copy.deepcopy(reference).double()
    old = [
        row_logp(copy.deepcopy(policy).double(), PROMPTS[i // 2], ids, TEMPERATURE).detach()
        for i, ids in enumerate(ROLLOUTS)
    ]
    made = module(
        policy, reference, micro_batch_size=micro_batch_size, trainer=trainer, teacher="initial", updates_per_rollout=2,
        distill_weight=0.7,
    )  # fmt: skip

    def loss(update, double):
        total = 0.0
        for i, ids in enumerate(ROLLOUTS):
            s = row_distribution(double, PROMPTS[i // 2], ids)
            t = row_distribution(double_reference, SEEN[i // 2], ids).detach()
            ratio = (s[torch.arange(len(ids)), torch.tensor(ids)].detach() - old[i]).exp().clamp(max=2.0)
            total = total + (ratio * jsd(s, t)).mean() / len(ROLLOUTS)
        return 0.7 * total

    sums = compare(made, models[0], loss, updates=2)
    assert sums["distill/gap" + COUNT] == 2 * sum(map(len, ROLLOUTS))
    assert sums["loss/distill"] == pytest.approx(sums["loss/total"])


def test_a_teacher_that_is_the_policy_itself_takes_no_gradient_and_moves_with_it(models):
    policy = copy.deepcopy(models[0])
    made = module(policy, teacher="current", mix=1.0, updates_per_rollout=2, ratio_cap=1.0, aggregation="token_mean")

    def loss(update, double):
        total, tokens = 0.0, sum(map(len, ROLLOUTS))
        for i, ids in enumerate(ROLLOUTS):
            s = row_distribution(double, PROMPTS[i // 2], ids)
            t = row_distribution(double, SEEN[i // 2], ids).detach()
            ratio = torch.ones(len(ids), dtype=torch.float64)
            if update:
                before = row_logp(first, PROMPTS[i // 2], ids, TEMPERATURE).detach()
                ratio = (s[torch.arange(len(ids)), torch.tensor(ids)].detach() - before).exp().clamp(max=1.0)
            total = total + (ratio * (s.exp() * (s - t)).sum(-1)).sum() / tokens
        return total

    first = copy.deepcopy(models[0]).double()
    compare(made, models[0], loss, updates=2)
    assert policy.training is models[0].training


def test_the_average_follows_the_policy_at_its_rate(models):
    policy = copy.deepcopy(models[0])
    made = module(policy, teacher="average", average_rate=0.25, updates_per_rollout=2)
    expected = [p.detach().clone() for p in policy.parameters()]
    original = made.take_step

    def step(sums):
        original(sums)
        for own, new in zip(expected, policy.parameters(), strict=True):
            own.lerp_(new.detach(), 0.25)

    made.take_step = step
    made.update(experience(beta=0.0))
    for own, found in zip(expected, made.average.parameters(), strict=True):
        torch.testing.assert_close(own, found)
    assert "average.model.embed_tokens.weight" in made.state_dict()  # so that a resumed run has it


def test_the_teachers_opinion_of_the_sampled_token_is_its_advantage(models):
    policy = copy.deepcopy(models[0])
    made = module(policy, models[1], teacher="initial", signal="sampled", distill_weight=0.5, cap=1.0)
    teacher = copy.deepcopy(models[1]).double()

    def loss(update, double):
        total = 0.0
        for i, ids in enumerate(ROLLOUTS):
            logp = row_logp(double, PROMPTS[i // 2], ids, TEMPERATURE)
            gap = row_logp(teacher, SEEN[i // 2], ids, TEMPERATURE).detach() - logp.detach()
            ratio = (logp - logp.detach()).exp()
            total = total - (ratio * 0.5 * gap.clamp(-1, 1)).mean() / len(ROLLOUTS)
        return total

    compare(made, models[0], loss)


def test_a_contrast_adds_to_the_advantage_what_the_right_answer_says_and_a_wrong_one_does_not(models):
    """The last group has no wrong answer to show: its rows have the advantage alone."""
    e, texts = experience(beta=0.0), [[r"\boxed{wrong}"] * 2] * 2 + [["nothing stated"] * 2]
    e.groups = [
        replace(g, problem=replace(g.problem, answer="right"), texts=t, verdicts=[Verdict.INCORRECT] * 2)
        for g, t in zip(e.groups, texts, strict=True)
    ]
    policy = copy.deepcopy(models[0])
    made = module(policy, signal="contrast", teacher="current", advantage="mean", distill_weight=0.3)

    def loss(update, double):
        total, advantages = 0.0, [0.5, -0.5, 0.0, 0.0, -0.5, 0.5]
        for i, ids in enumerate(ROLLOUTS):
            logp = row_logp(double, PROMPTS[i // 2], ids, TEMPERATURE)
            right, wrong = (row_logp(double, seen[i // 2], ids, TEMPERATURE).detach() for seen in (SEEN, WRONG))
            signal = (right - wrong) if i < 4 else torch.zeros_like(right)
            total = total - ((logp - logp.detach()).exp() * (advantages[i] + 0.3 * signal)).mean() / len(ROLLOUTS)
        return total

    sums = compare(made, models[0], loss, e=e)
    assert sums["distill/gap" + COUNT] == sum(map(len, ROLLOUTS[:4]))


def test_sdpg_is_grpo_with_the_term(models):
    policy = copy.deepcopy(models[0])
    made = module(
        policy,
        models[1],
        teacher="current",
        advantage="mean",
        mix=1.0,
        distill_weight=0.2,
        kl_coef=0.1,
        kl_estimator="k2",
    )
    reference = copy.deepcopy(models[1]).double()

    def loss(update, double):
        total, advantages = 0.0, [0.5, -0.5, 0.0, 0.0, -0.5, 0.5]
        for i, ids in enumerate(ROLLOUTS):
            s = row_distribution(double, PROMPTS[i // 2], ids)
            t = row_distribution(double, SEEN[i // 2], ids).detach()
            logp = s[torch.arange(len(ids)), torch.tensor(ids)]
            ref = row_logp(reference, PROMPTS[i // 2], ids, TEMPERATURE).detach()
            policy_term = -(logp - logp.detach()).exp() * advantages[i]
            row = policy_term + 0.2 * (s.exp() * (s - t)).sum(-1) + 0.1 * 0.5 * (logp - ref).square()
            total = total + row.mean() / len(ROLLOUTS)
        return total

    compare(made, models[0], loss)


def test_a_rollout_with_nothing_to_show_costs_no_pass_and_counts_in_the_weights(models, caplog):
    made = module(copy.deepcopy(models[0]), models[1], seen=[SEEN[0], None, SEEN[2]], teacher="initial")
    e = experience()
    assert made.rows(e, e.groups).guided.tolist() == [True, True, False, False, True, True]
    assert "1 prompts of the teacher not used: over 100 tokens" in caplog.text
    whole = module(copy.deepcopy(models[0]), models[1], teacher="initial")
    part, all_of_it = made.update(experience(beta=0.0)), whole.update(experience(beta=0.0))
    assert part["throughput/tokens_trained" + TOTAL] == sum(map(len, ROLLOUTS[:2] + ROLLOUTS[4:]))
    # As many rows as before share the weight: what is left out is not made up for by the others.
    assert part["loss/total"] < all_of_it["loss/total"]


def test_a_mean_over_tokens_is_one_over_the_guided_tokens(models):
    """As in verl, where the mask of the mean is that of the guided tokens: unguided rollouts make no gradient
    smaller."""
    reference = copy.deepcopy(models[1]).double()
    made = module(
        copy.deepcopy(models[0]), models[1], seen=[SEEN[0], None, SEEN[2]], teacher="initial", aggregation="token_mean"
    )

    def loss(update, double):
        guided = [0, 1, 4, 5]
        apart = [
            jsd(
                row_distribution(double, PROMPTS[i // 2], ROLLOUTS[i]),
                row_distribution(reference, SEEN[i // 2], ROLLOUTS[i]).detach(),
            )
            for i in guided
        ]
        return torch.cat(apart).mean()

    compare(made, models[0], loss)


def test_a_step_without_anything_to_show_trains_nothing_and_says_so(models):
    made = module(copy.deepcopy(models[0]), models[1], seen=[None] * 3, teacher="initial")
    sums = made.update(experience(beta=0.0))
    assert made.gradients == []
    e = replace(experience(), timer=Timer({"rollout": 1.0}))
    metrics = step_metrics(e, sums, None)
    assert (metrics["distill/guided_frac"], metrics["loss/distill"], metrics["distill/divergence"]) == (0.0, 0.0, None)


def test_a_cap_changes_the_loss_and_not_what_is_measured(models):
    free, bound = (
        module(copy.deepcopy(models[0]), models[1], teacher="initial", cap=cap).update(experience(beta=0.0))
        for cap in (math.inf, 1e-3)
    )
    assert bound["loss/distill"] < free["loss/distill"]
    for name in ("distill/divergence", "distill/evenness"):
        assert bound.metrics()[name] == pytest.approx(free.metrics()[name])


def test_distillation_is_a_mean_over_rollouts_whatever_joins_their_groups():
    ids = torch.tensor([[1, 2, 3], [1, 4, 5], [1, 6, 7]])
    batch = TokenBatch(ids, torch.ones(3, 2), torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long))
    member, none = torch.tensor([[False], [False], [True]]), torch.zeros(3, 2)
    rows = Rows(batch, torch.ones(3), member, none, none, ~member, torch.tensor([True, True, False]))
    assert Distill(SelfDistillationConf()).mask(rows).tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_rows_of_no_group_are_no_rows(models):
    """With refills, a step may have no group with right and wrong rollouts."""
    made = module(copy.deepcopy(models[0]), models[1], teacher="initial", advantage="mean", refills=1)
    made.update(experience([[0.0, 0.0]] * 3, beta=0.0))
    assert made.gradients == []


def test_the_guided_share_is_of_the_tokens_that_are_trained_on(models):
    made = module(copy.deepcopy(models[0]), models[1], teacher="initial", advantage="mean", refills=1)
    sums = made.update(experience([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], beta=0.0))
    assert sums.metrics()["distill/guided_frac"] == 1.0


def test_the_average_does_not_move_with_an_update_that_is_skipped(models):
    made = module(copy.deepcopy(models[0]), teacher="average")
    moved = []
    made.average_in = lambda: moved.append(True)
    del made.take_step  # the module's own
    outcomes = [1.0, 0.0]
    step = Updates.take_step
    try:
        Updates.take_step = lambda self, sums: sums.total("policy/updates_skipped", outcomes.pop(0))
        sums = StepSums()
        made.take_step(sums)
        assert not moved
        made.take_step(sums)
        assert moved
    finally:
        Updates.take_step = step


PROBLEMS = [
    Problem("0", "1 + 1?", "2", "one and one, 2"),
    Problem("1", "2 + 2?", "4", None),
    Problem("2", "3 + 3?", "6", "three and three, 6"),
]
LOOKING = Tools(None, None, BOXES, None, 0, 100)
RIGHT, BAD, NONE = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNPARSEABLE


def judged() -> Experience:
    texts = [
        "right a", r"\boxed{3}", "right b",
        r"\boxed{5}", "garbage", "right c",
        "garbage", r"no box", r"\boxed{7}",
    ]  # fmt: skip
    verdicts = [RIGHT, BAD, RIGHT, BAD, NONE, RIGHT, NONE, BAD, BAD]
    completions = [Completion((1,), [2], [0.0], False)] * 3
    rows = [slice(3 * p, 3 * p + 3) for p in range(3)]
    return Experience(
        [Group(p, (1,), completions, texts[r], verdicts[r], [0.0] * 3) for p, r in zip(PROBLEMS, rows, strict=True)]
    )


def every(shown, e):
    """What each of the nine rollouts is shown."""
    return [shown(e, group, row, LOOKING) for group in range(3) for row in range(3)]


def test_what_each_privilege_shows():
    e = judged()
    show = {name: every(shown, e) for name, shown in PRIVILEGES.items()}
    assert [(p.answer, p.solution) for p in show["answer"]] == [(a, None) for a in ("2", "4", "6") for _ in range(3)]
    assert [p and p.solution for p in show["solution"]] == [PROBLEMS[0].solution] * 3 + [None] * 3 + [
        PROBLEMS[2].solution
    ] * 3
    # A right sibling, never the rollout itself; a group with one right rollout has none for that one.
    assert [p and p.solution for p in show["sibling"]] == [
        "right b",
        "right a",
        "right a",
        "right c",
        "right c",
        None,
        None,
        None,
        None,
    ]
    others = [(p.question, p.answer, p.solution) for p in show["other_solution"]]
    assert others[0] == ("1 + 1?", "6", PROBLEMS[2].solution)  # the next problem has no solution
    assert others[3] == ("2 + 2?", "6", PROBLEMS[2].solution)
    assert others[6] == ("3 + 3?", "2", PROBLEMS[0].solution)
    assert [p and p.answer for p in every(wrong_answer, e)] == ["3"] * 3 + ["5"] * 3 + ["7"] * 3


def test_a_problem_that_asks_the_same_is_no_other_problem():
    e = judged()
    same = [PROBLEMS[0], replace(PROBLEMS[0], id="1", question=" 1 + 1? "), replace(PROBLEMS[0], id="2")]
    e.groups = [replace(group, problem=p) for group, p in zip(e.groups, same, strict=True)]
    assert every(PRIVILEGES["other_solution"], e) == [None] * 9


def test_prompts_of_the_teacher_show_the_solution_and_on_the_ladder_the_answer(ladder):
    tokenizer, e = ladder[1], judged()
    ids_of = {}
    for name, template in (("words", "{question} : {solution}"), ("ladder", None)):
        prompts = make_prompts("{question}", "{question} answer {answer}", with_solution=template)
        tools = Tools(prompts, tokenizer, None, Sampling(1.0, 1.0, 0, 40), 0, 200)
        ids_of[name] = privileged_prompts(e, PRIVILEGES["solution"], tools)
        assert [[ids is None for ids in row] for row in ids_of[name]] == [[False] * 3, [True] * 3, [False] * 3]
    explain = make_prompts("{question}", "{question} answer {answer}").explain_ids(tokenizer, PROBLEMS)
    assert ids_of["ladder"][0][0] == tuple(explain[0])
    assert ids_of["words"][0][0] != ids_of["ladder"][0][0]


def test_the_metrics_say_how_even_the_divergence_is():
    sums, values = StepSums(), torch.tensor([1.0, 1.0, 1.0, 5.0])
    sums.mean("distill/divergence", values.sum(), 4)
    sums.total("_divergence_squares", values.square().sum())
    assert evenness(sums) == pytest.approx(64 / (4 * 28))
    assert evenness(StepSums()) is None
