"""P6: one process that is a group of its own, by NCCL and with sharded weights; two devices where there are two."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from benchmarks.gpu.place import Check, NotRun, Place, gap, least, metrics_of
from benchmarks.gpu.right import LADDER, some_rows
from expo.jobs.wiring import load_model
from expo.model.scoring import score
from expo.rollout.sharded import shared_out


@contextmanager
def group_of_one(place: Place) -> Iterator[None]:
    """Be a group of processes: by NCCL on a GPU."""
    kind = "cpu:gloo,cuda:nccl" if place.gpu else "gloo"
    dist.init_process_group(kind, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def collectives(place: Place) -> Mapping[str, Any]:
    """Send a tensor around the group."""
    numbers = torch.ones(2**28 if place.gpu else 2**16, device=place.device)
    with group_of_one(place):
        return {
            "all-reduce, ms": 1e3 * least(place, lambda: dist.all_reduce(numbers), 3),
            "broadcast, ms": 1e3 * least(place, lambda: dist.broadcast(numbers, src=0), 3),
        }


def sharded(place: Place) -> Mapping[str, Any]:
    """Shard a model over the group: its scores and gradients have to stay."""
    half = ("trainer.precision=bf16-mixed",) if place.gpu else ()
    model, _, _ = load_model(place.config("algorithm=grpo", f"model.path={place.shapes[1]}", *half))
    batch = some_rows(model.device)

    def scored() -> tuple[torch.Tensor, float]:
        model.zero_grad()
        scores = score(model, batch)
        scores.mean().backward()
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        whole = [n.full_tensor() if hasattr(n, "full_tensor") else n for n in norms]
        return scores.detach(), torch.stack(whole).norm().item()

    plain, norm = scored()
    before = least(place, scored, 2)
    with group_of_one(place):
        copy = shared_out(model)
        ours, other = scored()
        after = least(place, scored, 2)
        copy.gather()
        with torch.no_grad():
            whole = score(copy.model, batch)
        del copy
    worst, most = max((plain - each).abs().max().item() for each in (ours, whole)), 0.5 if place.gpu else 1e-5
    assert worst < most, f"scores differ by {worst:.2g} nats"
    assert abs(other - norm) < (0.1 if place.gpu else 1e-4) * norm, f"gradients have norm {other:.4g}, not {norm:.4g}"
    return {"largest difference, nats": worst, "plain, ms": 1e3 * before, "sharded, ms": 1e3 * after}


def run(place: Place, name: str, *overrides: str) -> list[dict[str, Any]]:
    """Make a run with `expo train`. Returns its metrics."""
    folder = place.folder / name
    line = [*LADDER, "algorithm=exp_grpo", "algorithm.kl_coef=0.05", f"output_dir={folder}", "trainer.accelerator=gpu"]
    told = subprocess.run(
        [sys.executable, "-m", "expo", "train", *line, *overrides],
        capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-2000:]
    return metrics_of(folder)


def of_strategy(strategy: str) -> Check:
    """Return the check that two devices make the run of one."""

    def two(place: Place) -> Mapping[str, Any]:
        if torch.cuda.device_count() < 2:
            raise NotRun("needs two GPUs")
        one = run(place, f"one-{strategy}")
        worst = gap(one, run(place, strategy, "trainer.devices=2", f"trainer.strategy={strategy}"))
        assert worst < 1e-2, f"two devices differ from one by {worst:.2g}"
        return {"largest difference": worst}

    return two


def checks(place: Place) -> dict[str, Check]:
    """Return the checks of this part. On two processes of a CPU, tests/training/test_devices.py makes the last ones."""
    return {
        "a group of one": collectives,
        f"{place.shapes[1]} sharded over one": sharded,
        **{f"two devices, {strategy}": of_strategy(strategy) for strategy in ("ddp", "fsdp")},
    }
