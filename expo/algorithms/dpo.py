"""DPO (arXiv 2305.18290) with positives as chosen and the policy's own rollouts as rejected: ExP-DPO (2507.02834).

    loss = -log σ(β_dpo · [log π_θ/π_ref(chosen | q) - log π_θ/π_ref(rejected | q)])  +  β · -log π_θ(chosen | q)

`positives.weight` is β, the weight of RPO's SFT term (arXiv 2404.19733).
"""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from expo.algorithms import losses
from expo.algorithms.base import Algorithm, Components, StepSums
from expo.algorithms.pair_store import ANEW
from expo.config import DPOConf, UserError
from expo.ground.problem import Problem
from expo.model.scoring import TokenBatch
from expo.rollout.engine import Completion
from expo.step.experience import Candidate, Experience, Group
from expo.step.signed import alone_with, digest_of
from expo.verifier.answers import Verdict


class DPO(Algorithm):
    """Pairs are made in rounds of `pairs_every` steps by the policy at the round's start; offline, one round is the
    run. One step: one update on the pairs of its problems. A problem without a positive, or another rollout to reject,
    has none."""

    conf: DPOConf

    def __init__(self, conf: DPOConf, components: Components):
        super().__init__(conf, components)
        self.every = conf.pairs_every or self.trainer_conf.max_steps
        self.round: tuple[int, Experience] | None = None  # the round's first step, and all its problems
        self.mark: list[Any] = []  # of the round: its first step, and the digest of its file

    def collect(self, step: int) -> Experience:
        start = step - step % self.every
        if self.round is None or self.round[0] != start:
            steps = range(start, min(start + self.every, self.trainer_conf.max_steps))
            problems = list({p.id: p for s in steps for p in self.sampler.batch(s)}.values())
            self.round = start, self.pairs_of(start, problems, goes_on=step > start)
        round_ = self.round[1]
        place = {p.id: i for i, p in enumerate(round_.problems)}
        experience = round_.select([place[p.id] for p in self.sampler.batch(step)])
        experience.writer = "pairs"  # whatever the policy is by now, they are of the round's start
        if step == start:
            experience.timer, experience.generated_tokens = round_.timer, round_.generated_tokens
            experience.shared_s = round_.shared_s
        return experience

    def pairs_of(self, start: int, problems: list[Problem], goes_on: bool = False) -> Experience:
        """Return the pairs of the round that begins at step `start`: read from disk, or made and saved. Args: goes_on,
        whether the run is resumed within the round. Raises UserError where it is, and the pairs are gone."""
        with alone_with(self.pairs.path(start)) if self.ranks.first else nullcontext():
            experience = self.ranks.by_first(lambda: self.pairs.load(start, problems, goes_on))
            if experience is None and goes_on:
                raise UserError(f"pairs={self.pairs.path(start)}: gone; {ANEW}")
            if experience is not None and not start and not goes_on:
                self.measure(experience)
            if experience is None:
                generated = experience = self.pipeline.run(start, problems, self.conf.group_size)
                self.ranks.by_first(lambda: self.pairs.save(start, generated))
            mark = [start, self.ranks.by_first(lambda: digest_of(self.pairs.path(start)))]
            if goes_on and self.mark[:1] == [start] and self.mark != mark:  # another run made them anew
                raise UserError(f"pairs={self.pairs.path(start)}: not those that this run began with; {ANEW}")
            self.mark = mark
        return experience

    def measure(self, first: Experience) -> None:
        """Measure the positives of a first round that another run has made. The policy is still the initial one."""
        positives = {i: group.positives for i, group in enumerate(first.groups) if group.positives}
        if self.pipeline.source.measure_every and not any(c.logp_given_q for some in positives.values() for c in some):
            measured = self.pipeline.measure(0, dict(enumerate(first.groups)), positives)
            first.groups = [replace(group, positives=measured.get(i, [])) for i, group in enumerate(first.groups)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["pairs"] = self.mark

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.mark = checkpoint.get("pairs", [])

    def pair(self, group: Group) -> tuple[Candidate, Completion] | None:
        """Return the problem's chosen and rejected completion, which differ: there is nothing to prefer in one."""
        if not group.positives:
            return None
        chosen, judged = group.positives[0], zip(group.completions, group.verdicts, strict=True)
        allowed = (c for c, verdict in judged if self.conf.rejected == "any" or verdict is not Verdict.CORRECT)
        rejected = next((c for c in allowed if c.ids != chosen.ids), None)
        return (chosen, rejected) if rejected else None

    def update(self, experience: Experience) -> StepSums:
        sums = StepSums()
        pairs = [(group, *pair) for group in experience.groups if (pair := self.pair(group)) is not None]
        sums.mean("pair/used_frac", len(pairs), len(experience.groups))
        for name in ("margin", "accuracy", "chosen_logp", "rejected_logp", "chosen_gain"):
            sums.mean(f"pair/{name}", 0, 0)  # None in a step without any
        if not pairs:
            return sums
        prompts = [group.prompt for group, _, _ in pairs]
        both = [chosen.ids for _, chosen, _ in pairs] + [rejected.ids for _, _, rejected in pairs]
        self.preference_stream(self.tokens(prompts * 2, both), len(pairs), sums)
        if experience.positive_weight > 0:
            self.positive_stream([(group, chosen) for group, chosen, _ in pairs], experience.positive_weight, sums)
        self.take_step(sums)
        return sums

    def preference_stream(self, batch: TokenBatch, count: int, sums: StepSums) -> None:
        """Go backward through the preference loss. Row i of `batch` is chosen, row `count` + i is rejected."""
        conf, size = self.conf, max(self.trainer_conf.micro_batch_size // 2, 1)
        chosen = batch.rows(torch.arange(count))
        for first, _ in self.micro_batches(chosen, torch.arange(count), sums, size):
            part = batch.rows(torch.cat([first, first + count]))
            logp = self.score(self.policy, part).sum(dim=1)
            log_ratio = logp - self.score_reference(part).sum(dim=1)
            chosen_ratio, rejected_ratio = log_ratio.chunk(2)
            lengths = torch.stack(part.mask.sum(dim=1).chunk(2))
            per_pair, margin = losses.preference_loss(
                chosen_ratio, rejected_ratio, lengths, conf.beta, conf.label_smoothing, conf.preference
            )
            loss = per_pair.sum() / count
            self.manual_backward(loss)
            sums.per_update("loss/preference", loss)
            sums.per_update("loss/total", loss)
            sums.total("throughput/tokens_trained", part.mask.sum())
            chosen_logp, rejected_logp = logp.chunk(2)
            sums.mean("pair/margin", margin.sum(), len(first))
            sums.mean("pair/accuracy", (margin > 0).float().sum(), len(first))
            sums.mean("pair/chosen_logp", chosen_logp.sum(), len(first))
            sums.mean("pair/rejected_logp", rejected_logp.sum(), len(first))
            sums.mean("pair/chosen_gain", chosen_ratio.sum(), len(first))
