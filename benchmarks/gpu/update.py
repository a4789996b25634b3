"""P2: one update of the largest shape in every way there is to make it, beside what `expo plan` says."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.place import Check, NotRun, Place, least, needs
from benchmarks.gpu.right import some_rows
from benchmarks.gpu.varlen import varlen, varlen_kernel
from expo.config import Config
from expo.cost import seconds
from expo.cost.machine import Device, this_machine
from expo.cost.memory import held, updating
from expo.cost.run import Work
from expo.cost.shape import shape_of
from expo.jobs.wiring import load_model
from expo.model.modes import causal_lm
from expo.model.scoring import score

TRIES, KERNELS = 3, 12
SIZES = {"cuda": ((8, 128, 1024), (2, 512, 3584)), "cpu": ((4, 12, 20), (2, 16, 40))}  # rows, prompt, completion


def large(place: Place, *overrides: str) -> Config:
    """Return the config of the largest shape as it is trained."""
    half = ("trainer.precision=bf16-mixed",) if place.gpu else ()
    return place.config("algorithm=grpo", f"model.path={place.shapes[-1]}", *half, *overrides)


@dataclass(frozen=True)
class Trained:
    """The model that the checks of this part share, its optimizer, and what the device does."""

    model: Any
    optimizer: torch.optim.Optimizer
    machine: Device


@cache
def loaded(place: Place) -> Trained:
    """Load the model, for all checks of this part."""
    model, _, _ = load_model(large(place))
    return Trained(model, torch.optim.AdamW(model.parameters(), 1e-6, fused=True), this_machine(0))


def of_way(
    way: Callable[[Place, Any], AbstractContextManager[None]], size: int, shared: bool, *overrides: str
) -> Check:
    """Return the check that takes steps in a way. Args: way, a context for the model; size, which of SIZES; overrides,
    as `expo plan` knows it."""

    def update(place: Place) -> Mapping[str, Any]:
        rows, prompt, completion = SIZES[place.device][size]
        first = loaded(Place(place.device, place.folder.parent / "loaded"))
        model, optimizer = first.model, first.optimizer
        batch = some_rows(model.device, rows, prompt, completion, group=rows)
        cfg = large(
            place, f"trainer.share_prompts={str(shared).lower()}", f"trainer.micro_batch_size={rows}",
            f"algorithm.group_size={rows}", "trainer.problems_per_step=1", f"rollout.max_prompt_tokens={prompt}",
            f"rollout.max_completion_tokens={completion}", *overrides,
        )  # fmt: skip
        work = Work(cfg, shape_of(causal_lm(model).config), 1)

        def backward() -> None:
            score(model, batch, shared=shared).mean().backward()

        def step() -> None:
            optimizer.step()
            optimizer.zero_grad()

        with way(place, model):
            optimizer.zero_grad()
            backward()
            step()
            place.peak_gb()
            spent = least(place, backward, TRIES)
            stepped = least(place, step, 1)
        products = seconds.update_flops(work)
        parts = held(work, first.machine) | updating(work)
        return {
            "predicted": {
                "update, s": seconds.update(work, first.machine),
                "peak GB": (sum(parts.values()) - parts["reserved"]) / 1e9,
            },
            "forward and backward, s": spent,
            "optimizer, s": stepped,
            "share of the measured FLOPs": products / spent / first.machine.rate(work.computed),
            "peak GB": place.peak_gb(),
        }

    return update


def as_it_is(place: Place, model: Any) -> AbstractContextManager[None]:
    """Change nothing."""
    return nullcontext()


def by_varlen(place: Place, model: Any) -> AbstractContextManager[None]:
    """Attend behind shared prompts by torch's varlen kernel."""
    return varlen(varlen_kernel(place.gpu))


@contextmanager
def checkpointed(place: Place, model: Any) -> Iterator[None]:
    """Compute activations again in the backward pass."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


@contextmanager
def compiled(place: Place, model: Any) -> Iterator[None]:
    """Compile the layers, one program for all of them."""
    layers = causal_lm(model).get_decoder().layers
    for layer in layers:
        layer.compile(backend="inductor" if place.gpu else "eager")
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


def liger(place: Place, model: Any) -> AbstractContextManager[None]:
    """Use Liger's kernels from now on: they stay in the model, so that this comes last."""
    needs("liger_kernel")
    if not place.gpu:
        raise NotRun("Liger's kernels need a GPU")
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2

    apply_liger_kernel_to_qwen2(
        rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False, model=model
    )
    return nullcontext()


def kernels(place: Place) -> Mapping[str, Any]:
    """Name the kernels that take most of a pass."""
    first = loaded(Place(place.device, place.folder.parent / "loaded"))
    rows, prompt, completion = SIZES[place.device][0]
    batch = some_rows(first.model.device, rows, prompt, completion, group=rows)
    with profile(activities=[ProfilerActivity.CUDA if place.gpu else ProfilerActivity.CPU]) as found:
        score(first.model, batch).mean().backward()
        place.wait()
    first.optimizer.zero_grad()
    times = {each.key[:80]: each.self_device_time_total if place.gpu else each.self_cpu_time_total for each in found.key_averages()}  # fmt: skip  # noqa: E501
    whole = sum(times.values()) or 1.0
    return {name: f"{times[name] / whole:.1%}" for name in sorted(times, key=times.__getitem__, reverse=True)[:KERNELS]}


def checks(place: Place) -> dict[str, Check]:
    """Return the checks of this part: the ways that are there now, then those that might be."""
    name = f"the update of {place.shapes[-1]}"
    return {
        f"{name}, each row with its prompt": of_way(as_it_is, 0, False),
        f"{name}, shared by a mask": of_way(as_it_is, 0, True),
        f"{name}, shared by varlen": of_way(by_varlen, 0, True),
        f"{name}, kernels": kernels,
        f"{name}, checkpointing": of_way(checkpointed, 0, False, "model.gradient_checkpointing=true"),
        f"{name}, 4k tokens": of_way(as_it_is, 1, False),
        f"{name}, 4k tokens, shared by a mask": of_way(as_it_is, 1, True),
        f"{name}, 4k tokens, shared by varlen": of_way(by_varlen, 1, True),
        f"{name}, compiled layers": of_way(compiled, 0, False),
        f"{name}, Liger": of_way(liger, 0, False),
    }
