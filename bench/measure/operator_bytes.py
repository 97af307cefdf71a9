"""Bytes that each operator reads and writes, counted while operators are called: traffic without a formula of ours."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators that write their first argument without reading it.
OVERWRITING = ("copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_")
SELECTIONS = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)


class Operands(TorchDispatchMode):
    """Counts the bytes that each operator reads and writes; an operator of our own is one, whatever it launches.

    A tensor that is two arguments of an operator is read once; one that is changed in place is read and written. A
    selection counts the selected elements. Views and empty tensors are free. Bytes that an operator reads twice or
    keeps for itself are not seen: only a cache could move less.

    Attributes:
        bytes: bytes counted so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.bytes += bytes_of(func, args, kwargs or {}, result)
        return result


def bytes_of(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Returns the bytes that one call has read and written; see `Operands`.

    Args:
        operator: an operator's overload, such as `torch.ops.aten.add.Tensor`.
        args: the call's arguments.
        kwargs: the call's keyword arguments.
        result: what the call returned.
    """
    name = operator._schema.name.removeprefix("aten::")
    if operator.is_view or "empty" in name:
        return 0
    if operator in SELECTIONS:
        return 2 * (args[2] if name == "index_put_" else result).nbytes
    parameters = operator._schema.arguments
    given = dict(zip((p.name for p in parameters), args, strict=False)) | kwargs
    written = [given[p.name] for p in parameters if p.alias_info and p.alias_info.is_write and p.name in given]
    unread = {p.name for p in parameters if p.is_out} | ({parameters[0].name} if name in OVERWRITING else set())
    read = _by_place([value for key, value in given.items() if key not in unread])
    if name == "convolution_backward" and all(kwargs.get("output_mask", args[-1])[:2]):
        read[-1] = args[0].nbytes  # two convolutions in one operator, and each reads dy
    return sum(read.values()) + sum(_by_place((written, result)).values())


def _by_place(tree: Any) -> dict[int, int]:
    """Returns the bytes of each tensor in `tree` by its address, so that none counts twice."""
    return {t.data_ptr(): t.nbytes for t in tree_leaves(tree) if isinstance(t, torch.Tensor)}
