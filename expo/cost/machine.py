"""Speed of a device, and the part of it that a run reaches."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import psutil
import torch

SQUARE = 1024  # rows and columns of the matrices that are multiplied; four times as many on a GPU
READ = 2**26  # numbers that are read to find the bandwidth: 256 MiB, more than any cache of a CPU holds


@dataclass(frozen=True)
class Machine:
    flops: float  # of a product of float32 matrices
    bytes: float  # read from memory, by a product of a float32 matrix with a vector

    @classmethod
    @torch.no_grad()
    def measured(cls, threads: int) -> "Machine":
        """Measure this CPU with a number of threads: the best of several tries: only other work makes one slower."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        square, wide, vector = torch.rand(SQUARE, SQUARE), torch.rand(READ // 4096, 4096), torch.rand(4096)
        try:
            return cls(2 * SQUARE**3 / _least(lambda: square @ square), 4 * READ / _least(lambda: wide @ vector))
        finally:
            torch.set_num_threads(before)


@dataclass(frozen=True)
class Device:
    """A device as a plan needs it. What no data sheet has is guessed for a GPU, measured on a CPU (docs/scaling.md)."""

    name: str
    memory: float  # bytes
    flops: Mapping[str, float]  # per second, by number format, without sparsity
    bandwidth: float  # bytes per second of its memory
    link: float  # bytes per second to each other device of the run, one way
    training: float = 0.4  # share of the FLOPs that forward and backward passes reach
    thin: float = 0.4  # the same of products of few rows, as in decoding
    reading: float = 0.6  # share of the bandwidth that decoding reaches
    # What launching one layer of one decoding step takes, by engine.
    layer_s: Mapping[str, float] = field(default_factory=dict)
    reserved: float = 4e9  # bytes: the context, workspaces, fragmentation

    @property
    def gpu(self) -> bool:
        """Return whether it is a GPU: of a CPU, float32 alone is measured."""
        return "bfloat16" in self.flops

    def rate(self, format_: str) -> float:
        """Return FLOPs per second in a number format; in that of the first where it is not known."""
        return self.flops.get(format_, next(iter(self.flops.values())))


GPU_LAYER_S = {"transformers": 5e-4, "vllm": 2e-5}  # guess: Python and a dozen kernels; a captured graph
DEVICES = {
    "a100": Device("a100", 80e9, {"bfloat16": 312e12, "float32": 19.5e12}, 2.0e12, 250e9, layer_s=GPU_LAYER_S),
    "h100": Device("h100", 80e9, {"bfloat16": 989e12, "float32": 67e12}, 3.35e12, 400e9, layer_s=GPU_LAYER_S),
    "h200": Device("h200", 141e9, {"bfloat16": 989e12, "float32": 67e12}, 4.8e12, 400e9, layer_s=GPU_LAYER_S),
}
# Measured with Qwen2.5-0.5B's shape in float32 on two cores of an AMD EPYC (AVX-512), 2026-11-28: products of two to
# eight rows read a matrix at 0.37 to 0.56 of the bandwidth at which one row does; their FLOPs come on top at full rate.
ON_CPU = {"training": 0.6, "thin": 1.0, "reading": 0.5, "reserved": 0.8e9}
CPU_LAYER_S = {"transformers": 6e-4, "vllm": 6e-4}


def this_machine(threads: int) -> Device:
    """Measure this machine's GPU, or its CPU where it has none. Takes seconds."""
    if torch.cuda.is_available():
        return _this_gpu()
    speed, total = Machine.measured(threads or torch.get_num_threads()), float(psutil.virtual_memory().total)
    link, rates = speed.bytes / 4, {"float32": speed.flops}
    return Device("this CPU", total, rates, speed.bytes, link, layer_s=CPU_LAYER_S, **ON_CPU)


@torch.no_grad()
def _this_gpu() -> Device:
    size = 8 * SQUARE
    square = torch.rand(size, size, device="cuda")
    rates = {"float32": 2 * size**3 / _least(lambda: square @ square)}
    half = square.bfloat16()
    rates["bfloat16"] = 2 * size**3 / _least(lambda: half @ half)
    many = torch.rand(16 * READ, device="cuda")
    bandwidth = 4 * 16 * READ / _least(lambda: many.sum())
    name = torch.cuda.get_device_name()
    known = next((d for d in DEVICES.values() if d.name in name.lower()), DEVICES["h100"])
    total = float(torch.cuda.get_device_properties(0).total_memory)
    # Of the peak that was measured, too, eager transformers are assumed to reach the `training` of the data sheet's.
    return replace(known, name=name, memory=total, flops=rates, bandwidth=bandwidth, reading=0.8)


def _least(action: Callable[[], object]) -> float:
    """Return the least seconds of ten tries, after one that does not count."""

    def timed() -> float:
        started = time.perf_counter()
        action()
        if torch.cuda.is_initialized():  # a GPU works on when the call is over
            torch.cuda.synchronize()
        return time.perf_counter() - started

    timed()
    return min(timed() for _ in range(10))
