"""Style of an arm, wherever it is drawn: in the figures of a table and on the page of a report."""

from collections.abc import Iterable
from dataclasses import dataclass

# Okabe and Ito's colours, a brown and a grey: the colour-blind can tell them apart, and none is lost on black or white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#636363")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5))  # the ninth arm has the first colour again, dashed


@dataclass(frozen=True)
class Style:
    """Colour of an arm's lines and bars, and dashes of its lines (on and off, in line widths). () is a solid line.

    The bars of an arm with a dashed line are hatched.
    """

    colour: str
    dash: tuple[float, ...] = ()


def styles(arms: Iterable[str]) -> dict[str, Style]:
    """Return the style of each arm. Args: all arms of a table: an arm has its colour in every figure."""
    return {
        arm: Style(COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)])
        for i, arm in enumerate(dict.fromkeys(arms))
    }
