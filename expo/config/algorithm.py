"""Keys of `algorithm=`: how the policy learns from a step's data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from expo.config.key import Config, Rules, key, option, unused


@dataclass
class AlgorithmConf:
    """What every algorithm has. Rollouts per step = trainer.problems_per_step x group_size."""

    _target_: str = MISSING
    takes_positives: ClassVar[bool] = False
    group_size: int = key(0, low=0, high=2**16, help="rollouts per problem; 0: none")

    @property
    def acts_every_step(self) -> bool:
        """Return whether each step samples rollouts from the current policy, so that their reward is the policy's."""
        return self.group_size > 0 and not self.uses_snapshot

    @property
    def uses_reference(self) -> bool:
        """Return whether the loss needs the frozen initial policy."""
        return False

    @property
    def forward_passes(self) -> int:
        """Return the number of passes over an update's rows that no gradient goes through."""
        return int(self.uses_reference)

    @property
    def explains_by_step(self) -> bool:
        """Return whether each step asks for explanations of its own problems alone, known before it begins."""
        return self._target_.startswith("expo.")

    @property
    def uses_snapshot(self) -> bool:
        """Return whether a copy of the policy that the algorithm refreshes itself makes the rollouts."""
        return False

    @property
    def uses_average(self) -> bool:
        """Return whether a moving average of the policy scores."""
        return False

    def why_not_extendable(self, step: int) -> str | None:
        """Return why a longer run cannot go on from a shorter one after `step` steps; None where it can."""
        ours = self._target_.startswith("expo.")
        return None if ours else f"expo does not know whether {self._target_} looks at trainer.max_steps"


@dataclass
class PositivesOnlyConf(AlgorithmConf):
    """What algorithms share that learn from positives alone."""

    takes_positives: ClassVar[bool] = True


@option("algorithm", "sft")
class SFTConf(PositivesOnlyConf):
    """Supervised fine-tuning on positives."""

    _target_: str = "expo.algorithms.sft.SFT"
    restart_every: int = key(0, low=0)
    """steps per round of STaR: a round's data come from the policy at its start, its training starts from the base
    model; 0: no rounds"""

    @property
    def uses_reference(self) -> bool:
        return self.restart_every > 0

    @property
    def uses_snapshot(self) -> bool:
        return self.restart_every > 0

    def doubts(self, cfg: Config) -> Rules:
        for name, steps in (("trainer.max_steps", cfg.trainer.max_steps), ("evaluation.every", cfg.evaluation.every)):
            if self.restart_every and steps % self.restart_every:
                yield (
                    f"{name}={steps}: a policy in the middle of a round is scored: each begins anew from the base "
                    f"policy; multiples of algorithm.restart_every={self.restart_every} score ends of rounds"
                )


@option("algorithm", "dpo", alone=False)
class DPOConf(PositivesOnlyConf):
    """DPO. `positives.weight` is the weight of its SFT term on the chosen completion (RPO); 0: none."""

    _target_: str = "expo.algorithms.dpo.DPO"
    group_size: int = key(1, above=0, high=2**16, help="rollouts per problem, of which one is rejected")
    pairs_every: int = key(0, low=0)
    """steps between remaking the pairs with the current policy (online); 0: all pairs are made by the initial policy
    (offline)"""
    rejected: str = key("any", choices=("any", "wrong"), pairs=False)
    """which of the policy's own rollouts is rejected, where it is not the chosen one: the first, or the first that is
    wrong"""
    preference: str = key("sigmoid", choices=("sigmoid", "ipo"), pairs=False, help="the loss of a pair")
    beta: float = key(0.1, above=0, high=1e4, pairs=False)
    """DPO's temperature; the paper's is not known, this is the usual one"""
    label_smoothing: float = key(0.0, low=0, high=0.5, pairs=False)
    """share of pairs taken to be the wrong way round"""

    @property
    def acts_every_step(self) -> bool:
        return False  # its rollouts are those of the round's start

    @property
    def explains_by_step(self) -> bool:
        return False  # those of a round are asked for at once, and kept with its pairs

    def why_not_extendable(self, step: int) -> str | None:
        if self.pairs_every and step % self.pairs_every == 0:
            return super().why_not_extendable(step)
        return "DPO makes the pairs of all steps of a round, or of the run, at its start"

    @property
    def uses_reference(self) -> bool:
        return True

    def rules(self, cfg: Config) -> Rules:
        if self.preference == "ipo" and self.label_smoothing != 0:
            remedy = "set algorithm.label_smoothing=0 or algorithm.preference=sigmoid"
            yield f"algorithm.label_smoothing={self.label_smoothing}: IPO has none; {remedy}"


KEYS_OF_SURROGATES = {"dual_clip": ["dual_clip"], "sapo": ["sapo_tau_positive", "sapo_tau_negative"]}


@option("algorithm", "grpo")
class GRPOConf(AlgorithmConf):
    """GRPO and its relatives; Dr. GRPO, DAPO, GSPO, RLOO and LUFFY are choices among these keys."""

    takes_positives: ClassVar[bool] = True
    has_teacher: ClassVar[bool] = False  # that scores the rollouts
    _target_: str = "expo.algorithms.grpo.GRPO"
    group_size: int = key(8, low=2, high=2**16, help="rollouts per problem; a group advantage needs at least 2")
    updates_per_rollout: int = key(1, above=0)
    """passes over each batch of rollouts, one optimizer step each; the first pass gives the old log-probabilities"""
    advantage: str = key("group_norm", choices=("group_norm", "mean", "leave_one_out", "none"))
    """advantage of a rollout within its group; none: rewards are not learned from"""
    ratio: str = key("token", choices=("token", "sequence"))
    """importance ratio per token (GRPO) or sequence (GSPO)"""
    surrogate: str = key("ppo_clip", choices=("ppo_clip", "dual_clip", "cispo", "sapo", "dppo"), absent="ppo_clip")
    """loss of a token, given its importance ratio; the formulas are in expo/algorithms/losses.py"""
    clip_low: float = key(0.2, low=0, high=1, help="the importance ratio is clipped at 1 - clip_low")
    clip_high: float = key(0.2, low=0, help="the importance ratio is clipped at 1 + clip_high (DAPO's clip-higher)")
    dual_clip: float = key(3.0, low=1, high=1e4, absent=3.0)
    """surrogate=dual_clip: most that a token of negative advantage pulls, in advantages"""
    sapo_tau_positive: float = key(1.0, above=0, high=1e4, absent=1.0)
    """surrogate=sapo: how soon the gradient of a positive advantage fades"""
    sapo_tau_negative: float = key(1.05, above=0, high=1e4, absent=1.05)
    """surrogate=sapo: how soon that of a negative one does"""
    entropy_coef: float = key(0.0, low=0, high=1e4, absent=0.0)
    """weight of an entropy bonus: the entropy of the next token, from its logits; 0: none"""
    aggregation: str = key("sequence_mean", choices=("sequence_mean", "token_mean", "constant"))
    """weights of the tokens: mean of sequence means (GRPO), mean of tokens (DAPO), sum over a constant (Dr. GRPO)"""
    kl_coef: float = key(0.0, low=0, high=1e4)
    """weight of the KL term against the frozen reference; 0: no KL term and no forward pass of the reference"""
    kl_estimator: str = key("k3", choices=("k1", "k2", "k3"), help="estimator of the KL divergence per token")
    refills: int = key(0, low=0, high=100)
    """further batches that a step may sample while too few groups have both right and wrong rollouts; only such groups
    are trained on (DAPO's dynamic sampling); 0: off"""
    retry: float = key(1.0, above=0, high=1, absent=1.0)
    """probability that a problem is dealt again when its last group gave no gradient, squared after two such groups,
    and so on; others take its place (GRESO); 1: off"""
    overlong_share: float = key(0.0, low=0, high=1)
    """share of rollout.max_completion_tokens, at its end, over which the reward falls (DAPO); 0: off"""
    overlong_penalty: float = key(1.0, above=0, high=1e4, absent=1.0)
    """by how much it falls at most; DAPO's is half of what lies between its rewards for right and wrong: 0.5 for 1 and
    0"""
    sampler_correction: str | None = key(None, choices=("none", "token", "sequence"))
    """truncated importance sampling between the sampler's probabilities and the trainer's; null: token where vLLM or
    the trainer computes in 16 bit, or rollout.ahead=1; none where one engine does both, or both are in float32"""
    sampler_cap: float = key(2.0, low=1, help="largest weight of that correction")

    def settle(self, cfg: Config) -> None:
        """Set the keys whose value other keys decide. The value enters the identity as if the user had given it."""
        if self.sampler_correction is None:
            apart = cfg.rollout.rounds_otherwise(cfg) and getattr(cfg.hints, "gradient", "hint") == "hint"
            self.sampler_correction = "token" if apart else "none"

    @property
    def explains_by_step(self) -> bool:
        return super().explains_by_step and not self.refills and self.retry == 1

    @property
    def uses_reference(self) -> bool:
        return self.kl_coef > 0

    @property
    def learns_from_rewards(self) -> bool:
        return self.advantage != "none"

    def idle(self, names: Sequence[str], why: str, remedy: str) -> Rules:
        """Yield a rule for each key in `names`, which changes nothing here; see `expo.config.key.unused`."""
        return unused(self, "algorithm.", names, why, remedy)

    def rules(self, cfg: Config) -> Rules:
        if not self.learns_from_rewards and not self.has_teacher:
            remedy = "set algorithm.advantage=group_norm, or choose an algorithm with a teacher such as algorithm=opsd"
            yield f"algorithm.advantage=none: {cfg.name} would learn nothing from its rollouts; {remedy}"
        if self.kl_coef and self.kl_estimator == "k1":
            why = f"its gradient is zero in the mean, so that algorithm.kl_coef={self.kl_coef:g} would add noise alone"
            yield f"algorithm.kl_estimator=k1: {why}; set algorithm.kl_estimator=k2 or k3"
        why = f"since algorithm.surrogate={self.surrogate}"
        for name, keys in KEYS_OF_SURROGATES.items():
            if self.surrogate != name:
                yield from self.idle(keys, why, f"algorithm.surrogate={name}")
        ignored = {"cispo": ["clip_low"], "sapo": ["clip_low", "clip_high"]}.get(self.surrogate, [])
        yield from self.idle(ignored, why, "algorithm.surrogate=ppo_clip")
        if self.surrogate == "dppo" and self.ratio != "token":
            why = "algorithm.surrogate=dppo looks at the probability of each token"
            yield f"algorithm.ratio=sequence: {why}; set algorithm.ratio=token"
        if self.sampler_correction == "none":
            yield from self.idle(["sampler_cap"], "since nothing is corrected", "algorithm.sampler_correction=token")
        if not self.learns_from_rewards:
            why = f"since {cfg.name} learns from no rewards"
            yield from self.idle(["overlong_share"], why, "another algorithm.advantage")
        if self.retry != 1 and self.refills:
            yield (
                f"algorithm.retry={self.retry:g}, algorithm.refills={self.refills}: both replace problems that teach "
                "nothing; set algorithm.refills=0 or algorithm.retry=1"
            )
