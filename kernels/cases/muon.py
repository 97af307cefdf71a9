"""`muon` over the filters of the sprint network.

The case's shape is the channels along the network: those after the whitening, and those of each group.
"""

import itertools

import torch

from wallclock.kernels.cases.inputs import float32_lists, optimizer_spec
from wallclock.kernels.muon import BLOCK, gram_is_less, muon_eager_, muon_ref, muon_triton_
from wallclock.kernels.spec import Case, Direction, Inputs

STEPS = 3
MUON_CASES = (Case(network="sprint", shape=(24, 64, 256, 256), options={"lr": 0.24, "momentum": 0.6, "steps": STEPS}),)


def sprint_filters(channels: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Returns the filters' shapes: in each group one that reads the channels before it, and one that reads its own."""
    groups = zip(channels, channels[1:], strict=False)
    return [(b, i, 3, 3) for a, b in groups for i in (a, b)]


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    return {**float32_lists("momentum_buffer", sprint_filters(case.shape), device)}


def _stacks(case: Case) -> list[tuple[int, int, int]]:
    """Returns [B, M, N], M <= N, the stack of the matrices of each shape."""
    matrices = sorted((o, i * h * w) for o, i, h, w in sprint_filters(case.shape))
    return [(len(list(same)), min(shape), max(shape)) for shape, same in itertools.groupby(matrices)]


def _product_bytes(case: Case, gram: bool, element_bytes: int) -> int:
    """Counts the bytes that the matrix products read and write; an operand used twice counts once."""
    stacks, total = _stacks(case), 0
    by_gram = [(b, m, n) for b, m, n in stacks if gram and gram_is_less(m, n, STEPS)]
    for b, m, n in stacks:
        if (b, m, n) in by_gram:
            joined = sum(m == other for _, other, _ in by_gram) > 1
            total += b * (3 * m * n + (4 + 19 * (STEPS - 1) + 2 * joined) * m * m)
        else:
            total += b * STEPS * (3 * m * n + 4 * m * m)
    return total * element_bytes


def _bytes(case: Case, variant: str, direction: Direction, element_bytes: int) -> int:
    sizes = [torch.Size(shape).numel() for shape in sprint_filters(case.shape)]
    if variant != "triton":
        return (36 if variant == "compile" else 88) * sum(sizes) + _product_bytes(case, False, 2)
    rows = [-(-n // BLOCK) for n in sizes]
    # A row of the table takes its numbers in three kernels, two sums written, and all sums of its tensor read.
    return 48 * sum(sizes) + sum(n * (128 + 8 * n) for n in rows) + _product_bytes(case, True, 8)


def _operations(case: Case, direction: Direction) -> int:
    """Counts the operations of the published form, which serve for every variant."""
    products = sum(b * STEPS * (4 * m * m * n + 2 * m * m * m) for b, m, n in _stacks(case))
    return products + 14 * sum(b * m * n for b, m, n in _stacks(case))


MUON = optimizer_spec(
    "momentum_buffer",
    *(muon_ref, muon_eager_, muon_triton_),
    name="muon",
    cases=MUON_CASES,
    inputs=_inputs,
    bytes_moved=_bytes,
    operations=_operations,
)
