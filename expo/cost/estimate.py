"""Estimate of a run's cost on a device, for one line of a plan."""

from dataclasses import dataclass

from expo.config import Config
from expo.cost import seconds
from expo.cost.machine import DEVICES
from expo.cost.memory import disk, generating, memory, settled
from expo.cost.run import Work

# Of a device's memory: with more, a run may not fit. Peaks that were measured were up to 1 / 0.84 of their estimates.
SURE = 0.84


@dataclass(frozen=True)
class Cost:
    """Of one run: bytes on each device and on the disk, hours, generated tokens (completions at their longest)."""

    device: str
    devices: int
    memory: float
    hours: float
    tokens: float
    disk: float

    @property
    def fits(self) -> bool:
        return self.memory <= DEVICES[self.device].memory

    def __str__(self) -> str:
        memory = DEVICES[self.device].memory
        other = "" if self.memory <= SURE * memory else "which is tight" if self.fits else "which has less"
        fits = f", {other}: `expo plan` with the same overrides names settings that fit" if other else ""
        which = f"one {self.device}" if self.devices == 1 else f"each of {self.devices} {self.device}"
        return (
            f"estimated: {self.memory / 1e9:.0f} of {memory / 1e9:.0f} GB of {which}{fits}; "
            f"{self.hours:.1f} h; {self.tokens / 1e6:.0f} M tokens generated at most; {self.disk / 1e9:.0f} GB of disk"
        )


def estimate(cfg: Config, command: str, device: str) -> Cost:
    """Estimate what a command takes. Raises OSError where the model's config cannot be read."""
    known = DEVICES[device]
    work = settled(Work.of(cfg, None if command == "train" else 1), known)
    if command == "train":
        hours, tokens = seconds.run_seconds(work, known) / 3600, seconds.tokens(work)
        return Cost(device, work.devices, memory(work, known)["peak"], hours, tokens, disk(work)[1])
    problems = work.evaluated(command)[0] or 1000
    rows = problems * (cfg.evaluation.samples or max(cfg.k))
    if command == "diagnose":  # own, self-explained, of a wrong answer, and of another problem's
        asked, data = cfg.diagnose, cfg.dataset
        levels = (data.levels if data.eval_levels is None else data.eval_levels) or data.known_levels
        rows = (3 + asked.shuffled) * asked.samples * asked.problems * max(1, len(levels))
    size = work.held + sum(generating(work).values()) + known.reserved
    return Cost(device, 1, size, seconds.decoding(work, known, rows, rows) / 3600, float(rows * work.completion), 0.0)
