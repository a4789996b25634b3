"""Typed configuration of what a run learns by: algorithm, positives, hints. Imports nothing heavy."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

# Names of pure functions; each module that owns the functions has a dict with exactly these keys.
Advantage = Enum("Advantage", ["group_norm", "mean", "leave_one_out"])
Ratio = Enum("Ratio", ["token", "sequence"])
Correction = Enum("Correction", ["none", "token", "sequence"])
Aggregation = Enum("Aggregation", ["sequence_mean", "token_mean", "constant"])
KL = Enum("KL", ["k1", "k2", "k3"])
Gate = Enum("Gate", ["always", "all_wrong"])
Schedule = Enum("Schedule", ["constant", "linear", "cosine", "all_wrong_fraction"])
Preference = Enum("Preference", ["sigmoid", "ipo"])
Rejected = Enum("Rejected", ["any", "wrong"])
Use = Enum("Use", ["auxiliary", "group_member"])
Baseline = Enum("Baseline", ["own", "all"])
Selection = Enum("Selection", ["first", "most_likely", "two_properties", "threshold", "oracle_sound"])
Explainer = Enum("Explainer", ["current", "reference", "snapshot"])
ShownAnswer = Enum("ShownAnswer", ["true", "wrong", "shuffled"])
Filter = Enum("Filter", ["truncated", "unparseable", "wrong", "leak", "early_answer"])
Needs = Enum("Needs", ["nothing", "positives", "hints"])


@dataclass
class AlgorithmConf:
    """What every algorithm has. Rollouts per step = trainer.problems_per_step x group_size."""

    _target_: str = MISSING
    # Rollouts per problem; 0: none.
    group_size: int = 0

    @property
    def uses_reference(self) -> bool:
        """Whether it needs the frozen initial policy."""
        return False

    @property
    def uses_snapshot(self) -> bool:
        """Whether a copy of the policy that it refreshes itself makes the rollouts."""
        return False


@dataclass
class SFTConf(AlgorithmConf):
    _target_: str = "expo.algorithms.sft.SFT"
    # Steps per round of STaR: a round's data come from the policy at its start, its training starts from the base. 0: no rounds.
    restart_every: int = 0

    @property
    def uses_reference(self) -> bool:
        return self.restart_every > 0

    @property
    def uses_snapshot(self) -> bool:
        return self.restart_every > 0


@dataclass
class DPOConf(AlgorithmConf):
    """DPO. `positives.weight` is the weight of its SFT term on the chosen completion (RPO); 0: none."""

    _target_: str = "expo.algorithms.dpo.DPO"
    group_size: int = 1
    # Steps between remaking the pairs with the current policy (online). 0: all pairs are made by the initial policy (offline).
    pairs_every: int = 0
    # Which of the policy's own rollouts is rejected: the first, or the first that is wrong.
    rejected: Rejected = Rejected.any
    preference: Preference = Preference.sigmoid
    # DPO's temperature; the paper's is not known, this is the usual one.
    beta: float = 0.1
    label_smoothing: float = 0.0

    @property
    def uses_reference(self) -> bool:
        return True


@dataclass
class GRPOConf(AlgorithmConf):
    _target_: str = "expo.algorithms.grpo.GRPO"
    group_size: int = 8
    # Passes over each batch of rollouts, one optimizer step each. The first pass gives the old log-probabilities.
    updates_per_rollout: int = 1
    advantage: Advantage = Advantage.group_norm
    ratio: Ratio = Ratio.token
    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregation: Aggregation = Aggregation.sequence_mean
    # Weight of the KL term against the frozen reference. 0: no KL term and no reference forward pass.
    kl_coef: float = 0.0
    kl_estimator: KL = KL.k3
    # Further batches of problems that a step may sample while fewer than trainer.problems_per_step groups have both right and
    # wrong rollouts; only such groups are then trained on (DAPO's dynamic sampling). 0: off.
    refills: int = 0
    # Share of rollout.max_completion_tokens, at its end, over which the reward falls by up to 1 (DAPO). 0: off.
    overlong_share: float = 0.0
    # Truncated importance sampling between the sampler's probabilities and the trainer's, and its cap.
    sampler_correction: Correction = Correction.none
    sampler_cap: float = 2.0

    @property
    def uses_reference(self) -> bool:
        return self.kl_coef > 0


@dataclass
class HintsConf:
    """What all-wrong groups are helped with: their rollouts are made again under a prompt that holds a hint."""

    _target_: str = MISSING


@dataclass
class NoHintsConf(HintsConf):
    _target_: str = "expo.hints.NoHints"


@dataclass
class PrefixConf(HintsConf):
    _target_: str = "expo.hints.ExpertPrefix"
    # Rollouts of the group that stay unhinted.
    keep: int = 0
    # Where a hint begins the completion (an expert's solution; a self-made one without prompts.solve_with_hint), the share
    # of it that is shown is drawn uniformly from this range, for each problem and step.
    share_low: float = 0.2
    share_high: float = 0.8


@dataclass
class SelfHintConf(PrefixConf):
    _target_: str = "expo.hints.SelfHint"
    keep: int = 1
    # Which policy writes the hint: reference or current.
    explainer: Explainer = Explainer.reference


@dataclass
class PositivesConf:
    """Where positive samples come from and how they enter the loss."""

    _target_: str = MISSING


@dataclass
class NoPositivesConf(PositivesConf):
    _target_: str = "expo.positives.sources.NoPositives"


@dataclass
class SourceConf(PositivesConf):
    """Positives as an SFT term beside another loss, as members of GRPO's groups, as SFT's targets or as DPO's chosen."""

    # Weight β of the SFT term at the start.
    weight: float = 0.04
    schedule: Schedule = Schedule.constant
    aggregation: Aggregation = Aggregation.token_mean
    gate: Gate = Gate.always
    # GRPO: an SFT term of its own, or one more member of the group, with reward 1.
    use: Use = Use.auxiliary
    # γ of a group member's shaped ratio p / (p + γ). 0: the ratio is 1.
    member_shaping: float = 0.0
    # Steps between measuring the positives' likelihood, leak gap and answer lift (forward passes only). 0: never.
    measure_every: int = 1
    # Whose mean reward is a group's baseline: the policy's own rollouts', or all members'.
    member_baseline: Baseline = Baseline.all
    # Why a candidate is dropped; the first that holds is counted. []: everything is trained on.
    filters: list[Filter] = field(default_factory=lambda: list(Filter))


@dataclass
class ExpertConf(SourceConf):
    _target_: str = "expo.positives.sources.ExpertSolution"


@dataclass
class SelfExplanationConf(SourceConf):
    _target_: str = "expo.positives.sources.SelfExplanation"
    # Which policy writes the explanations. `current` can collapse, where training erodes its skill to explain.
    explainer: Explainer = Explainer.reference
    # Steps between refreshes when explainer=snapshot.
    snapshot_every: int = 20
    # Explanations per problem, of which `selection` keeps one (threshold: all that are good enough).
    samples: int = 1
    selection: Selection = Selection.first
    # two_properties: weight of the rank by log π(c|q); the rest is that of the rank by answer lift.
    rank_weight: float = 0.5
    # threshold: least mean log π(c|q) per token, and least answer lift in nats.
    min_logp: float = -1.0
    min_lift: float = 0.0
    # Controls: explain a wrong answer (of one of the policy's own rollouts), or another problem's.
    shown_answer: ShownAnswer = ShownAnswer.true
    # Steps for which a problem's explanation is used again; 0: never.
    cache_steps: int = 0
    # A cached explanation is dropped early when its mean log π(c|q) per token has fallen by more than this.
    cache_max_drop: float = 0.5
    # An explanation that contains one of these (any case) gives away that the answer was shown, and is dropped.
    leak_phrases: list[str] = field(default_factory=list)


@dataclass
class StarConf(SelfExplanationConf):
    _target_: str = "expo.positives.sources.STaR"


@dataclass
class ParaphraseConf(SelfExplanationConf):
    _target_: str = "expo.positives.sources.ExpertParaphrase"
    # A paraphrase is kept if it is at most this many times as long, or as short, as the policy's own rollouts.
    length_ratio: float = 1.25
