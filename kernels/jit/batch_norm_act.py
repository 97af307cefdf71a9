"""Triton code of `kernels.batch_norm_act`.

Shape legend: a channels-last map is a matrix [M, C], M = N*H*W; S row splits; a tile is [BLOCK_M, BLOCK_C] of it.
"""

import triton
import triton.language as tl

from wallclock.kernels.jit.tile import (
    activate,
    affine,
    grid_barrier,
    merged_splits,
    norm_vectors,
    of_image,
    summed_splits,
    through_activation,
    tile,
)

# `save="byte"` clips the normalised input beyond five deviations, and keeps it in steps of 10 / 255 deviations, or of
# 10 / 127 beside a bit for the activation's kink.
BYTE_RANGE = tl.constexpr(5.0)
# `save="output"` divides by gamma: a bfloat16 output gives 1.8% of error in gamma's gradient at 0.1, and 18% at 0.01.
GAMMA_FLOOR = tl.constexpr(0.1)


@triton.jit
def _floored(weight):
    """Returns gamma kept away from zero, so that the output can be inverted."""
    return tl.where(weight < 0, tl.minimum(weight, -GAMMA_FLOOR), tl.maximum(weight, GAMMA_FLOOR))


@triton.jit
def _welford(x, valid, count, mean, m2):
    """Adds one value to each lane's running mean and sum of squared deviations, and a row to its count.

    Divisions are by row, so that an element takes three multiply-adds and no division.
    """
    count += valid.to(count.dtype)
    share = 1 / tl.maximum(count, 1)
    delta = x - mean
    mean += delta * tl.where(valid, share, 0.0)
    m2 += delta * (delta * tl.where(valid, 1 - share, 0.0))
    return count, mean, m2


@triton.jit
def stats_kernel(
    x_ptr, mean_ptr, m2_ptr, M, C, split_rows,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr, IMAGES: tl.constexpr = None,
):  # fmt: skip
    """Stores mean and sum of squared deviations of one row split, [S, C] each; IMAGES takes each image by itself."""
    x_ptr = of_image(x_ptr, M, C, IMAGES)
    mean_ptr = of_image(mean_ptr, tl.num_programs(1), C, IMAGES)
    m2_ptr = of_image(m2_ptr, tl.num_programs(1), C, IMAGES)
    channel0, split = tl.program_id(0) * BLOCK_C, tl.program_id(1)
    begin = split * split_rows
    end = tl.minimum(begin + split_rows, M)
    count = tl.zeros([BLOCK_M, 1], ACC)
    mean = tl.zeros([BLOCK_M, BLOCK_C], ACC)
    m2 = tl.zeros([BLOCK_M, BLOCK_C], ACC)
    for row0 in range(begin, end, BLOCK_M):
        offsets, inside = tile(row0, channel0, end, C, BLOCK_M, BLOCK_C)
        x = tl.load(x_ptr + offsets, inside, 0.0).to(ACC)
        count, mean, m2 = _welford(x, (row0 + tl.arange(0, BLOCK_M) < end)[:, None], count, mean, m2)
    channels = channel0 + tl.arange(0, BLOCK_C)
    first = tl.load(x_ptr + begin.to(tl.int64) * C + channels, channels < C, 0.0).to(ACC)  # as a shift: digits are kept
    split_mean = first + tl.sum(count * (mean - first[None, :]), 0) / (end - begin)
    shift = mean - split_mean[None, :]
    tl.store(mean_ptr + split * C + channels, split_mean, channels < C)
    tl.store(m2_ptr + split * C + channels, tl.sum(m2 + count * (shift * shift), 0), channels < C)


@triton.jit
def merge_stats_kernel(
    mean_ptr, m2_ptr, out_mean_ptr, out_var_ptr, M, C, S, split_rows,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr, IMAGES: tl.constexpr = None,
):  # fmt: skip
    """Stores mean and biased variance [C] of the batch, or of each image, given the splits' [S, C]."""
    mean_ptr, m2_ptr = of_image(mean_ptr, S, C, IMAGES), of_image(m2_ptr, S, C, IMAGES)
    out_mean_ptr, out_var_ptr = of_image(out_mean_ptr, 1, C, IMAGES), of_image(out_var_ptr, 1, C, IMAGES)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean, var = merged_splits(mean_ptr, m2_ptr, channels, M, C, S, split_rows, BLOCK_S, ACC)
    tl.store(out_mean_ptr + channels, mean, channels < C)
    tl.store(out_var_ptr + channels, var, channels < C)


@triton.jit
def _write_output(
    x, y_ptr, byte_ptr, residual_ptr, offsets, inside, mean, rstd, weight, bias, slope: tl.constexpr,
    ACT: tl.constexpr, RESIDUAL: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Normalises, activates and stores a tile, and its bytes if backward reads them instead of the input."""
    if SAVE == "output":
        weight = _floored(weight)
    normalised = (x - mean[None, :]) * rstd[None, :]
    z = normalised * weight[None, :] + bias[None, :]
    y = activate(z, ACT, slope)
    if RESIDUAL:
        y += tl.load(residual_ptr + offsets, inside, 0.0).to(y.dtype)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), inside)
    if SAVE == "byte":
        KINK: tl.constexpr = ACT == "relu" or ACT == "leaky_relu"
        STEPS: tl.constexpr = 127 if KINK else 255
        clipped = tl.minimum(tl.maximum(normalised, -BYTE_RANGE), BYTE_RANGE)
        byte = ((clipped + BYTE_RANGE) * (STEPS / (2 * BYTE_RANGE)) + 0.5).to(tl.int32)
        if KINK:  # the top bit stores exactly on which side of the kink z lies
            byte += tl.where(z > 0, 128, 0)
        tl.store(byte_ptr + offsets, byte.to(tl.uint8), inside)


@triton.jit
def apply_kernel(
    x_ptr, y_ptr, byte_ptr, residual_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, M, C,
    eps: tl.constexpr, slope: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr, SAVE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Computes the output, given the statistics."""
    channel0 = tl.program_id(1) * BLOCK_C
    channels = channel0 + tl.arange(0, BLOCK_C)
    mean, rstd, weight, bias = norm_vectors(mean_ptr, var_ptr, weight_ptr, bias_ptr, channels, C, eps, AFFINE, ACC)
    offsets, inside = tile(tl.program_id(0) * BLOCK_M, channel0, M, C, BLOCK_M, BLOCK_C)
    x = tl.load(x_ptr + offsets, inside, 0.0).to(ACC)
    _write_output(
        x, y_ptr, byte_ptr, residual_ptr, offsets, inside, mean, rstd, weight, bias, slope, ACT, RESIDUAL, SAVE
    )


@triton.jit
def _read_saved(
    saved_ptr, dy_ptr, offsets, inside, mean, rstd, weight, bias, slope: tl.constexpr,
    ACT: tl.constexpr, SAVE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Returns the normalised input and the gradient at z of a tile, from the map that forward has saved."""
    dy = tl.load(dy_ptr + offsets, inside, 0.0).to(ACC)
    if SAVE == "byte":
        byte = tl.load(saved_ptr + offsets, inside, 0).to(tl.int32)
        KINK: tl.constexpr = ACT == "relu" or ACT == "leaky_relu"
        STEPS: tl.constexpr = 127 if KINK else 255
        normalised = (byte & STEPS).to(ACC) * (2 * BYTE_RANGE / STEPS) - BYTE_RANGE
        z = normalised * weight[None, :] + bias[None, :]
        if KINK:
            z = tl.where(byte >= 128, 1.0, -1.0)
    elif SAVE == "output":
        z = tl.load(saved_ptr + offsets, inside, 0.0).to(ACC)
        if ACT == "leaky_relu":
            z = tl.where(z < 0, z / slope, z)
        normalised = (z - bias[None, :]) / _floored(weight)[None, :]
    else:
        normalised = (tl.load(saved_ptr + offsets, inside, 0.0).to(ACC) - mean[None, :]) * rstd[None, :]
        z = normalised * weight[None, :] + bias[None, :]
    return normalised, through_activation(dy, z, ACT, slope)


@triton.jit
def backward_sums_kernel(
    saved_ptr, dy_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, dz_sum_ptr, dzx_sum_ptr, M, C, split_rows,
    eps: tl.constexpr, slope: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SAVE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Stores the sums of dz, and of dz times the normalised input, over one row split, [S, C] each."""
    channel0, split = tl.program_id(0) * BLOCK_C, tl.program_id(1)
    channels = channel0 + tl.arange(0, BLOCK_C)
    mean, rstd, weight, bias = norm_vectors(mean_ptr, var_ptr, weight_ptr, bias_ptr, channels, C, eps, AFFINE, ACC)
    begin = split * split_rows
    end = tl.minimum(begin + split_rows, M)
    dz_sum = tl.zeros([BLOCK_M, BLOCK_C], ACC)
    dzx_sum = tl.zeros([BLOCK_M, BLOCK_C], ACC)
    for row0 in range(begin, end, BLOCK_M):
        offsets, inside = tile(row0, channel0, end, C, BLOCK_M, BLOCK_C)
        normalised, dz = _read_saved(
            saved_ptr, dy_ptr, offsets, inside, mean, rstd, weight, bias, slope, ACT, SAVE, ACC
        )
        dz_sum += dz
        dzx_sum += dz * normalised
    tl.store(dz_sum_ptr + split * C + channels, tl.sum(dz_sum, 0), channels < C)
    tl.store(dzx_sum_ptr + split * C + channels, tl.sum(dzx_sum, 0), channels < C)


@triton.jit
def merge_sums_kernel(
    dz_sum_ptr, dzx_sum_ptr, dbias_ptr, dweight_ptr, C, S, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
    ACC: tl.constexpr, IMAGES: tl.constexpr = None,
):  # fmt: skip
    """Stores the gradients of beta and gamma [C], or each image's share of them, given the splits' sums [S, C]."""
    dz_sum_ptr, dzx_sum_ptr = of_image(dz_sum_ptr, S, C, IMAGES), of_image(dzx_sum_ptr, S, C, IMAGES)
    dbias_ptr, dweight_ptr = of_image(dbias_ptr, 1, C, IMAGES), of_image(dweight_ptr, 1, C, IMAGES)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    tl.store(dbias_ptr + channels, summed_splits(dz_sum_ptr, channels, C, S, BLOCK_S, ACC), channels < C)
    tl.store(dweight_ptr + channels, summed_splits(dzx_sum_ptr, channels, C, S, BLOCK_S, ACC), channels < C)


@triton.jit
def write_dx(
    normalised, dz, dx_ptr, offsets, inside, rstd, weight, dbias, dweight, M, SAVE: tl.constexpr, TRAINING: tl.constexpr
):  # fmt: skip
    """Stores a tile of the input's gradient, given those of gamma and beta over M rows."""
    if SAVE == "output":
        weight = _floored(weight)
    factor = weight * rstd
    dx = dz * factor[None, :]
    if TRAINING:  # the batch's own statistics depend on x
        of_row = factor * (tl.full([], 1.0, factor.dtype) / M)
        dx -= normalised * (dweight * of_row)[None, :] + (dbias * of_row)[None, :]
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), inside)


@triton.jit
def backward_apply_kernel(
    saved_ptr, dy_ptr, dx_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, dbias_ptr, dweight_ptr, M, C,
    eps: tl.constexpr, slope: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SAVE: tl.constexpr, TRAINING: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Stores the gradient of the input, given those of gamma and beta."""
    channel0 = tl.program_id(1) * BLOCK_C
    channels = channel0 + tl.arange(0, BLOCK_C)
    mean, rstd, weight, bias = norm_vectors(mean_ptr, var_ptr, weight_ptr, bias_ptr, channels, C, eps, AFFINE, ACC)
    dbias = tl.load(dbias_ptr + channels, channels < C, 0.0)
    dweight = tl.load(dweight_ptr + channels, channels < C, 0.0)
    offsets, inside = tile(tl.program_id(0) * BLOCK_M, channel0, M, C, BLOCK_M, BLOCK_C)
    normalised, dz = _read_saved(saved_ptr, dy_ptr, offsets, inside, mean, rstd, weight, bias, slope, ACT, SAVE, ACC)
    write_dx(normalised, dz, dx_ptr, offsets, inside, rstd, weight, dbias, dweight, M, SAVE, TRAINING)


@triton.jit
def persistent_forward_kernel(
    x_ptr, y_ptr, byte_ptr, residual_ptr, mean_ptr, m2_ptr, out_mean_ptr, out_var_ptr, weight_ptr, bias_ptr,
    arrived_ptr, M, C, S, split_rows, eps: tl.constexpr, slope: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr, SAVE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Computes a row split's forward; x stays in registers between statistics and output, and is read once."""
    channel0, split = tl.program_id(0) * BLOCK_C, tl.program_id(1)
    channels = channel0 + tl.arange(0, BLOCK_C)
    begin = split * split_rows
    end = tl.minimum(begin + split_rows, M)
    offsets, inside = tile(begin, channel0, end, C, BLOCK_M, BLOCK_C)
    x = tl.load(x_ptr + offsets, inside, 0.0)
    wide = x.to(ACC)
    first = tl.load(x_ptr + begin.to(tl.int64) * C + channels, channels < C, 0.0).to(ACC)
    mean = first + tl.sum(tl.where(inside, wide - first[None, :], 0.0), 0) / (end - begin)
    deviation = tl.where(inside, wide - mean[None, :], 0.0)
    tl.store(mean_ptr + split * C + channels, mean, channels < C)
    tl.store(m2_ptr + split * C + channels, tl.sum(deviation * deviation, 0), channels < C)
    grid_barrier(arrived_ptr + tl.program_id(0), S)
    mean, var = merged_splits(mean_ptr, m2_ptr, channels, M, C, S, split_rows, BLOCK_S, ACC)
    if split == 0:
        tl.store(out_mean_ptr + channels, mean, channels < C)
        tl.store(out_var_ptr + channels, var, channels < C)
    weight, bias = affine(weight_ptr, bias_ptr, channels, C, AFFINE, ACC)
    rstd = tl.rsqrt(var + eps)
    _write_output(
        x.to(ACC), y_ptr, byte_ptr, residual_ptr, offsets, inside, mean, rstd, weight, bias, slope, ACT, RESIDUAL, SAVE
    )


@triton.jit
def persistent_backward_kernel(
    saved_ptr, dy_ptr, dx_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, dz_sum_ptr, dzx_sum_ptr, dbias_ptr, dweight_ptr,
    arrived_ptr, M, C, S, split_rows, eps: tl.constexpr, slope: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SAVE: tl.constexpr, TRAINING: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Computes a row split's backward; its values stay in registers from sums to dx: saved and dy are read once."""
    channel0, split = tl.program_id(0) * BLOCK_C, tl.program_id(1)
    channels = channel0 + tl.arange(0, BLOCK_C)
    mean, rstd, weight, bias = norm_vectors(mean_ptr, var_ptr, weight_ptr, bias_ptr, channels, C, eps, AFFINE, ACC)
    begin = split * split_rows
    end = tl.minimum(begin + split_rows, M)
    offsets, inside = tile(begin, channel0, end, C, BLOCK_M, BLOCK_C)
    normalised, dz = _read_saved(saved_ptr, dy_ptr, offsets, inside, mean, rstd, weight, bias, slope, ACT, SAVE, ACC)
    tl.store(dz_sum_ptr + split * C + channels, tl.sum(dz, 0), channels < C)
    tl.store(dzx_sum_ptr + split * C + channels, tl.sum(dz * normalised, 0), channels < C)
    grid_barrier(arrived_ptr + tl.program_id(0), S)
    dbias = summed_splits(dz_sum_ptr, channels, C, S, BLOCK_S, ACC)
    dweight = summed_splits(dzx_sum_ptr, channels, C, S, BLOCK_S, ACC)
    if split == 0:
        tl.store(dbias_ptr + channels, dbias, channels < C)
        tl.store(dweight_ptr + channels, dweight, channels < C)
    write_dx(normalised, dz, dx_ptr, offsets, inside, rstd, weight, dbias, dweight, M, SAVE, TRAINING)


@triton.jit
def _move_towards(running_ptr, batch, channels, C, momentum):
    before = tl.load(running_ptr + channels, channels < C, 0.0)
    tl.store(running_ptr + channels, (before + momentum * (batch - before)).to(before.dtype), channels < C)


@triton.jit
def update_running_kernel(
    running_mean_ptr, running_var_ptr, mean_ptr, var_ptr, M, C, momentum, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Moves the running statistics towards the batch's; the running variance is unbiased."""
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    var = tl.load(var_ptr + channels, channels < C, 0.0)
    _move_towards(running_mean_ptr, tl.load(mean_ptr + channels, channels < C, 0.0), channels, C, momentum)
    _move_towards(running_var_ptr, var * (M / (M - 1)), channels, C, momentum)
