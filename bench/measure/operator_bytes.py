"""Memory traffic, found without a formula: the bytes that operators read and write, counted as they are called."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators that write their first argument without reading it.
OVERWRITING = ("copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_")
SELECTIONS = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)


class Operands(TorchDispatchMode):
    """A counter of the bytes that operators read and write; a custom operator counts as one, whatever it launches.

    A tensor that is two arguments of an operator counts as read once; one that is changed in place counts as read and
    written. A selection counts the selected elements. Views and empty tensors count nothing. Repeated reads and an
    operator's scratch memory are not seen, so that the count (`bytes`) is the least traffic unless a cache keeps data.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.bytes += bytes_of(func, args, kwargs or {}, result)
        return result


def bytes_of(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Returns the bytes that one call of an operator, such as `torch.ops.aten.add.Tensor`, moved; see `Operands`."""
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
        read[-1] = args[0].nbytes  # one operator runs two convolutions, and each reads dy
    return sum(read.values()) + sum(_by_place((written, result)).values())


def _by_place(tree: Any) -> dict[int, int]:
    """Returns the bytes of each tensor in `tree` by its address, so that each counts once."""
    return {t.data_ptr(): t.nbytes for t in tree_leaves(tree) if isinstance(t, torch.Tensor)}
