"""Tables for one launch over many tensors: addresses on the device, one row for each chunk of each tensor."""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

FLOAT32_BYTES = 4
KEPT = 64  # tables kept; gradients that a loop frees and makes again return to one of a few addresses

_Key = tuple[torch.device, int, tuple[int, ...], tuple[int, ...]]
_tables: OrderedDict[_Key, Tensor] = OrderedDict()
_captured: dict[_Key, Tensor] = {}  # graphs read these as long as they live, which cannot be known here


def memory_order(x: Tensor) -> tuple[int, ...]:
    """Returns the dimensions longer than one from the outermost in memory to the innermost.

    Raises:
        ValueError: if the tensor leaves gaps in memory or overlaps itself.
    """
    order = sorted((d for d in range(x.ndim) if x.shape[d] != 1), key=lambda d: x.stride()[d], reverse=True)
    expected = 1
    for d in reversed(order):
        if x.stride(d) != expected and x.numel():
            raise ValueError(
                f"a tensor of shape {tuple(x.shape)} and strides {x.stride()} is not dense in memory; "
                "call .contiguous() where it is made"
            )
        expected *= x.shape[d]
    return tuple(order)


def lying_as(x: Tensor, like: Tensor) -> Tensor:
    """Returns `x` in the memory order of `like`, which is dense; copied if its order is another."""
    moved = any(n != 1 and a != b for n, a, b in zip(like.shape, x.stride(), like.stride(), strict=True))
    return torch.empty_like(like).copy_(x) if moved and like.numel() else x


def table(lists: Sequence[Sequence[Tensor]], block: int) -> Tensor:
    """Returns the table of several lists of float32 tensors of the same memory orders.

    A table is looked up by the addresses it holds, so it cannot be stale. Tables that a graph was captured with stay
    for good; of the others, the last `KEPT`.

    Args:
        lists: lists of dense tensors, all equally long and with equal sizes at equal positions, on one device.
        block: largest number of elements in a row.

    Returns:
        int64 [rows, len(lists) + 5] on the device: an address for each list, the number of elements, the elements of
        all tensors before the row, the tensor's first row, its number of rows, its length along dimension 0.

    Raises:
        ValueError: if a graph is being captured and the addresses are new: a copy from the host cannot be captured.
    """
    first = lists[0]
    device = first[0].device
    addresses = tuple(t.data_ptr() for tensors in lists for t in tensors)
    sizes = tuple(n for t in first for n in (t.numel(), t.shape[0] if t.ndim else 1))
    key = (device, block, addresses, sizes)
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    found = _captured.get(key, _tables.get(key))
    if found is None:
        if capturing:
            raise ValueError(
                "a tensor has moved since the last step, and a CUDA graph is being captured; take a step before the "
                "capture, and keep gradients where they are with zero_grad(set_to_none=False)"
            )
        found = torch.tensor(table_rows(addresses, sizes, block), dtype=torch.int64)
        if device.type == "cuda":  # from pinned memory, so that the host does not wait
            found = found.pin_memory().to(device, non_blocking=True)
        _tables[key] = found
        while len(_tables) > KEPT:
            _tables.popitem(last=False)
    elif key in _tables:
        _tables.move_to_end(key)
    if capturing:
        _captured[key] = found
    return found


def table_rows(addresses: Sequence[int], sizes: Sequence[int], block: int) -> list[tuple[int, ...]]:
    """Returns the rows of `table`; `sizes` has pairs of the number of elements and the length along dimension 0."""
    counts, lengths = sizes[::2], sizes[1::2]
    lists = [addresses[i : i + len(counts)] for i in range(0, len(addresses), len(counts))]
    made: list[tuple[int, ...]] = []
    before = 0
    for place, n in enumerate(counts):
        first, rows = len(made), math.ceil(n / block)
        for at in range(0, n, block):
            start = (column[place] + at * FLOAT32_BYTES for column in lists)
            made.append((*start, min(block, n - at), before + at, first, rows, lengths[place]))
        before += n
    return made


def aligned(lists: Sequence[Sequence[Tensor]]) -> bool:
    """Returns whether every tensor begins at a multiple of 16 bytes, so that accesses may be wide."""
    return all(t.data_ptr() % 16 == 0 for tensors in lists for t in tensors)
