"""`expo explain`: write the explanations of a run ahead, into the bank that `expo train` takes them from."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from expo.config import Config, UserError
from expo.runs.hub import ask_hub
from expo.tables.render import wide_console

# What is measured of each explanation, where it is, by heading. The lift is log π(a*|q, c) - log π(a*|q, own rollout).
MEASURES = {"tokens": "{:.1f}", "log π(c|q) per token": "{:.3f}", "answer lift in nats": "{:.1f}", "sound": "{:.1f} %"}


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
        pipeline, tools, explanations = module.pipeline, module.pipeline.tools, list[dict[str, Any]]()
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
                sound = 100.0 * problem.oracle(problem.question, c.text).sound if problem.oracle else None
                measured_here = zip(MEASURES, (len(c.ids), c.logp_given_q, c.answer_lift, sound), strict=True)
                explanations.append({"level": problem.level, "rejected": c.rejected, **dict(measured_here)})
        pipeline.engines.close()
    levels = sorted({e["level"] for e in explanations if e["level"] is not None})
    print(f"{len(explanations)} explanations for {cfg.trainer.max_steps} steps, in {engine.bank.folder}")
    table = Table("level", "written", "used", *MEASURES, "dropped because")
    for level in [*(levels if len(levels) > 1 else []), None]:
        table.add_row(
            "all" if level is None else str(level), *_cells([e for e in explanations if level in (None, e["level"])])
        )
    wide_console().print(table, markup=False)
    return 0


def _cells(explanations: Sequence[dict[str, Any]]) -> list[str]:
    count, reasons = len(explanations), Counter(e["rejected"] for e in explanations if e["rejected"])
    cells = [str(count), f"{100 * (count - reasons.total()) / count:.1f} %" if count else "–"]
    for name, form in MEASURES.items():
        values = [e[name] for e in explanations if e[name] is not None]
        cells.append(form.format(sum(values) / len(values)) if values else "–")
    return [*cells, ", ".join(f"{reason} {100 * n / count:.1f} %" for reason, n in reasons.most_common()) or "–"]
