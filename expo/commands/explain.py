"""`expo explain`: write the explanations of a run ahead, into the bank that `expo train` takes them from."""

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from expo.config import Config, UserError
from expo.runs.hub import ask_hub
from expo.tables.render import wide_console


def explain(cfg: Config) -> int:
    """Fill the bank of a run, train nothing, and print what its explanations are like. Returns the exit code."""
    if not cfg.positives.from_bank(cfg.algorithm):
        raise UserError(
            f"positives: {cfg.name} has nothing that can be written ahead; it takes positives.explainer=reference, "
            "positives.bank=true, and an algorithm whose steps explain just their own problems (no refills, no DPO)"
        )
    ask_hub([cfg])
    # Here, since torch and its friends take seconds to import.
    import torch

    from expo.commands.wiring import build_run, set_up_process
    from expo.data import ladder
    from expo.step.experience import Batch
    from expo.step.positives.bank import BankedEngine
    from expo.step.positives.properties import with_logp
    from expo.step.positives.sources import explanations_of
    from expo.verifier.pool import Verifier

    set_up_process(cfg)
    with Verifier(cfg.verifier) as verifier:
        module, _, _ = build_run(cfg, verifier)
        pipeline, tools, found = module.pipeline, module.pipeline.tools, []
        engine = pipeline.engines.explanations
        assert isinstance(engine, BankedEngine)
        mixed = torch.autocast(module.policy.device.type, torch.bfloat16, cfg.trainer.precision == "bf16-mixed")
        for step in range(cfg.trainer.max_steps):
            batch = Batch.of(module.sampler.batch(step), tools, step)
            everyone = range(len(batch.problems))
            with mixed:  # as a training step is
                written = engine.generate(explanations_of(pipeline.source, batch, tools), tools.sampling)
            candidates = pipeline.source.candidates(batch, {}, everyone, written, tools)
            for c in with_logp(pipeline.scorer, batch, [c for c in candidates if c.ids]):
                problem = batch.problems[c.problem]
                sound = ladder.check_steps(problem.question, c.text).sound if cfg.dataset.is_ladder else None
                found.append((problem.level, c.rejected, len(c.ids), c.logp_given_q, sound))
        pipeline.engines.close()
    levels = sorted({row[0] for row in found if row[0] is not None})
    print(f"{len(found)} explanations for {cfg.trainer.max_steps} steps, in {engine.bank.folder}")
    table = Table()
    for heading in ("level", "written", "used", "tokens", "log π(c|q) per token", "sound", "dropped because"):
        table.add_column(heading)
    for level in [*(levels if len(levels) > 1 else []), None]:
        table.add_row(str(level or "all"), *_cells([row[1:] for row in found if level in (None, row[0])]))
    wide_console().print(table)
    return 0


def _cells(rows: Sequence[tuple[str | None, int, float | None, bool | None]]) -> list[str]:
    count = max(len(rows), 1)
    reasons = Counter(rejected for rejected, *_ in rows if rejected)
    sound = [s for *_, s in rows if s is not None]
    return [
        str(len(rows)),
        f"{100 * (len(rows) - reasons.total()) / count:.1f} %",
        f"{sum(tokens for _, tokens, _, _ in rows) / count:.1f}",
        f"{sum(logp or 0.0 for *_, logp, _ in rows) / count:.3f}",
        f"{100 * sum(sound) / len(sound):.1f} %" if sound else "–",
        ", ".join(f"{reason} {100 * n / count:.1f} %" for reason, n in reasons.most_common()) or "–",
    ]
