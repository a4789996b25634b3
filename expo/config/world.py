"""Keys of `dataset.world`: what the ladder's problems are, what its base policy has read, and how its expert writes."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from expo.config.key import Config, Rules, declaration, key

MOST_PARTS = 8


@dataclass
class WorldConf:
    """A world of the ladder (expo/ladder/problems.py). Everything but the expert shapes the corpus that `expo pretrain`
    trains on."""

    familiarity: list[float] = key([0.85, 0.72, 0.5, 0.3, 0.1], low=0, high=1, absent=[0.85, 0.72, 0.5, 0.3, 0.1])
    """how often the corpus gives a symbol of levels 1 to 5 its true meaning"""
    misconception: float = key(0.5, low=0, high=1, absent=0.5)
    """how often it gives a symbol of level 5 the wrong meaning that is its own"""
    parts: list[int] = key([1, 2, 3, 4, 5], low=1, high=MOST_PARTS, absent=[1, 2, 3, 4, 5])
    """parts of a problem of levels 1 to 5"""
    verbose: bool = key(False, absent=False)
    """write each part down as asked, computed twice and stated: twice the tokens"""
    slips: float = key(0.0, low=0, high=1, absent=0.0)
    """share of the parts of the corpus's explanations whose step follows a belief and not the shown answer; the final
    statement is the shown answer all the same"""
    fudged: float = key(0.0, low=0, high=1, absent=0.0)
    """share of those parts that write the shown result behind a meaning that follows a belief: a step that does not
    hold"""
    answer_first: float = key(0.0, low=0, high=1, absent=0.0)
    """share of its explanations that state the answer before the steps, too"""
    expert_own: float = key(0.0, low=0, high=1, absent=0.0)
    """share of the expert's solutions that are in the policy's own style, whatever dataset.expert_style is"""

    @property
    def corpus(self) -> dict[str, Any]:
        """Return the keys that shape the corpus, and so the base policy, where they are not the shipped ladder's."""
        return {
            f.name: value
            for f in dataclasses.fields(self)
            if f.name != "expert_own" and not declaration(f).is_absent(value := getattr(self, f.name))
        }

    def rules(self, cfg: Config) -> Rules:
        for name in ("familiarity", "parts"):
            if len(getattr(self, name)) != 5:
                yield f"dataset.world.{name}={getattr(self, name)}: not one for each of levels 1 to 5; give five values"
        if self.slips + self.fudged > 1:
            yield f"dataset.world.fudged={self.fudged}: with dataset.world.slips={self.slips} over 1; lower one of them"
        if self.familiarity[-1] + self.misconception > 1:
            yield (
                f"dataset.world.misconception={self.misconception}: with familiarity {self.familiarity[-1]} of level 5 "
                f"over 1; set it to {1 - self.familiarity[-1]:g} or less"
            )


CLEAR = WorldConf()
