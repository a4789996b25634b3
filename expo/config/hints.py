"""Keys of `hints=`: what all-wrong groups are helped with."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omegaconf import MISSING

from expo.config.key import Rules, key, option
from expo.config.positives import EXPLAINERS

if TYPE_CHECKING:
    from expo.config.run import Config


@dataclass
class HintsConf:
    """All-wrong groups are made again under a prompt that holds a hint."""

    _target_: str = MISSING
    gives_hints: ClassVar[bool] = True
    needs_solutions: ClassVar[bool] = False  # of the data set

    @property
    def writer(self) -> str | None:
        """Return which policy writes hints: current, reference, or None."""
        return None


@option("hints", "none", formerly="expo.hints.NoHints")
@dataclass
class NoHintsConf(HintsConf):
    """No hints."""

    _target_: str = "expo.step.hints.NoHints"
    gives_hints: ClassVar[bool] = False


@option("hints", "expert_prefix", formerly="expo.hints.ExpertPrefix")
@dataclass
class PrefixConf(HintsConf):
    """The beginning of the expert's solution (POPE)."""

    _target_: str = "expo.step.hints.ExpertPrefix"
    needs_solutions: ClassVar[bool] = True
    keep: int = key(0, low=0, help="rollouts of a group that stay as they are, without a hint")
    share_low: float = key(
        0.2,
        low=0,
        high=1,
        help="where a hint begins the completion (an expert's solution; a self-made one without prompts.solve_with_hint), "
        "the share of it that is shown is drawn uniformly between this and share_high, for each problem and step",
    )
    share_high: float = key(0.8, low=0, high=1, help="see share_low")

    def rules(self, cfg: "Config") -> Rules:
        yield (
            self.keep < cfg.algorithm.group_size,
            f"hints.keep={self.keep}: not fewer than algorithm.group_size={cfg.algorithm.group_size}, so that nothing would be "
            f"made again; set hints.keep={max(cfg.algorithm.group_size - 1, 0)} or less",
        )
        yield (
            self.share_low <= self.share_high,
            f"hints.share_low={self.share_low}: above hints.share_high={self.share_high}; set it to that or less",
        )
        yield (
            self.writer != "snapshot",
            "hints.explainer=snapshot: nothing refreshes a snapshot for hints; set hints.explainer=reference or current",
        )
        yield (
            "{hint}" in (cfg.prompts.solve_with_hint or "{hint}"),
            "prompts.solve_with_hint: has no {hint}; put {hint} where the hint goes",
        )


@option("hints", "self_made", formerly="expo.hints.SelfHint")
@dataclass
class SelfHintConf(PrefixConf):
    """A hint that the policy writes itself, seeing the answer (NuRL)."""

    _target_: str = "expo.step.hints.SelfHint"
    needs_solutions: ClassVar[bool] = False
    keep: int = key(1, low=0, help="rollouts of a group that stay as they are, without a hint")
    explainer: str = key("reference", choices=EXPLAINERS, help="which policy writes the hint: reference or current")

    @property
    def writer(self) -> str | None:
        return self.explainer
