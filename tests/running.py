"""Whole runs, small, through the functions that a user's commands call; and what they leave."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import torch
from conftest import ROOT, compose_config

from expo import config
from expo.commands.train import train
from expo.config import check
from expo.training.checkpoints import newest_checkpoint

SMALL = [
    "trainer.problems_per_step=4",
    "algorithm.group_size=4",
    "trainer.micro_batch_size=8",
    "dataset.limit=50",
    "dataset.eval_limit=4",
    "trainer.checkpoint_every=1000",
    "evaluation.every=4",
]


def run(tmp_path: Path, *overrides: str) -> tuple[int, Path]:
    cfg = compose_config(f"output_dir={tmp_path}", *SMALL, *overrides)
    check(cfg)
    return train(cfg), config.run_dir(cfg)


def scalars(directory: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what a clock makes."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "throughput/"))} for line in lines]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(newest_checkpoint(directory), weights_only=True)
    optimizer = checkpoint["optimizer_states"][0]["state"]
    moments = {f"{i}.{k}": v for i, state in optimizer.items() for k, v in state.items()}
    return checkpoint["state_dict"] | moments


def expo(*arguments: str, cwd: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "expo", *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def grid(made: dict) -> list[dict]:
    """The settings of the runs of a W&B sweep's file, in W&B's order."""
    values = {name: parameter["values"] for name, parameter in made["parameters"].items()}
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]
