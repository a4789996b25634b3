"""What the micro-batches and updates of one step add up to. Each metric is declared where it is made."""

from collections import defaultdict
from collections.abc import Callable

from torch import Tensor

Number = float | Tensor
TOTAL, SUM, COUNT = " total", " sum", " count"  # ends of names; what has none is a mean over updates


class StepSums(defaultdict[str, float]):
    """Sums over one step's micro-batches, updates and devices, by the names of the metrics, your own too, that they
    become. Args: updates, the optimizer steps that the step takes."""

    def __init__(self, updates: int = 1):
        super().__init__(float)
        self.updates = updates
        self.derived: dict[str, Callable[[StepSums], float | None]] = {}  # metrics that follow from several sums

    def per_update(self, name: str, value: Number) -> None:
        """Add to a metric that is a mean over updates, as each term of the loss is."""
        self[name] += _number(value)

    def total(self, name: str, value: Number) -> None:
        """Add to a metric that is the sum over the step."""
        self[name + TOTAL] += _number(value)

    def mean(self, name: str, total: Number, count: Number) -> None:
        """Add to a metric that is Σ total / Σ count; None where nothing was counted."""
        self[name + SUM] += _number(total)
        self[name + COUNT] += _number(count)

    def metrics(self) -> dict[str, float | None]:
        """Return the metrics by name, without those that begin with an underscore and only serve others. Raises
        ValueError where one name was given to two kinds of metrics."""
        metrics: dict[str, float | None] = {}
        for key, value in self.items():
            name = key.removesuffix(SUM).removesuffix(TOTAL)
            if key.endswith(COUNT):
                continue
            if name in metrics:
                raise ValueError(f"{name}: added up in two ways; give each metric a name of its own")
            if key.endswith(SUM):
                count = self.get(name + COUNT, 0.0)
                metrics[name] = value / count if count else None
            else:
                metrics[name] = value if key.endswith(TOTAL) else value / self.updates
        metrics |= {name: of(self) for name, of in self.derived.items()}
        return {name: value for name, value in metrics.items() if not name.startswith("_")}


def _number(value: Number) -> float:
    return value.item() if isinstance(value, Tensor) else value
