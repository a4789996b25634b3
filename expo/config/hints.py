"""Keys of `hints=`: what all-wrong groups are helped with."""

from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from expo.config.key import Config, Rules, key, option


@dataclass
class HintsConf:
    """All-wrong groups are made again under a prompt that holds a hint."""

    _target_: str = MISSING
    gives_hints: ClassVar[bool] = True

    @property
    def needs_solutions(self) -> bool:
        return False

    @property
    def writer(self) -> str | None:
        """Return which policy writes hints: current, reference, or None."""
        return None


@option("hints", "none", formerly="expo.hints.NoHints")
class NoHintsConf(HintsConf):
    """No hints."""

    _target_: str = "expo.step.hints.NoHints"
    gives_hints: ClassVar[bool] = False


@option("hints", "expert_prefix", formerly="expo.hints.ExpertPrefix")
class PrefixConf(HintsConf):
    """The beginning of the expert's solution (POPE)."""

    _target_: str = "expo.step.hints.ExpertPrefix"
    keep: int = key(0, low=0, help="rollouts of a group that stay as they are, without a hint")
    share_low: float = key(0.2, low=0, high=1)
    """where a hint begins the completion (an expert's solution; a self-made one without prompts.solve_with_hint), the
    share of it that is shown is drawn uniformly between this and share_high, for each problem and step"""
    share_high: float = key(0.8, low=0, high=1, help="see share_low")
    instructed: bool = key(False, absent=False)
    """show an expert's beginning in the prompt, with prompts.go_on asking to go on from it; false, and on the ladder:
    the completion begins with it"""

    @property
    def needs_solutions(self) -> bool:
        return True

    def rules(self, cfg: Config) -> Rules:
        if self.share_low > self.share_high:
            yield f"hints.share_low={self.share_low}: above hints.share_high={self.share_high}; set it to that or less"

    def templates(self) -> list[tuple[bool, str, str]]:
        """Return (whether it is used, its key in prompts, the placeholder it must have) of each template of hints."""
        return [(self.instructed, "go_on", "{beginning}")]


@option("hints", "self_made", formerly="expo.hints.SelfHint")
class SelfHintConf(PrefixConf):
    """A hint that the policy writes itself, seeing the answer (NuRL)."""

    _target_: str = "expo.step.hints.SelfHint"
    keep: int = key(1, low=0, help="rollouts of a group that stay as they are, without a hint")
    explainer: str = key("reference", choices=("reference", "current"), help="which policy writes the hint")
    sees: str = key("answer", choices=("answer", "solution"), absent="answer")
    """what it sees while it writes: the answer (prompts.hint, NuRL), or the expert's solution
    (prompts.hint_from_solution, SAGE); on the ladder the answer"""
    stages: int = key(1, low=1, high=2, absent=1)
    """2: it explains the answer first (prompts.explain), and then makes a hint of its explanation (prompts.abstract,
    NuRL); on the ladder 1"""
    gradient: str = key("hint", choices=("hint", "question"), absent="hint")
    """the prompt under which a rollout made with a hint in words is trained on: the one with the hint, or the question
    alone, as if the policy had thought of it itself"""
    measure_every: int = key(10, low=0, identity=False)
    """steps between measuring how far right rollouts rely on a hint in words (forward passes only); 0: never"""

    @property
    def writer(self) -> str | None:
        return self.explainer

    @property
    def needs_solutions(self) -> bool:
        return self.sees == "solution"

    def templates(self) -> list[tuple[bool, str, str]]:
        return [
            (self.sees == "solution" and self.stages == 1, "hint_from_solution", "{solution}"),
            (self.stages == 2, "abstract", "{explanation}"),
        ]

    def rules(self, cfg: Config) -> Rules:
        if self.instructed:
            why = "a self-made hint has prompts of its own"
            yield f"hints.instructed=true: {why}; set hints.instructed=false, or hints=expert_prefix"
        if self.stages != 1 and self.sees != "answer":
            yield "hints.stages=2: explains the answer first; set hints.sees=answer or hints.stages=1"
        yield from super().rules(cfg)
