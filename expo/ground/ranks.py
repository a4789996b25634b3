"""The processes of one run, one for each device. Each of them holds the whole of a step; only work is dealt out.

What has no single right answer (a sampled token, a verdict that may time out, a measured number) is made by one process
and shared, so that all of them take the same branches and end with the same weights.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

# For one part of a step: who watches over the processes ends them when one is gone, long before that.
LONGEST = timedelta(hours=4)
# What torch says where a connection is gone; it has no error of its own for all of them.
OF_CONNECTION = ("Connection closed", "Connection reset", "remote process exited", "Broken pipe")
T = TypeVar("T")
LOST = 75  # exit code of a process that has ended because another one was gone

# The file through which the processes that expo starts on one machine find each other; torchrun and Slurm name an
# address.
MEETING = "EXPO_MEETING"


@dataclass(frozen=True)
class Ranks:
    """This process among the `count` of a run. With one, nothing is dealt and nothing is sent."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Return whether this is the process that writes files, logs and lines on the terminal."""
        return self.rank == 0

    def own(self, items: Sequence[T]) -> list[T]:
        return list(items[self.rank :: self.count])

    def whole(self, results: Sequence[T]) -> list[T]:
        """Gather the shares of all processes: return their results in the order of the items before they were dealt."""
        if self.count == 1:
            return list(results)
        shares = self._gather(list(results))
        return [shares[i % self.count][i // self.count] for i in range(sum(map(len, shares)))]

    def by_first(self, make: Callable[[], T]) -> T:
        """Return the result of `make` in the first process, on all processes; the others only wait for it."""
        if self.count == 1:
            return make()
        import torch.distributed as dist

        results: list[Any] = [make() if self.first else None]
        dist.broadcast_object_list(results, src=0)
        result: T = results[0]
        return result

    def add_up(self, sums: MutableMapping[str, float], before: Mapping[str, float]) -> None:
        """Sum over all processes what each has added to `sums` since they were `before`."""
        if self.count == 1:
            return
        added = self._gather({name: value - before.get(name, 0.0) for name, value in sums.items()})
        for name in sorted(set().union(*added)):
            sums[name] = before.get(name, 0.0) + sum(share.get(name, 0.0) for share in added)

    def add_gradients(self, parameters: Iterable[Any]) -> None:
        """Sum every parameter's gradient over all processes (devices); it stays None where no process has one."""
        if self.count == 1:
            return
        import torch
        import torch.distributed as dist

        trained = [p for p in parameters if p.requires_grad]
        if not trained:
            return
        has_gradient = torch.tensor([p.grad is not None for p in trained], dtype=torch.int32, device=trained[0].device)
        dist.all_reduce(has_gradient, op=dist.ReduceOp.MAX)
        waiting = []
        for p, anywhere in zip(trained, has_gradient.tolist(), strict=True):
            if anywhere:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                waiting.append(dist.all_reduce(p.grad, async_op=True))
        for work in waiting:
            work.wait()

    def agree(self, values: Sequence[float], what: str) -> None:
        """Raise Apart where numbers that have to be the same in all processes are not. A NaN is the same as a NaN."""
        if self.count > 1 and len(set(self._gather(repr(values)))) > 1:
            raise Apart(f"{what} are not the same on the {self.count} devices of this run")

    def _gather(self, value: T) -> list[T]:
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values


ALONE = Ranks()


class Apart(Exception):
    """Processes of one run have different weights. Checkpoints are those of earlier steps."""


def share_of_cores(processes: int) -> str:
    """Return how many threads each of so many processes gets; with 0 or less, there are as many as cores."""
    # A Slurm job has only some of its node's cores. macOS cannot say which.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return str(max(1, cores // (processes if processes > 0 else cores)))


def is_rank() -> bool:
    """Return whether this process is one of several of a run: expo or torchrun has started them."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_watched() -> bool:
    """Return whether expo watches over the run's processes: it has the run's lock, and tells why one has ended."""
    return MEETING in os.environ


def lost_another(error: Exception) -> bool:
    """Return whether an error says no more than that another process of the run is gone."""
    several = "RANK" in os.environ  # Lightning takes WORLD_SIZE away when it ends
    return several and isinstance(error, RuntimeError) and any(word in str(error) for word in OF_CONNECTION)


@contextmanager
def joined(gpu: bool) -> Iterator[Ranks]:
    """Join the other processes of the run, where there are any. Args: gpu, whether the run computes on GPUs."""
    if not is_rank():
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    meeting = os.environ.get(MEETING)
    dist.init_process_group(
        # Plain objects go by way of the CPU.
        "cpu:gloo,cuda:nccl" if gpu else "gloo",
        init_method=f"file://{meeting}" if meeting else "env://",
        rank=rank,
        world_size=count,
        timeout=LONGEST,
    )
    try:
        yield Ranks(rank, count)
    finally:
        dist.destroy_process_group()
