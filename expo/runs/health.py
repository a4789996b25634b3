"""Watch a run's scalars against their own history: a policy that collapses is named, with the step where that began."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, pstdev
from typing import Any, Self

from expo.config import Config
from expo.config.key import shown
from expo.config.own_code import changed_code

WINDOW = 10  # steps whose mean is compared with the best mean of earlier ones
FEWEST = 2  # steps of the first earlier means: a policy may collapse in its third step
NOISE = 3  # standard deviations of single steps, which a change has to exceed

Point = tuple[int, float]  # step, value


@dataclass(frozen=True)
class Sign:
    """Sign of a policy that collapses: a scalar that falls or rises far beyond its earlier values.

    The change against the best earlier mean must reach `least`, in the scalar's own unit, and the share `share` of that
    mean. Falling entropy is no sign: it is what learning looks like.
    """

    metric: str
    falls: bool
    least: float
    share: float
    meaning: str
    window: int = WINDOW  # values of which means are taken


SIGNS = (
    Sign("reward/mean", True, 0.1, 0.5, "it no longer solves what it solved"),
    Sign("reward/unparseable_frac", False, 0.3, 0.0, "its completions have no answer that can be read"),
    Sign("policy/entropy", False, 0.3, 3.0, "its tokens become random"),
    Sign("completion/length_mean", True, 5.0, 0.9, "it ends at once"),
    Sign("completion/truncated_frac", False, 0.5, 0.0, "it no longer ends"),
    Sign("policy/kl", False, 1.0, 3.0, "it leaves the reference (nats per token)"),
    Sign("distill/divergence", False, 0.01, 1.0, "it and its teacher part again (nats per token)"),
    Sign("positive/leak_gap", False, 1.0, 3.0, "explanations lean on the shown answer (nats per token)"),
)
AT_WILL = "positive/leak_gap"  # is measured as often as `positives.measure_every` says, which must not change a run
ACTED_ON = {sign.metric for sign in SIGNS} - {AT_WILL}  # by `trainer.on_collapse`
# Of evaluations, each of which is of many problems: the interval over problems says what is noise.
EVALUATED = (Sign("pass@1", True, 0.1, 0.5, "it no longer solves what it solved", window=1),)


@dataclass(frozen=True)
class StuckSign:
    """Sign of a run that is dead from its start: a scalar at its worst value in each of the first DEAD_AFTER steps."""

    worst = 1.0  # all are shares
    metric: str
    cause: str
    remedy: str

    @property
    def meaning(self) -> str:
        return f"{self.cause}: {self.remedy}"


DEAD_AFTER = 5
STUCK = (
    StuckSign(
        "completion/truncated_frac",
        "no completion ends",
        "raise rollout.max_completion_tokens, or show an example: prompts.examples; if they ramble on after the "
        "answer, the model's end token is not its chat template's (model.chat_template)",
    ),
    StuckSign(
        "reward/unparseable_frac",
        "no completion has an answer where verifier.extract looks",
        "make prompts.solve ask for it, or show an example: prompts.examples; expo samples shows what was written",
    ),
    StuckSign(
        "reward/all_wrong_frac",
        "no rollout is right, so that rewards teach nothing",
        "begin with easier problems (dataset.levels) or more rollouts (algorithm.group_size)"
        ", or positives=self_explanation; expo verify says how answers are compared",
    ),
    StuckSign(
        "reward/all_right_frac",
        "every rollout is right, so that rewards teach nothing",
        "take harder problems (dataset.levels)",
    ),
)


@dataclass(frozen=True)
class Collapse:
    """A scalar's mean over the last steps, `now`, against its best earlier one, `best`. Steps are those done."""

    metric: str
    meaning: str
    best: float
    now: float
    began: int
    noticed: int

    def __str__(self) -> str:
        if self.metric in {still.metric for still in STUCK} and self.best == self.now:
            always = f"{self.metric} is {self.now:g} in all of {self.noticed} steps"
            return f"the run is dead from its first step: {always}: {self.meaning}"
        change = f"{self.metric} went from {self.best:.3g} to {self.now:.3g} from step {self.began} on"
        return f"the policy collapses: {change} (noticed at step {self.noticed}): {self.meaning}"


def collapses_of(summary: Mapping[str, Any]) -> list[Collapse]:
    """Return the collapses in a summary, without malformed ones."""
    entries = summary.get("collapses")
    names, numbers = Collapse.__dataclass_fields__.keys(), ("best", "now", "began", "noticed")
    return [
        Collapse(**c)
        for c in (entries if isinstance(entries, list) else [])
        if isinstance(c, dict) and c.keys() == names and all(isinstance(c[name], int | float) for name in numbers)
    ]


def why_none_is_right(
    rows: Sequence[Mapping[str, Any]], written: Sequence[Mapping[str, Any]], cfg: Config
) -> list[str]:
    """Return the causes with remedy, and a completion of the commonest; [] where one is right, or there are none.

    Args: rows, with verdict and truncated; written, some of them, with completion and answer as well.
    """
    if not rows or any(row["verdict"] == "correct" for row in rows):
        return []
    unread = [row for row in rows if row["verdict"] == "unparseable"]
    cut, mute = sum(row["truncated"] for row in unread), 2 * len(unread) >= len(rows)
    ends, unreadable, wrong, _ = STUCK
    still = wrong if not mute else ends if 2 * cut >= len(unread) else unreadable
    explains = ", or positives=self_explanation" if not cfg.positives.writer else ""
    remedy = still.remedy.replace(", or positives=self_explanation", explains)
    extract, limit = cfg.verifier.extract, cfg.rollout.max_completion_tokens
    place = "boxed answer" if extract == "boxed" else f"answer where verifier.extract={extract} looks"
    if judge := getattr(cfg.verifier, "function", ""):  # which may have raised, or said neither right nor wrong
        place += f", or none that {judge} could judge"
    counts = {
        f"have no {place}": len(unread),
        f"were cut off at {limit} tokens": cut,
        "have a wrong answer": len(rows) - len(unread),
    }
    causes = [f"{count} of {len(rows)} {what}" for what, count in counts.items() if count]
    one = next((row for row in written if (row["verdict"] == "unparseable") == mute), None)
    text = " ".join("".join(c if c.isprintable() else " " for c in one["completion"]).split()) if one else ""
    text = text if len(text) <= SHOWN else f"{text[: SHOWN * 2 // 3]} … {text[-SHOWN // 3 :]}"
    shows = [f"one of them, where {shown(one['answer'], 40)} is right: {text or '(nothing)'}"] if one else []
    return [f"nothing is right: {', '.join(causes)}: {remedy}", *shows]


SHOWN = 240  # characters of a completion


def shares_told(metrics: Mapping[str, Any]) -> str:
    """Say what percentage of an evaluation's completions was cut off or had no answer; "" where it has no record."""
    names = {"eval/truncated_frac": "cut off", "eval/unparseable_frac": "without an answer"}
    return ", ".join(f"{100 * metrics[name]:.1f} % {what}" for name, what in names.items() if name in metrics)


def nothing_learned(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """Say why a run has learned nothing at all, or nothing from positives or hints; None where it has. Args: lines."""
    steps = [line for line in lines if "policy/grad_norm" in line]
    if not steps:
        return None
    rejected = any(line.get("positive/filtered_frac") for line in steps)
    filtered = "; every positive was rejected, see positive/filtered_*_frac and positives.filters" if rejected else ""
    norms = [line["policy/grad_norm"] for line in steps]
    if not any(norm is not None and math.isfinite(norm) and norm > 0 for norm in norms):
        return f"no step of {len(steps)} had a gradient that it could follow{filtered}"
    if filtered and not any(line.get("positive/used_frac") for line in steps):
        return f"no step of {len(steps)} had a positive{filtered}"
    if all(line.get("hint/used_frac") == 0 for line in steps):
        return f"no step of {len(steps)} had a group that was given a hint"
    return None


def marks_of(summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return warnings about a finished run's numbers. Args: its summary and metrics.jsonl."""
    code, steps = summary.get("own_code"), summary.get("step", 0)
    marks = {
        "learned nothing": bool(nothing_learned(lines)),
        "lacks scalars": len({line["step"] for line in lines if "loss/total" in line}) < steps,
        "other code": bool(changed_code(code if isinstance(code, dict) else {})),
    }
    return [mark for mark, holds in marks.items() if holds and summary.get("status", "done") == "done"]


@dataclass
class SignState:
    """Follows one sign over a run. `best` is the best mean so far of up to `window` values, all before the latest
    `window` values."""

    sign: Sign
    recent: list[float] = field(default_factory=list)  # of the last 2 windows of steps that have the scalar
    best: float | None = None
    on: bool = False  # whether the collapse that was told still lasts

    def see(self, value: float, spread: float = 0.0) -> float | None:
        """Take a step's value. Returns the mean of the last `window` steps where a collapse is noticed now, else None.

        Args: spread, by how much the value alone may differ from the truth.
        """
        window = self.sign.window
        self.recent = [*self.recent, value][-2 * window :]
        earlier, last = self.recent[:-window], self.recent[-window:]
        if len(earlier) < min(FEWEST, window):
            return None
        mean = fmean(earlier)
        if self.best is None or self.change(self.best, mean) < 0:
            self.best = mean
        now, worse = fmean(last), self.change(self.best, fmean(last))
        least = max(self.sign.least, self.sign.share * abs(self.best))
        if self.on:
            self.on = worse >= least / 2
            return None
        self.on = worse >= least and worse > max(NOISE * pstdev(last), spread)
        return now if self.on else None

    def change(self, before: float, now: float) -> float:
        """Return by how much `now` is worse than `before`; negative: better."""
        return before - now if self.sign.falls else now - before

    def began(self, points: Sequence[Point], now: float) -> int:
        """Return the step after the last of all `points` whose value is nearer to the best mean than to `now`."""
        assert self.best is not None
        middle = (self.best + now) / 2
        good = [step for step, value in points if self.change(middle, value) < 0]
        return max(good, default=0) + 1


@dataclass
class Health:
    """All signs of a run. `state` is plain data that resumes it."""

    watches: dict[str, SignState] = field(
        default_factory=lambda: {sign.metric: SignState(sign) for sign in (*SIGNS, *EVALUATED)}
    )
    dead: dict[str, int] = field(default_factory=dict)  # steps from the first one on in which a scalar is at its worst

    def see(self, metrics: Mapping[str, float | None]) -> list[tuple[SignState, float]]:
        """Watch the scalars of a step, or of an evaluation. Returns the signs that collapse from now on, each with its
        mean now; undefined scalars are skipped."""
        collapsing = []
        for name, watch in self.watches.items():
            value = metrics.get(name)
            low, high = metrics.get(f"{name}_lo") or 0.0, metrics.get(f"{name}_hi") or 0.0
            if value is not None and math.isfinite(value) and (now := watch.see(value, high - low)) is not None:
                collapsing.append((watch, now))
        return collapsing

    def see_dead(self, metrics: Mapping[str, float | None], step: int) -> list[StuckSign]:
        """Watch a step for signs of a dead run. Returns, once, after DEAD_AFTER steps, those always at their worst.

        Args: step, steps done. A run that learns from positives, hints or a teacher, or from parts of a reward, is not
        dead where all answers are wrong.
        """
        learns = any(map(metrics.get, ("positive/used_frac", "hint/reward_mean", "distill/guided_frac")))
        some = metrics.get("reward/mean") not in (None, 0.0, 1.0) and metrics.get("policy/grad_norm") != 0.0
        learns = learns or some
        for still in STUCK:
            value = metrics.get(still.metric)
            equal = still.metric.startswith("reward/all_")
            if value == still.worst and not (equal and learns) and self.dead.get(still.metric, 0) == step - 1:
                self.dead[still.metric] = step
        if step != DEAD_AFTER:
            return []
        dead = [still for still in STUCK if self.dead.get(still.metric) == step]
        # Where none can be read, all are wrong for that reason.
        return dead[:1] if dead and dead[0].metric != "reward/all_wrong_frac" else dead

    @property
    def reward(self) -> float | None:
        """Return the mean reward of the last WINDOW steps; None before there are so many."""
        last = self.watches["reward/mean"].recent[-WINDOW:]
        return fmean(last) if len(last) == WINDOW else None

    @property
    def collapsing(self) -> bool:
        """Return whether a reported collapse still lasts that a run may go by."""
        return any(watch.on for name, watch in self.watches.items() if name != AT_WILL)

    def state(self) -> dict[str, Any]:
        """Return the state of all watches, as plain data for a checkpoint."""
        watches = {name: {k: v for k, v in asdict(w).items() if k != "sign"} for name, w in self.watches.items()}
        return watches | {"dead": self.dead}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        watches = {s.metric: SignState(s, **state.get(s.metric, {})) for s in (*SIGNS, *EVALUATED)}
        return cls(watches, state.get("dead", {}))
