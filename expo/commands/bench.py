"""`expo bench`: seconds and memory of the parts of the demo's ExP-GRPO step, on an otherwise idle machine."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from expo.config import UserError
from expo.runs.directory import device_name, git_commit

STAGES = ("rollout", "verify", "explain", "update", "sync")
# Steps 31 to 50 of the demo's run: rewards are mixed, so that most groups have an advantage and the update is at its dearest.
STEPS, WARM_UP = 50, 30


def main(arguments: list[str]) -> int:
    """Run the demo's ExP-GRPO for STEPS steps in a process of its own and print medians over the last of them."""
    if arguments:
        raise UserError(f"{arguments[0]}: bench takes no arguments; remove it")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "expo", "train", "algorithm=exp_grpo", f"output_dir={folder}",
                   f"trainer.max_steps={STEPS}", "evaluation.every=0", "dataset.eval_limit=4"]  # fmt: skip
        started = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        run = next(Path(folder).glob("*/*/metrics.jsonl")).parent
        metrics = (run / "metrics.jsonl").read_text().splitlines()
        peak = json.loads((run / "summary.json").read_text())["peak_memory_mb"]
    steps = [line for line in map(json.loads, metrics) if "time/rollout_s" in line][WARM_UP:]
    medians = {stage: statistics.median(step[f"time/{stage}_s"] for step in steps) for stage in STAGES}
    whole = statistics.median(sum(step[f"time/{stage}_s"] for stage in STAGES) for step in steps)
    table = Table(title=f"ExP-GRPO, ladder level 5, 128 rollouts and 16 explanations: medians of {len(steps)} steps")
    for heading in ("stage", "seconds", "share"):
        table.add_column(heading)
    for stage, value in [*medians.items(), ("whole step", whole)]:
        table.add_row(stage, f"{value:.3f}", f"{100 * value / whole:.0f} %")
    tokens = statistics.median(step["throughput/tokens_per_s"] for step in steps)
    length = statistics.mean(step["completion/length_mean"] for step in steps)
    console = Console()
    console.print(table)
    console.print(
        f"{tokens:.0f} generated tokens/s, completions of {length:.0f} tokens, peak memory {peak['process']:.0f} MiB "
        f"and {peak['verifier_worker']:.0f} MiB in each verifier worker, "
        f"{seconds:.0f} s in all\n{device_name()}, commit {git_commit()}, {time.strftime('%Y-%m-%d')}"
    )
    return 0
