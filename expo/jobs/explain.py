"""`expo explain`: write the explanations of a run ahead, into the bank that `expo train` takes them from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from expo.config import Config, UserError
from expo.runs.hub import ask_hub
from expo.tables.render import wide_console

HEADINGS = (
    "level", "written", "used", "tokens", "log π(c|q) per token", "answer lift in nats", "sound", "dropped because",
)  # fmt: skip


@dataclass(frozen=True)
class Explanation:
    """Measured properties of one explanation; None where one was not measured."""

    level: int | str | None
    rejected: str | None
    tokens: int
    logp: float | None  # log π(c|q) per token
    lift: float | None  # log π(a*|q, c) - log π(a*|q, own rollout)
    sound: bool | None


def explain(cfg: Config) -> int:
    """Fill the bank of a run, train nothing, and print the properties of its explanations. Returns the exit code."""
    if not cfg.positives.from_bank(cfg.algorithm):
        raise UserError(
            f"positives: {cfg.name} has nothing that can be written ahead; it takes positives.explainer=reference, "
            "positives.bank=true, and an algorithm whose steps explain just their own problems (no refills, no "
            "retry, no DPO)"
        )
    ask_hub([cfg])
    # Here, since torch and its friends take seconds to import.

    from expo.jobs.process import set_up_process
    from expo.jobs.wiring import build_run
    from expo.step.experience import Batch, Timer
    from expo.step.positives.bank import BankedEngine
    from expo.step.positives.properties import with_lift, with_logp
    from expo.verifier.pool import Verifier

    set_up_process(cfg)
    with Verifier(cfg.verifier, final=cfg.prompts.final) as verifier:
        module, _, account = build_run(cfg, verifier)
        account.show()
        pipeline, tools, explanations = module.pipeline, module.pipeline.tools, list[Explanation]()
        engine = pipeline.engines.explanations
        assert isinstance(engine, BankedEngine)
        for step in range(cfg.trainer.max_steps):
            batch = Batch.of(module.sampler.batch(step), tools, step)
            everyone = range(len(batch.problems))
            written = engine.generate(pipeline.source.requests(batch, {}, everyone, tools), tools.sampling)
            candidates = pipeline.source.candidates(batch, {}, everyone, written, tools)
            asked = {i: answered for i, some in candidates.items() if (answered := [c for c in some if c.ids])}
            groups = pipeline.verify(batch, {i: [] for i in everyone})
            measured = with_logp(pipeline.scorer, groups, asked)
            if pipeline.source.measure_every and step % pipeline.source.measure_every == 0:
                groups, _, _ = pipeline.roll_out(batch, 1, [], Timer())
                measured = with_lift(pipeline.scorer, groups, measured)
            for problem, c in [(batch.problems[i], c) for i, some in measured.items() for c in some]:
                sound = problem.oracle(problem.question, c.text).sound if problem.oracle else None
                measures = (c.rejected, len(c.ids), c.logp_given_q, c.answer_lift, sound)
                explanations.append(Explanation(problem.level, *measures))
        pipeline.engines.close()
    levels = sorted({e.level for e in explanations if e.level is not None})
    print(f"{len(explanations)} explanations for {cfg.trainer.max_steps} steps, in {engine.bank.folder}")
    table = Table(*HEADINGS)
    for level in [*(levels if len(levels) > 1 else []), None]:
        table.add_row(str(level or "all"), *_cells([e for e in explanations if level in (None, e.level)]))
    wide_console().print(table, markup=False)
    return 0


def _cells(explanations: Sequence[Explanation]) -> list[str]:
    reasons = Counter(e.rejected for e in explanations if e.rejected)
    return [
        str(len(explanations)),
        f"{100 * (len(explanations) - reasons.total()) / len(explanations):.1f} %" if explanations else "–",
        _mean("{:.1f}", [e.tokens for e in explanations]),
        _mean("{:.3f}", [e.logp for e in explanations if e.logp is not None]),
        _mean("{:.1f}", [e.lift for e in explanations if e.lift is not None]),
        _mean("{:.1f} %", [100.0 * e.sound for e in explanations if e.sound is not None]),
        ", ".join(f"{reason} {100 * n / len(explanations):.1f} %" for reason, n in reasons.most_common()) or "–",
    ]


def _mean(form: str, values: Sequence[float]) -> str:
    return form.format(sum(values) / len(values)) if values else "–"
