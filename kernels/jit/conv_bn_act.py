"""Triton code of `kernels.conv_bn_act` besides the products: statistics by channel, and the norm's input gradient.

Shape legend: a channels-last map is a matrix [M, C]; S tiles of rows, each reduced by a product.
"""

import triton
import triton.language as tl

from wallclock.kernels.jit.conv import MEAN, RSTD, SCALE, vector
from wallclock.kernels.jit.tile import affine, merged_splits, summed_splits, tile


@triton.jit
def merge_groups_kernel(
    mean_ptr, m2_ptr, out_mean_ptr, out_m2_ptr, M, C, S, split_rows,
    GROUP: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Merges mean and sum of squared deviations of every GROUP splits."""
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.program_id(1) * GROUP
    rows = tl.minimum(M - first * split_rows, GROUP * split_rows)
    at = first.to(tl.int64) * C
    mean, var = merged_splits(
        mean_ptr + at, m2_ptr + at, channels, rows, C, tl.minimum(S - first, GROUP), split_rows, GROUP, ACC
    )
    out = tl.program_id(1).to(tl.int64) * C + channels
    tl.store(out_mean_ptr + out, mean, channels < C)
    tl.store(out_m2_ptr + out, var * rows, channels < C)


@triton.jit
def sum_groups_kernel(
    first_ptr, second_ptr, out_first_ptr, out_second_ptr, C, S,
    GROUP: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Adds the two sums of every GROUP splits."""
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    begin = tl.program_id(1) * GROUP
    count = tl.minimum(S - begin, GROUP)
    at, out = begin.to(tl.int64) * C, tl.program_id(1).to(tl.int64) * C + channels
    tl.store(out_first_ptr + out, summed_splits(first_ptr + at, channels, C, count, GROUP, ACC), channels < C)
    tl.store(out_second_ptr + out, summed_splits(second_ptr + at, channels, C, count, GROUP, ACC), channels < C)


@triton.jit
def table_kernel(
    mean_ptr, m2_ptr, weight_ptr, bias_ptr, table_ptr, M, C, S, split_rows, eps: tl.constexpr,
    AFFINE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Stores a norm's table [5, C]: scale, shift, mean, reciprocal deviation, variance."""
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean, var = merged_splits(mean_ptr, m2_ptr, channels, M, C, S, split_rows, BLOCK_S, ACC)
    weight, bias = affine(weight_ptr, bias_ptr, channels, C, AFFINE, ACC)
    rstd = tl.rsqrt(var + eps)
    scale = weight * rstd
    tl.store(table_ptr + channels, scale, channels < C)
    tl.store(table_ptr + C + channels, bias - mean * scale, channels < C)
    tl.store(table_ptr + 2 * C + channels, mean, channels < C)
    tl.store(table_ptr + 3 * C + channels, rstd, channels < C)
    tl.store(table_ptr + 4 * C + channels, var, channels < C)


@triton.jit
def input_gradient_kernel(
    x_ptr, dz_ptr, table_ptr, dbias_ptr, dweight_ptr, M, C,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Overwrites the gradient of a norm's output with that of its input, given those of gamma and beta."""
    channel0 = tl.program_id(1) * BLOCK_C
    channels = channel0 + tl.arange(0, BLOCK_C)
    offsets, inside = tile(tl.program_id(0) * BLOCK_M, channel0, M, C, BLOCK_M, BLOCK_C)
    x = tl.load(x_ptr + offsets, inside, 0.0).to(ACC)
    dz = tl.load(dz_ptr + offsets, inside, 0.0).to(ACC)
    scale, rstd = vector(table_ptr, SCALE, channels, C), vector(table_ptr, RSTD, channels, C)
    of_row = scale * (tl.full([], 1.0, scale.dtype) / M)
    dbias = tl.load(dbias_ptr + channels, channels < C, 0.0)
    dweight = tl.load(dweight_ptr + channels, channels < C, 0.0)
    deviation = x - vector(table_ptr, MEAN, channels, C)[None, :]
    dx = dz * scale[None, :] - deviation * (dweight * rstd * of_row)[None, :] - (dbias * of_row)[None, :]
    tl.store(dz_ptr + offsets, dx.to(dz_ptr.dtype.element_ty), inside)
