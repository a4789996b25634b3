"""A W&B sweep of a table's runs: a file for `wandb sweep`, whose agents make one run at a time (`expo wandb run`)."""

from collections.abc import Sequence
from typing import Any

from expo.config import UserError
from expo.tables.planned import PlannedRun
from expo.tables.request import Request
from expo.tables.sweep import name_of

AGENT = "${env} ${interpreter} -P -m ${program} wandb run"
ONLINE = ("logger=wandb", "logger.wandb.mode=online")  # an agent's runs are W&B's


def sweep_file(request: Request, arguments: Sequence[str], project: str, entity: str) -> dict[str, Any]:
    """Return the sweep as W&B reads it.

    Its grid is arm × seed where the plan's runs are all of them; where an arm has no seeds, it is one parameter `run`,
    so that there is no run that the plan does not have. Args: arguments, those that the plan was asked for with.
    """
    runs = request.runs()
    arms, seeds = (list(dict.fromkeys(values)) for values in ([r.arm for r in runs], [r.seed for r in runs]))
    is_grid = len(arms) * len(seeds) == len(runs)
    grid = {"arm": arms, "seed": seeds} if is_grid else {"run": [name_of(run) for run in runs]}
    logger = [] if any(a.startswith("logger=") for a in arguments) else ONLINE
    column = request.plan.columns[-1]  # that of the table's differences
    return {
        "name": request.title,
        "description": request.plan.title,
        "project": project,
        **({"entity": entity} if entity else {}),
        "program": "expo",
        "method": "grid",
        **({"metric": {"name": column, "goal": "maximize"}} if column.startswith("pass@") else {}),
        "parameters": {name: {"values": values} for name, values in grid.items()},
        "command": [*AGENT.split(), *arguments, *logger, "${args_no_hyphens}"],
    }


def find_run(runs: Sequence[PlannedRun], arm: str, seed: str, run: str) -> PlannedRun:
    """Return the run that an agent names, by `run`, or `arm` and `seed`. Raises UserError where the plan has none."""
    wanted = run or f"{arm}-s{seed}"
    by_name = {name_of(r): r for r in runs}
    if wanted not in by_name:
        named = f"run={run}" if run else f"arm={arm}, seed={seed}"
        raise UserError(f"{named}: no such run in the plan; use one of {', '.join(by_name)}")
    return by_name[wanted]
