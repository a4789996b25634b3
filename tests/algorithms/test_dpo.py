"""DPO's own update against the formula in float64, its pairs, and their file."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from expo.algorithms import losses
from expo.algorithms.base import Components
from expo.algorithms.dpo import DPO
from expo.algorithms.pair_store import PairStore
from expo.config import DPOConf, OptimizerConf, SelfExplanationConf, TrainerConf, UserError
from expo.ground.problem import Problem
from expo.ground.ranks import ALONE
from expo.model.small import random_tiny
from expo.rollout.engine import Completion, Sampling
from expo.step.experience import Candidate, Experience, Group
from expo.step.metrics import step_metrics
from expo.step.positives.sources import SelfExplanation
from expo.step.sums import StepSums
from expo.verifier.answers import Verdict

PROMPTS = [(5, 6, 7), (8, 9), (10, 11, 12, 13)]
ROLLOUTS = [[20, 21], [22, 23, 24, 25], [30], [31, 32, 33], [40, 41], [42, 43, 44]]
VERDICTS = [Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNPARSEABLE, Verdict.CORRECT, Verdict.CORRECT, Verdict.CORRECT]
CHOSEN = {0: [50, 51, 52], 1: [53, 54], 2: [55]}
PROBLEMS = [Problem(name, "q", "1") for name in "abc"]


def experience(chosen=CHOSEN, beta=0.0) -> Experience:
    groups = []
    for p, prompt in enumerate(PROMPTS):
        rows = slice(2 * p, 2 * p + 2)
        completions = [Completion(prompt, ids, [-1.5] * len(ids), False) for ids in ROLLOUTS[rows]]
        positives = [Candidate(chosen[p], "c", prompt=(1, 2), answer_lift=2.0)] if p in chosen else []
        rejected = [Candidate([60], "bad", "wrong")] if p == 2 else []
        rewards = [float(v is Verdict.CORRECT) for v in VERDICTS[rows]]
        judged = PROBLEMS[p], prompt, completions, ["t"] * 2, VERDICTS[rows], rewards
        groups.append(Group(*judged, candidates=[*positives, *rejected], positives=positives))
    return Experience(groups, 4, positive_weight=beta)


def module(policy, reference, weight=0.0, pairs=None, **changes) -> DPO:
    pad = SimpleNamespace(pad_token_id=0)
    tools = SimpleNamespace(sampling=Sampling(1.0, 1.0, 0, 8), tokenizer=pad, seed=0, ranks=ALONE)
    pipeline = SimpleNamespace(source=SelfExplanation(SelfExplanationConf(weight=weight)), tools=tools)
    trainer = TrainerConf(micro_batch_size=2)
    components = Components(policy, reference, None, pipeline, None, OptimizerConf(), trainer, pairs)
    dpo = DPO(DPOConf(**{"group_size": 2, "beta": 0.3} | changes), components)
    dpo.manual_backward = lambda loss: loss.backward()
    dpo.take_step = lambda sums: None
    return dpo


def row_logp(model, prompt, ids):
    logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)].sum()


@pytest.fixture(scope="module")
def models():
    return random_tiny(0)[0].requires_grad_(True), random_tiny(1)[0].requires_grad_(False)


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("preference", ["sigmoid", "ipo"])
def test_the_update_is_that_of_the_formula(models, preference, weight):
    policy, reference = copy.deepcopy(models[0]), models[1]
    double, double_reference = copy.deepcopy(policy).double(), copy.deepcopy(reference).double()
    sums = module(policy, reference, weight, preference=preference).update(experience(beta=weight))
    total = 0.0
    for p in range(3):
        rejected = ROLLOUTS[2 * p]
        c, r = (
            row_logp(double, PROMPTS[p], ids) - row_logp(double_reference, PROMPTS[p], ids)
            for ids in (CHOSEN[p], rejected)
        )
        if preference == "sigmoid":
            total = total - torch.nn.functional.logsigmoid(0.3 * (c - r)) / 3
        else:
            total = total + (c / len(CHOSEN[p]) - r / len(rejected) - 1 / 0.6) ** 2 / 3
    nll = -sum(row_logp(double, PROMPTS[p], ids) for p, ids in CHOSEN.items()) / sum(map(len, CHOSEN.values()))
    total = total + weight * nll
    assert sums["loss/total"] == pytest.approx(total.item(), abs=1e-4)
    for ours, theirs in zip(policy.parameters(), torch.autograd.grad(total, list(double.parameters())), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs, atol=1e-4, rtol=1e-3)


def test_ipos_margin_is_that_of_its_loss():
    """It goes by means over tokens: a long completion that has moved more in all may have moved less by token."""
    chosen, rejected, lengths = torch.tensor([1.0]), torch.tensor([5.0]), torch.tensor([[10.0], [100.0]])
    margin = {p: losses.preference_loss(chosen, rejected, lengths, 0.1, 0.0, p)[1].item() for p in ("ipo", "sigmoid")}
    assert margin == {"ipo": pytest.approx(0.1 * (0.1 - 0.05)), "sigmoid": pytest.approx(-0.4)}


def test_only_wrong_rollouts_are_rejected_where_asked(models):
    dpo = module(*models, rejected="wrong")
    pairs = [dpo.pair(group) for group in experience().groups]
    assert [pair and pair[1].ids for pair in pairs] == [ROLLOUTS[1], ROLLOUTS[2], None]
    pairs = [module(*models).pair(group) for group in experience().groups]
    assert [rejected.ids for _, rejected in pairs] == [ROLLOUTS[0], ROLLOUTS[2], ROLLOUTS[4]]


def test_a_positive_that_is_the_rollout_itself_gives_no_pair(models):
    """There is nothing to prefer: its margin would stay 0, and count."""
    groups = experience({0: ROLLOUTS[0], 1: CHOSEN[1], 2: CHOSEN[2]}).groups
    assert module(*models).pair(groups[0])[1].ids == ROLLOUTS[1]
    alone = replace(groups[0], completions=groups[0].completions[:1], verdicts=groups[0].verdicts[:1])
    assert module(*models).pair(alone) is None


def test_a_resumed_run_makes_no_pairs_with_another_policy(models, tmp_path):
    dpo = module(*models, pairs=PairStore(tmp_path / "initial", tmp_path / "own"))
    dpo.pipeline.run = lambda *arguments: experience()
    with pytest.raises(UserError, match=r"pairs=.*gone; fresh=true begins the run anew"):
        dpo.pairs_of(0, PROBLEMS, goes_on=True)
    assert not dpo.pairs.path(0).exists()
    dpo.pairs_of(0, PROBLEMS)
    assert dpo.pairs_of(0, PROBLEMS, goes_on=True).groups == experience().groups
    again = module(*models, pairs=dpo.pairs)
    again.mark = dpo.mark  # as its checkpoint has it
    other = experience()
    other.groups = other.groups[::-1]
    dpo.pairs.save(0, other)  # by another run, with fresh=true
    with pytest.raises(UserError, match=r"pairs=.*not those that this run began with; fresh=true begins the run anew"):
        again.pairs_of(0, PROBLEMS[::-1], goes_on=True)


def test_pairs_that_another_run_made_are_measured_where_this_one_asks_for_it(models, tmp_path):
    dpo = module(*models, pairs=PairStore(tmp_path / "initial", tmp_path / "own"))
    dpo.pairs.save(0, experience())
    dpo.pipeline.measure = lambda step, groups, positives: {
        i: [replace(c, logp_given_q=-1.0) for c in some] for i, some in positives.items()
    }
    for every, measured in ((0, None), (10, -1.0)):
        dpo.pipeline.source.measure_every = every
        found = dpo.pairs_of(0, PROBLEMS)
        assert {c.logp_given_q for group in found.groups for c in group.positives} == {measured}


def test_likelihoods_of_pairs_are_not_said_to_be_the_policys():
    e = experience()
    e.writer, e.timer.seconds["rollout"] = "pairs", 1.0
    metrics = step_metrics(e, StepSums(), None)
    assert (metrics["positive/answer_lift"], metrics["pairs/positive/answer_lift"]) == (None, 2.0)
    assert metrics["positive/used_frac"] == 1.0


def test_a_problem_without_a_positive_gives_no_pair_and_none_gives_no_step(models):
    policy = copy.deepcopy(models[0])
    dpo = module(policy, models[1])
    assert dpo.update(experience({1: [53]})).metrics()["pair/used_frac"] == 1 / 3
    policy.zero_grad()
    metrics = dpo.update(experience({})).metrics()
    assert (metrics["pair/used_frac"], metrics["pair/margin"]) == (0.0, None)
    assert all(p.grad is None for p in policy.parameters())


def test_pairs_come_back_from_their_file_as_they_were(tmp_path):
    store, e = PairStore(tmp_path / "initial", tmp_path / "own"), experience()
    e.generated_tokens, e.timer.seconds["rollout"] = 17, 2.5
    store.save(0, e)
    back = store.load(0, PROBLEMS)
    e.step = 0
    assert back.groups == e.groups
    store.save(20, e)
    assert store.load(20, PROBLEMS).shared_s == 0  # of the run itself
    store.path(20).unlink()
    assert (back.generated_tokens, back.timer.seconds["rollout"]) == (17, 2.5)  # their cost is whoever's uses them
    assert back.shared_s == 2.5  # which its own seconds lack
    assert PairStore(tmp_path / "initial", tmp_path / "own", fresh=True).load(0, PROBLEMS) is None
    assert store.load(20, PROBLEMS) is None
    corrected = PairStore(tmp_path / "initial", tmp_path / "own", code={"judge.py": "new"})
    assert corrected.load(0, PROBLEMS) is None  # other runs' pairs, judged before the correction
    assert corrected.load(0, PROBLEMS, goes_on=True).groups == e.groups  # a resumed run its own
    corrected.save(0, e)
    assert corrected.load(0, PROBLEMS).groups == e.groups
    store.save(0, e)
    with pytest.raises(UserError, match="other problems"):
        store.load(0, PROBLEMS[:2])
    path = store.path(0)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"pairs=.*SHA-256"):
        store.load(0, PROBLEMS)


def test_a_file_without_its_digest_was_not_finished_and_is_made_again(tmp_path, models):
    store, e = PairStore(tmp_path, tmp_path), experience()
    store.save(0, e)
    store.path(0).with_suffix(".sha256").unlink()
    assert store.load(0, PROBLEMS) is None


def test_a_problem_that_a_step_meets_twice_has_its_pair_twice():
    twice = experience().select([1, 0, 1])
    assert [c.ids for _, c in twice.positives] == [CHOSEN[1], CHOSEN[0], CHOSEN[1]]
    assert [group.prompt for group, _ in twice.positives] == [PROMPTS[1], PROMPTS[0], PROMPTS[1]]
