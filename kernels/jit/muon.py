"""Triton code of `kernels.muon`: a program takes one row of a table of `kernels.multi_tensor`.

Columns of a row: addresses of parameter, gradient and momentum buffer; number of elements; elements before it; the
tensor's first row, its number of rows, its output channels.
"""

import triton
import triton.language as tl

from wallclock.kernels.jit.multi_tensor import address


@triton.jit
def _number(table_ptr, row, column: tl.constexpr):
    return tl.load(table_ptr + row.to(tl.int64) * 8 + column)


@triton.jit
def _extent(table_ptr, row, ALIGNED: tl.constexpr):
    """Returns the numbers of elements in the row and before it; a mask by a multiple of four keeps accesses wide."""
    count, before = _number(table_ptr, row, 3), _number(table_ptr, row, 4)
    if ALIGNED:
        count, before = tl.multiple_of(count, 4), tl.multiple_of(before, 4)
    return count, before


@triton.jit
def _sum_of_tensor(sums_ptr, table_ptr, row, PARTS: tl.constexpr):
    """Returns the sum of the partial sums of the row's tensor, added in a fixed order."""
    first, rows = _number(table_ptr, row, 5), _number(table_ptr, row, 6)
    lanes = tl.arange(0, PARTS)
    total = tl.zeros([PARTS], tl.float32)
    for at in range(0, rows, PARTS):
        total += tl.load(sums_ptr + first + at + lanes, at + lanes < rows, 0.0)
    return tl.sum(total)


@triton.jit
def average_kernel(table_ptr, direction_ptr, sums_ptr, rows, momentum, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Computes momentum average, Nesterov direction, and sums of squares of direction and filter."""
    row = tl.program_id(0)
    count, before = _extent(table_ptr, row, ALIGNED)
    place = tl.arange(0, BLOCK)
    inside = place < count
    p = tl.load(address(table_ptr, row, 0, 8, ALIGNED) + place, inside, 0.0)
    g = tl.load(address(table_ptr, row, 1, 8, ALIGNED) + place, inside, 0.0)
    average_ptr = address(table_ptr, row, 2, 8, ALIGNED) + place
    average = tl.load(average_ptr, inside, 0.0) * momentum + g
    direction = g + momentum * average
    tl.store(average_ptr, average, inside)
    tl.store(direction_ptr + before + place, direction, inside)
    tl.store(sums_ptr + row, tl.sum(direction * direction))
    tl.store(sums_ptr + rows + row, tl.sum(p * p))


@triton.jit
def normalise_kernel(
    table_ptr, direction_ptr, quotient_ptr, sums_ptr, EPS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Divides each direction by its norm, in float64, whose digits the cancellations of the Gram form need."""
    row = tl.program_id(0)
    count, before = _extent(table_ptr, row, ALIGNED)
    norm = tl.sqrt_rn(_sum_of_tensor(sums_ptr, table_ptr, row, PARTS)) + EPS
    place = tl.arange(0, BLOCK)
    inside = place < count
    direction = tl.load(direction_ptr + before + place, inside, 0.0)
    tl.store(quotient_ptr + before + place, direction.to(tl.float64) / norm.to(tl.float64), inside)


@triton.jit
def update_kernel(
    table_ptr, update_ptr, sums_ptr, rows, lr_ptr, lr, LR_TENSOR: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Rescales each filter bank to the norm sqrt(O), then applies the update to it."""
    if LR_TENSOR:
        lr = tl.load(lr_ptr).to(tl.float32)
    row = tl.program_id(0)
    count, before = _extent(table_ptr, row, ALIGNED)
    norm = tl.sqrt_rn(_sum_of_tensor(sums_ptr + rows, table_ptr, row, PARTS))
    scale = tl.sqrt_rn(_number(table_ptr, row, 7).to(tl.float32)) / norm
    place = tl.arange(0, BLOCK)
    inside = place < count
    p_ptr = address(table_ptr, row, 0, 8, ALIGNED) + place
    update = tl.load(update_ptr + before + place, inside, 0.0).to(tl.float32)
    tl.store(p_ptr, tl.load(p_ptr, inside, 0.0) * scale - lr * update, inside)
