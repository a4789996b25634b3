"""Tensors that pretend to be on an accelerator: the CPU computes, and mixing them with the CPU's is an error, as it is
on a GPU.

A mode sees every call of a torch function. It tells tensors on the accelerator by a mark, says of them that their
device is ELSEWHERE, marks what comes of them, and raises where the two kinds meet.
"""

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = torch.device("privateuseone:0")
MARK = "_is_elsewhere"
# Which take tensors of both kinds: a copy, and an index from the CPU.
MOVES = {"to", "copy_", "type_as", "set_", "_to_copy"}
INDEXED = {"__getitem__", "__setitem__"}
# Which read a tensor's numbers into Python: from anywhere, but numpy from the CPU alone.
READS = {
    "_has_compatible_shallow_copy_type",
    "is_floating_point",
    "is_complex",
    "tolist",
    "item",
    "__bool__",
    "__int__",
    "__float__",
    "__len__",
    "__repr__",
    "__format__",
    "__index__",
    "numel",
    "size",
    "dim",
    "equal",
}


class Mixed(RuntimeError):
    """Tensors of two devices met."""


def is_elsewhere(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and getattr(value, MARK, False)


def mark(value: Any, there: bool) -> Any:
    def one(tensor: Any) -> Any:
        if isinstance(tensor, torch.Tensor):
            setattr(tensor, MARK, there)
        return tensor

    return tree_map(one, value)


class Elsewhere(TorchFunctionMode):
    """See the module. `calls` counts what was computed on the accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __enter__(self) -> Any:
        self.patches = ExitStack()
        make = torch.Tensor._make_subclass  # of parameters, which no mode sees

        def make_marked(cls: Any, data: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
            made: torch.Tensor = mark(make(cls, data, *rest, **more), is_elsewhere(data))
            return made

        self.patches.enter_context(mock.patch.object(torch.Tensor, "_make_subclass", staticmethod(make_marked)))
        # What checkpointing asks of a device's module.
        module = SimpleNamespace(_initialized=False)
        self.patches.enter_context(mock.patch.object(torch, ELSEWHERE.type, module, create=True))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.patches.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        owner = getattr(func, "__self__", None)  # of a property's getter or setter
        if name == "__get__" and owner is torch.Tensor.device:
            return ELSEWHERE if is_elsewhere(args[0]) else func(*args)
        if name == "__get__":
            return mark(func(*args), is_elsewhere(args[0]))
        if name == "__set__":
            func(*args)
            if owner is torch.Tensor.data:
                mark(args[0], is_elsewhere(args[1]))
            return None
        tensors = [t for t in tree_leaves([list(args), kwargs]) if isinstance(t, torch.Tensor)]
        there = any(is_elsewhere(t) for t in tensors)
        if name == "__deepcopy__":  # what was copied before is beside it
            return mark(func(*args, **kwargs), is_elsewhere(args[0]))
        if name in ("cpu", "numpy"):
            if name == "numpy" and there:
                raise Mixed("numpy() of a tensor on the accelerator")
            return mark(args[0].clone() if there else func(*args, **kwargs), False)
        wanted = (
            [
                v
                for v in (*args, *kwargs.values())
                if isinstance(v, torch.device) or (isinstance(v, str) and v in (str(ELSEWHERE), "cpu"))
            ]
            if name in MOVES or "device" in kwargs
            else []
        )
        if wanted or name in MOVES:
            if wanted:
                goes = torch.device(wanted[-1]).type == ELSEWHERE.type
            else:  # like another tensor, or another number format of this one
                others = [t for t in args[1:] if isinstance(t, torch.Tensor) and name != "copy_"]
                goes = is_elsewhere((others or args)[0])
            args, kwargs = tree_map(_to_cpu, (tuple(args), kwargs))
            made = func(*args, **kwargs)
            if name in MOVES and made is args[0] and goes != is_elsewhere(made):
                made = made.detach().clone() if isinstance(made, torch.nn.Parameter) else made.clone()
            return mark(made, goes)
        if name not in READS:
            self._check(name, func, args, tensors, there)
        self.calls += there
        made = func(*args, **kwargs)
        return made if name in READS else mark(made, there)

    def _check(self, name: str, func: Any, args: Any, tensors: list[torch.Tensor], there: bool) -> None:
        if name in INDEXED and there and is_elsewhere(args[0]):
            tensors = [args[0], *(t for t in args[2:] if isinstance(t, torch.Tensor))]
        if there and any(not is_elsewhere(t) and t.ndim for t in tensors):
            shapes = [(tuple(t.shape), "accelerator" if is_elsewhere(t) else "CPU") for t in tensors]
            raise Mixed(f"{resolve_name(func) or name}: {shapes}")


def _to_cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == ELSEWHERE.type:
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value == str(ELSEWHERE) else value
