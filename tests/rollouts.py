"""Three problems' rollouts in ids, and GRPO without a trainer around it."""

from dataclasses import replace
from types import SimpleNamespace

import torch

from expo.algorithms.base import Components, StepSums
from expo.algorithms.grpo import GRPO
from expo.config import GRPOConf, OptimizerConf, SelfExplanationConf, TrainerConf
from expo.ground.problem import Problem
from expo.ground.ranks import ALONE
from expo.rollout.engine import Completion, Sampling
from expo.step.experience import Candidate, Experience, Group
from expo.step.positives.sources import SelfExplanation
from expo.verifier.answers import Verdict

TEMPERATURE, BETA, KL_COEF, CLIP = 0.8, 0.3, 0.1, 0.2
PROMPTS = [(5, 6, 7), (8, 9), (10, 11, 12, 13)]
ROLLOUTS = [[20, 21], [22, 23, 24, 25], [30], [31, 32, 33], [40, 41], [42, 43, 44]]
REWARDS = [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]  # the middle group has no advantage
POSITIVES = {1: [50, 51, 52], 2: [53, 54]}


def experience(rewards=REWARDS, beta=BETA) -> Experience:
    groups = []
    for p, prompt in enumerate(PROMPTS):
        completions = [Completion(prompt, ids, [-1.0] * len(ids), False) for ids in ROLLOUTS[2 * p : 2 * p + 2]]
        verdicts = [Verdict.CORRECT if r == 1 else Verdict.INCORRECT for r in rewards[p]]
        positives = [Candidate(POSITIVES[p], "")] if p in POSITIVES else []
        judged = Group(Problem(str(p), "", ""), prompt, completions, [""] * 2, verdicts, list(rewards[p]))
        groups.append(replace(judged, candidates=positives, positives=positives))
    return Experience(groups, positive_weight=beta)


def module(policy, reference, micro_batch_size=64, source=None, trainer=None, **changes) -> GRPO:
    tools = SimpleNamespace(
        sampling=Sampling(TEMPERATURE, 1.0, 0, 8), tokenizer=SimpleNamespace(pad_token_id=0), seed=0, ranks=ALONE
    )
    source, hints = source or SelfExplanation(SelfExplanationConf(weight=BETA)), SimpleNamespace(under_question=False)
    pipeline = SimpleNamespace(source=source, hints=hints, tools=tools)
    conf = TrainerConf(micro_batch_size=micro_batch_size, problems_per_step=3, **(trainer or {}))
    components = Components(policy, reference, None, pipeline, None, OptimizerConf(), conf, None)
    grpo = GRPO(GRPOConf(**{"group_size": 2, "kl_coef": KL_COEF} | changes), components)
    grpo.manual_backward = lambda loss: loss.backward()
    grpo.gradients = []

    def step(sums: StepSums) -> None:
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
