"""One of the ways of `VLLMEngine._send`: weights to a vLLM on another GPU through vLLM's own transfer API, without the
host or a file. `VLLMEngine.verify` checks that they arrived."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from torch import Tensor

LONGEST_S = 600.0  # of one transfer

Weights = Callable[[], Iterator[tuple[str, Tensor]]]


T = TypeVar("T")


def in_time(action: Callable[[], T], gone: threading.Event) -> T:
    """Return the result of an action that would wait for ever for a process that has ended, as NCCL does. Raises
    TimeoutError, and what the action raises; one that hangs stays in a thread. Args: gone, set when it has."""
    future: Future[T] = Future()

    def act() -> None:
        try:
            future.set_result(action())
        except BaseException as error:  # raised where it is waited for
            future.set_exception(error)

    until = time.monotonic() + LONGEST_S
    threading.Thread(target=act, daemon=True).start()
    while not future.done() and not gone.is_set() and time.monotonic() < until:
        wait([future], 0.05)
    if not future.done():
        raise TimeoutError("its process has ended" if gone.is_set() else f"it takes over {LONGEST_S:g} s")
    return future.result()


def open_transfer(llm: Any, info: Any, weights: Weights) -> Any:
    """Connect to `llm` and return the sender, whose `send_weights()` sends `weights()`. Args: info, a `TrainerInitInfo`
    of vLLM's, whose backend `llm` was started with."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    # Once: the same at every send.
    described = [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights()]

    class Source(WeightSource):  # type: ignore[misc]  # without vLLM installed it is of no known type
        def metadata(self) -> list[ParamMeta]:
            return described

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return weights()

    return WeightTransferTrainerFactory.trainer_init(info, client=Client(llm), source=Source())


class Client:
    """vLLM's `VLLMWeightSyncClient` for an `LLM` object, of which vLLM 0.32 has only those for Ray and HTTP."""

    def __init__(self, llm: Any):
        self.llm = llm

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.llm.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        self.llm.start_weight_update()

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        self.llm.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.llm.finish_weight_update(weight_version)


def nccl_info() -> Any:
    """Return the address of the transfer: this process is rank 0, the engine rank 1, at a free port of this machine."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
    from vllm.utils.network_utils import get_open_port

    return NCCLTrainerInitInfo("127.0.0.1", get_open_port(), world_size=2, rank=0)
