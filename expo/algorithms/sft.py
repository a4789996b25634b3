"""Supervised fine-tuning on positives: expert solutions, self-explanations, or STaR (arXiv 2203.14465).

    loss = β · Σ w · -log π_θ(c | q)

over the tokens of completions only, see `expo.algorithms.losses.token_weights`.
"""

from expo.algorithms.base import Algorithm, StepSums
from expo.config import SFTConf
from expo.model.modes import take_weights
from expo.step.experience import Experience


class SFT(Algorithm):
    """One optimizer step on the positives of the step's problems. With `restart_every`, in rounds: at each start the
    snapshot, which makes the round's data, becomes the policy, and the policy begins again from the base weights."""

    conf: SFTConf

    def before(self, step: int) -> None:
        if not self.conf.restart_every:
            super().before(step)
        elif step % self.conf.restart_every == 0:
            assert self.snapshot is not None
            assert self.reference is not None
            take_weights(self.snapshot, self.whole_policy())
            take_weights(self.policy, self.reference)
            self.trainer.strategy.setup_optimizers(self.trainer)
            self.pipeline.engines.sync()

    def update(self, experience: Experience) -> StepSums:
        sums = StepSums()
        if experience.positives and experience.positive_weight > 0:
            self.positive_stream(experience.positives, experience.positive_weight, sums)
            self.take_step(sums)
        return sums
