"""GRPO's own update against the formula, written out row by row in float64 on unpadded rows."""

import copy
import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from expo.algorithms.base import Sums
from expo.algorithms.grpo import GRPO
from expo.algorithms.parts import Parts
from expo.data.problem import Problem
from expo.experience import Candidate, Experience
from expo.models import random_tiny
from expo.positives.sources import SelfExplanation
from expo.rollout.engine import Completion, Sampling
from expo.schema import OptimizerConf, TrainerConf
from expo.schema_learning import GRPOConf
from expo.verifier import Verdict

TEMPERATURE, BETA, KL_COEF, CLIP = 0.8, 0.3, 0.1, 0.2
PROMPTS = [(5, 6, 7), (8, 9), (10, 11, 12, 13)]
ROLLOUTS = [[20, 21], [22, 23, 24, 25], [30], [31, 32, 33], [40, 41], [42, 43, 44]]
REWARDS = [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]  # the middle group has no advantage
POSITIVES = {1: [50, 51, 52], 2: [53, 54]}


def experience() -> Experience:
    completions = [Completion(PROMPTS[i // 2], ids, [-1.0] * len(ids), False) for i, ids in enumerate(ROLLOUTS)]
    positives = [Candidate(p, ids, "", None, -0.5) for p, ids in POSITIVES.items()]
    rewards = torch.tensor(REWARDS)
    return Experience(
        [Problem(str(i), "", "") for i in range(3)], PROMPTS, completions=completions, texts=[""] * 6,
        verdicts=[Verdict.INCORRECT] * 6, correct=rewards, rewards=rewards, candidates=positives, positives=positives,
    )  # fmt: skip


def module(policy, reference, micro_batch_size=64, source=None, trainer=None, **changes) -> GRPO:
    tools = SimpleNamespace(
        sampling=Sampling(TEMPERATURE, 1.0, 0, 8), tokenizer=SimpleNamespace(pad_token_id=0), seed=0
    )
    collector = SimpleNamespace(source=source or SelfExplanation(BETA), tools=tools)
    conf = TrainerConf(micro_batch_size=micro_batch_size, problems_per_step=3, **(trainer or {}))
    parts = Parts(policy, reference, None, collector, None, OptimizerConf(), conf, None)
    settings = dataclasses.asdict(GRPOConf(group_size=2, kl_coef=KL_COEF)) | changes
    del settings["_target_"]
    grpo = GRPO(parts, **settings)
    grpo.manual_backward = lambda loss: loss.backward()
    grpo.gradients = []

    def step(sums: Sums) -> None:
        """A plain gradient step, kept small and deterministic."""
        grpo.gradients.append([p.grad.clone() for p in policy.parameters()])
        with torch.no_grad():
            for p in policy.parameters():
                p -= 0.05 * p.grad
                p.grad = None

    grpo.take_step = step
    return grpo


def row_logp(model, prompt, ids, temperature):
    logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]


def formula(policy, reference, old, kl_coef=KL_COEF):
    """The loss of one update as method.md gives it; `old` are the log-probabilities under the policy that acted."""
    total = 0.0
    for i, ids in enumerate(ROLLOUTS):
        group = REWARDS[i // 2]
        mean = sum(group) / 2
        std = math.sqrt(sum((r - mean) ** 2 for r in group)) + 1e-6
        advantage = (group[i % 2] - mean) / std
        logp = row_logp(policy, PROMPTS[i // 2], ids, TEMPERATURE)
        ratio = (logp - old[i]).exp()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
        delta = row_logp(reference, PROMPTS[i // 2], ids, TEMPERATURE).detach() - logp
        total = total + (-surrogate + kl_coef * (delta.exp() - 1 - delta)).mean() / len(ROLLOUTS)
    nll = sum(-row_logp(policy, PROMPTS[p], ids, 1.0).sum() for p, ids in POSITIVES.items())
    return total + BETA * nll / sum(map(len, POSITIVES.values()))


@pytest.fixture(scope="module")
def models():
    policy, reference = random_tiny(0)[0], random_tiny(1)[0]
    with torch.no_grad():  # larger weights: ratios that reach the clip after one step
        for p in policy.parameters():
            p *= 1.5
    return policy.requires_grad_(True), reference.requires_grad_(False)


@pytest.mark.parametrize("micro_batch_size", [1, 4, 64])
@pytest.mark.parametrize("kl_coef", [0.0, KL_COEF])
def test_two_updates_are_those_of_the_formula(models, micro_batch_size, kl_coef):
    policy, reference = copy.deepcopy(models[0]), models[1]
    double, double_reference = copy.deepcopy(policy).double(), copy.deepcopy(reference).double()
    grpo = module(policy, reference, micro_batch_size, updates_per_rollout=2, kl_coef=kl_coef)
    sums = grpo.update(experience(), BETA)
    old = [row_logp(double, PROMPTS[i // 2], ids, TEMPERATURE).detach() for i, ids in enumerate(ROLLOUTS)]
    expected = []
    for ours in grpo.gradients:
        loss = formula(double, double_reference, old, kl_coef)
        theirs = torch.autograd.grad(loss, list(double.parameters()))
        expected.append(loss.item())
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=1e-3)
        with torch.no_grad():
            for p, gradient in zip(double.parameters(), theirs, strict=True):
                p -= 0.05 * gradient
    assert sums["loss/total"] == pytest.approx(sum(expected), abs=1e-4)


def test_rows_without_advantage_are_not_scored_without_kl(models):
    grpo = module(copy.deepcopy(models[0]), models[1], 64, kl_coef=0.0)
    assert grpo.update(experience(), BETA)["tokens"] == sum(len(ROLLOUTS[i]) for i in (0, 1, 4, 5))


def test_a_weight_of_zero_is_plain_grpo(models):
    with_positives, without = experience(), experience()
    without.positives = []
    gradients = []
    for e, beta in ((with_positives, 0.0), (without, BETA)):
        grpo = module(copy.deepcopy(models[0]), models[1], 64)
        grpo.update(e, beta)
        gradients.append(grpo.gradients[0])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
