"""Part B: the update of three shapes, by micro-batch: seconds, share of the FLOPs, memory beside the estimate's."""

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.engine import some_rows
from benchmarks.gpu.place import Check, Place
from expo.cost.machine import this_machine
from expo.cost.shape import shape_of
from expo.jobs.wiring import load_model
from expo.model.policy import causal_lm
from expo.model.scoring import score

TRIES = 3


def of_shape(name: str) -> Check:
    """Return the check that trains a shape."""

    def update(place: Place) -> Mapping[str, Any]:
        lengths = (128, 512) if place.gpu else (12, 20)
        cfg = place.config(
            "algorithm=grpo", f"model.path={name}", *(("trainer.precision=bf16-mixed",) if place.gpu else ())
        )
        model, _, _ = load_model(cfg)
        shape, rate = shape_of(causal_lm(model).config), this_machine(0).rate("bfloat16" if place.gpu else "float32")
        optimizer = torch.optim.AdamW(model.parameters(), 1e-6, fused=True)
        found = {}
        for micro in (2, 4, 8, 16):
            batch = some_rows(model.device, micro, *lengths)
            place.peak_gb()
            try:
                spent = [_step(place, model, optimizer, batch) for _ in range(1 + TRIES)][1:]
            except torch.OutOfMemoryError:
                found[f"{micro} rows"] = {"out of memory": 1.0}
                place.tell({"shape": name, "rows": micro, **found[f"{micro} rows"]})
                break
            scored = batch.mask.sum().item()
            read = scored + sum(dict(zip(batch.prompts.tolist(), batch.prompt_lengths.tolist(), strict=True)).values())
            products = 6 * (read * shape.in_layers + scored * shape.head)
            backward, step = (median(column) for column in zip(*spent, strict=True))
            found[f"{micro} rows"] = {
                "forward and backward, s": backward,
                "optimizer, s": step,
                "share of the measured FLOPs": products / backward / rate,
                "peak GB": place.peak_gb(),
            }
            place.tell({"shape": name, "rows": micro, **found[f"{micro} rows"]})
        return {"shape": name, "FLOP/s of a product": rate, **found}

    return update


def _step(place: Place, model: Any, optimizer: torch.optim.Optimizer, batch: Any) -> tuple[float, float]:
    """Return the seconds of a pass forward and backward, and of the optimizer."""
    place.wait()
    started = time.perf_counter()
    score(model, batch, shared=True).mean().backward()
    place.wait()
    middle = time.perf_counter()
    optimizer.step()
    optimizer.zero_grad()
    place.wait()
    return middle - started, time.perf_counter() - middle


def checks(place: Place) -> dict[str, Check]:
    """Return a check for each shape, the largest first: it tells most, should the time be too short."""
    return {f"the update of {name}": of_shape(name) for name in reversed(place.shapes)}
