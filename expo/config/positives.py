"""Keys of `positives=`: where positive samples come from and how they enter the loss."""

from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from expo.config.algorithm import AlgorithmConf
from expo.config.key import Config, Rules, key, option, unused

FILTERS = ("truncated", "unparseable", "wrong", "leak", "early_answer")


@dataclass
class PositiveLossConf:
    """How positives are learned from: by an SFT term with a weight, or as members of their problems' groups."""

    weight: float = key(0.04, low=0, high=1e4, pairs=False, help="weight β of the SFT term at the start")
    schedule: str = key("constant", choices=("constant", "linear", "cosine", "all_wrong_fraction"), pairs=False)
    """how the weight changes over the run, or with the share of all-wrong groups"""
    aggregation: str = key("token_mean", choices=("sequence_mean", "token_mean", "constant"), pairs=False)
    """weights of the SFT term's tokens"""
    use: str = key("auxiliary", choices=("auxiliary", "group_member"))
    """GRPO: an SFT term of its own, or one more member of the group, with reward 1"""
    member_shaping: float = key(0.0, low=0)
    """γ of a group member's shaped ratio p / (p + γ) (LUFFY); 0: the ratio is 1"""
    member_baseline: str = key("all", choices=("own", "all"))
    """whose mean reward is a group's baseline: the policy's own rollouts', or all members'"""

    @property
    def joins_groups(self) -> bool:
        """Return whether a positive is a member of its problem's group."""
        return self.use == "group_member"

    def rules(self, cfg: Config) -> Rules:
        if self.joins_groups:
            why = "since a group member has an advantage and no loss of its own"
            yield from unused(self, "positives.", ["weight", "aggregation", "schedule"], why, "positives.use=auxiliary")
        else:
            names, why = ["member_shaping", "member_baseline"], "since no positive joins a group"
            yield from unused(self, "positives.", names, why, "positives.use=group_member")
        if not self.weight:
            names = ["aggregation", "schedule"]
            yield from unused(self, "positives.", names, "since positives.weight=0", "positives.weight=1")


@dataclass
class PositivesConf:
    """Where positive samples come from."""

    _target_: str = MISSING
    gives_positives: ClassVar[bool] = True
    needs_solutions: ClassVar[bool] = False  # of the data set

    @property
    def writer(self) -> str | None:
        """Return which policy writes positives: current, reference, snapshot, or None where nothing is written."""
        return None

    @property
    def why_not_extendable(self) -> str | None:
        """Return why a longer run cannot go on from a shorter one: its first steps differ. None where it can."""
        ours = self._target_.startswith("expo.")
        return None if ours else f"expo does not know whether {self._target_} looks at the share of the run done"

    def from_bank(self, algorithm: AlgorithmConf) -> bool:
        """Return whether all explanations can be written ahead, for several runs (`expo.step.positives.bank`)."""
        return False

    @property
    def waits_for(self) -> str:
        """Return what the answer to be shown waits for: `nothing`, `group` (its rollouts are judged) or `hints`. A
        gate may wait longer: `explanation_timing`."""
        return "nothing"

    @property
    def explains_all(self) -> bool:
        """Return whether every problem gets a positive, whatever the verdicts on its rollouts."""
        return False

    @property
    def positive_loss(self) -> PositiveLossConf:
        """Return how its positives are learned from."""
        return PositiveLossConf(weight=0.0)


@option("positives", "none", formerly="expo.positives.sources.NoPositives")
class NoPositivesConf(PositivesConf):
    """No positives."""

    _target_: str = "expo.step.positives.sources.NoPositives"
    gives_positives: ClassVar[bool] = False


@dataclass
class SourceConf(PositiveLossConf, PositivesConf):
    """A source of positives: which problems get one, and which candidates are dropped."""

    gate: str = key("always", choices=("always", "all_wrong"), help="which problems get a positive")
    measure_every: int = key(10, low=0, identity=False, counted_as=1)
    """steps between measuring the positives' likelihood, leak gap and answer lift (forward passes only); 0: never"""
    filters: list[str] = key([*FILTERS], choices=FILTERS)
    """why a candidate is dropped; the first that holds is counted; []: none is dropped"""

    @property
    def why_not_extendable(self) -> str | None:
        if self.schedule in ("linear", "cosine"):
            return f"positives.schedule={self.schedule} changes with the share of the run done"
        return super().why_not_extendable

    @property
    def explains_all(self) -> bool:
        return self.gate == "always"

    @property
    def positive_loss(self) -> PositiveLossConf:
        return self

    def doubts(self, cfg: Config) -> Rules:
        if self.measure_every and cfg.prompts.final_is_unmarked:
            yield (
                f"prompts.final={cfg.prompts.final}: does not tell where a final statement begins, so that the answer "
                "lift of a positive tells how likely it is to state its answer twice; positives.measure_every=0 "
                "measures none"
            )


@option("positives", "expert", formerly="expo.positives.sources.ExpertSolution")
class ExpertConf(SourceConf):
    """The data set's own worked solution."""

    _target_: str = "expo.step.positives.sources.ExpertSolution"
    needs_solutions: ClassVar[bool] = True


@option("positives", "self_explanation", formerly="expo.positives.sources.SelfExplanation")
class SelfExplanationConf(SourceConf):
    """The policy's explanation of the known answer (ExPO)."""

    true_answer_waits_for: ClassVar[str] = "nothing"  # `waits_for`, where the true answer is shown
    _target_: str = "expo.step.positives.sources.SelfExplanation"
    explainer: str = key("reference", choices=("current", "reference", "snapshot"))
    """which policy writes the explanations; `current` can collapse, where training erodes its skill to explain"""
    snapshot_every: int = key(20, above=0, help="steps between refreshes of the snapshot when explainer=snapshot")
    samples: int = key(1, above=0)
    """explanations per problem, of which `selection` keeps one (threshold: all that are good enough)"""
    selection: str = key("first", choices=("first", "most_likely", "two_properties", "threshold", "oracle_sound"))
    """which of a problem's explanations is learned from"""
    rank_weight: float = key(0.5, low=0, high=1)
    """two_properties: weight of the rank by log π(c|q); the rest is that of the rank by answer lift"""
    min_logp: float = key(-1.0, finite=False, help="threshold: least mean log π(c|q) per token; -inf: any")
    min_lift: float = key(0.0, finite=False, help="threshold: least answer lift in nats; -inf: any")
    shown_answer: str = key("true", choices=("true", "wrong", "shuffled"))
    """controls: explain a wrong answer (of one of the policy's own rollouts), or another problem's"""
    bank: bool = key(True, identity=False)
    """explainer=reference: write explanations for many steps ahead, in whole batches, and keep them for other runs;
    false: as they are asked for, by a copy of the initial policy that stays in memory (with LoRA and rollout=hf, by the
    policy without its adapter)"""
    cache_steps: int = key(0, low=0, help="steps for which a problem's explanation is used again; 0: never")
    cache_max_drop: float = key(0.5, low=0)
    """a cached explanation is dropped early when its mean log π(c|q) per token has fallen by more than this"""
    leak_phrases: list[str] = key([])
    """an explanation that contains one of these (any case) gives away that the answer was shown, and is dropped"""

    @property
    def writer(self) -> str | None:
        return self.explainer

    def from_bank(self, algorithm: AlgorithmConf) -> bool:
        written_ahead = self.explainer == "reference" and self.waits_for != "hints"
        return self.bank and written_ahead and algorithm.explains_by_step and self._target_.startswith("expo.")

    @property
    def waits_for(self) -> str:
        # The wrong answer is that of a rollout which is left after hints.
        return "hints" if self.shown_answer == "wrong" else self.true_answer_waits_for

    def rules(self, cfg: Config) -> Rules:
        yield from super().rules(cfg)
        for setting, value, names in (
            ("explainer", "snapshot", ["snapshot_every"]),
            ("selection", "two_properties", ["rank_weight"]),
            ("selection", "threshold", ["min_logp", "min_lift"]),
        ):
            if (other := getattr(self, setting)) != value:
                why = f"since positives.{setting}={other}"
                yield from unused(self, "positives.", names, why, f"positives.{setting}={value}")
        if self.shown_answer == "shuffled" and cfg.trainer.problems_per_step < 2:
            why = "the shuffled answer is that of another problem of the step"
            yield f"trainer.problems_per_step=1: {why}; set it to 2 or more"
        if not self.cache_steps:
            why = "since positives.cache_steps=0"
            yield from unused(self, "positives.", ["cache_max_drop"], why, "positives.cache_steps=20")
        if rounds := getattr(cfg.algorithm, "restart_every", 0):
            why = f"since a round has its own snapshot (algorithm.restart_every={rounds})"
            yield from unused(self, "positives.", ["snapshot_every"], why, "algorithm.restart_every=0")
        if self.joins_groups and self.selection == "threshold":
            yield (
                "positives.selection=threshold: one positive joins a group, and the others would be left out; "
                "set positives.selection=two_properties or first, or positives.use=auxiliary"
            )


@option("positives", "star", formerly="expo.positives.sources.STaR")
class StarConf(SelfExplanationConf):
    """The policy's own right sample; where it has none, its explanation of the known answer (STaR)."""

    true_answer_waits_for: ClassVar[str] = "group"  # only where no rollout of its own is right
    _target_: str = "expo.step.positives.sources.STaR"

    def rules(self, cfg: Config) -> Rules:
        yield from super().rules(cfg)
        if self.joins_groups:
            why = "a right rollout would join its own group a second time"
            yield f"positives.use=group_member: {why}; set positives.use=auxiliary, or positives=self_explanation"
        if self.cache_steps:
            why = "an old explanation would stand in for a right sample of the policy's own"
            remedy = "set positives.cache_steps=0, or positives=self_explanation"
            yield f"positives.cache_steps={self.cache_steps}: {why}; {remedy}"


@option("positives", "expert_paraphrase", formerly="expo.positives.sources.ExpertParaphrase")
class ParaphraseConf(SelfExplanationConf):
    """The expert's solution in the policy's own words: a control."""

    _target_: str = "expo.step.positives.sources.ExpertParaphrase"
    needs_solutions: ClassVar[bool] = True
    true_answer_waits_for: ClassVar[str] = "group"  # the rollouts give the length
    length_ratio: float = key(1.25, low=1)
    """a paraphrase is kept if it is at most this many times as long, or as short, as the policy's own rollouts"""
