"""Triton code of `kernels.batch_norm_act`.

Shape legend: a channels-last map is a matrix [M, C], M = N*H*W; S row splits; a tile is [BLOCK_M, BLOCK_C] of it.
"""

import triton
import triton.language as tl

# `save="byte"` clips the normalised input beyond five deviations, and keeps it in steps of 10 / 255 of one, or of
# 10 / 127 beside a bit for the activation's kink.
BYTE_RANGE = tl.constexpr(5.0)
# `save="output"` divides by gamma: a bfloat16 output gives 1.8% of error in gamma's gradient at 0.1, and 18% at 0.01.
GAMMA_FLOOR = tl.constexpr(0.1)
# Of the logarithm of the normal distribution's tail at z >= 0, from the highest power down; see `_normal`.
LOG2_TAIL = tl.constexpr((
    -2.453097295074258e-06, 3.532591654220596e-05, -0.00016918739129323512, -0.00017306108202319592,
    0.007104941643774509, -0.05252164974808693, -0.45920050144195557, -1.1511061191558838, -1.0,
))  # fmt: skip


@triton.jit
def _reciprocal(d):
    """1 / d for positive d: a division that keeps to all of float32's range takes three times the instructions."""
    root = tl.rsqrt(d)
    return root * root


@triton.jit
def _normal(z):
    """The normal distribution up to z.

    In float32 its tail is two to the power of a polynomial, fitted to log2(erfc(z / sqrt(2)) / 2) by weighted least
    squares: within 6e-8 everywhere, for half the instructions of `erf`.
    """
    if z.dtype == tl.float64:
        return 0.5 * (1 + tl.erf(z * 0.7071067811865476))
    a = tl.abs(z)
    log2_tail = tl.full(z.shape, LOG2_TAIL[0], z.dtype)
    for power in tl.static_range(1, 9):
        log2_tail = log2_tail * a + LOG2_TAIL[power]
    tail = tl.exp2(log2_tail)
    return tl.where(z > 0, 1 - tail, tail)


@triton.jit
def _activate(z, ACT: tl.constexpr, slope: tl.constexpr):
    """The activation of z; NaN stays NaN."""
    if ACT == "relu":
        z = tl.where(z < 0, 0.0, z)
    elif ACT == "leaky_relu":
        z = tl.where(z < 0, z * slope, z)
    elif ACT == "silu":
        z = z * _reciprocal(1 + tl.exp(-z))
    elif ACT == "gelu":
        z = z * _normal(z)
    return z


@triton.jit
def _through_activation(dy, z, ACT: tl.constexpr, slope: tl.constexpr):
    """The gradient at z, from that after the activation."""
    if ACT == "relu":
        dy = tl.where(z <= 0, 0.0, dy)
    elif ACT == "leaky_relu":
        dy = tl.where(z <= 0, dy * slope, dy)
    elif ACT == "silu":
        s = _reciprocal(1 + tl.exp(-z))
        dy = dy * s * (1 + z * (1 - s))
    elif ACT == "gelu":
        dy = dy * (_normal(z) + z * (0.3989422804014327 * tl.exp2(z * z * -0.7213475204444817)))
    return dy


@triton.jit
def _tile(row0, channel0, M, C, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """Offsets (64-bit: a tensor may have more than 2**31 elements) and mask of a tile of the [M, C] matrix."""
    rows = row0 + tl.arange(0, BLOCK_M)
    channels = channel0 + tl.arange(0, BLOCK_C)
    offsets = rows.to(tl.int64)[:, None] * C + channels[None, :]
    return offsets, (rows < M)[:, None] & (channels < C)[None, :]


@triton.jit
def _moments(mean_ptr, var_ptr, channels, C, eps: tl.constexpr, ACC: tl.constexpr):
    """Mean and reciprocal deviation of a block of channels."""
    mean = tl.load(mean_ptr + channels, channels < C, 0.0).to(ACC)
    return mean, tl.rsqrt(tl.load(var_ptr + channels, channels < C, 1.0).to(ACC) + eps)


@triton.jit
def _affine(weight_ptr, bias_ptr, channels, C, AFFINE: tl.constexpr, ACC: tl.constexpr):
    """Gamma and beta of a block of channels."""
    weight = tl.full(channels.shape, 1.0, ACC)
    bias = tl.full(channels.shape, 0.0, ACC)
    if AFFINE:
        weight = tl.load(weight_ptr + channels, channels < C, 1.0).to(ACC)
        bias = tl.load(bias_ptr + channels, channels < C, 0.0).to(ACC)
    return weight, bias


@triton.jit
def _floored(weight):
    """Gamma kept away from zero, so that the output can be inverted."""
    return tl.where(weight < 0, tl.minimum(weight, -GAMMA_FLOOR), tl.maximum(weight, GAMMA_FLOOR))


@triton.jit
def _welford(x, valid, count, mean, m2):
    """Takes one value into each lane's running mean and sum of squared deviations, and a row into its count.

    What is divided is a row's, so that an element takes three multiply-adds and no division.
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
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of one row split, [S, C] each."""
    channel0, split = tl.program_id(0) * BLOCK_C, tl.program_id(1)
    begin = split * split_rows
    end = tl.minimum(begin + split_rows, M)
    count = tl.zeros([BLOCK_M, 1], ACC)
    mean = tl.zeros([BLOCK_M, BLOCK_C], ACC)
    m2 = tl.zeros([BLOCK_M, BLOCK_C], ACC)
    for row0 in range(begin, end, BLOCK_M):
        offsets, inside = _tile(row0, channel0, end, C, BLOCK_M, BLOCK_C)
        x = tl.load(x_ptr + offsets, inside, 0.0).to(ACC)
        count, mean, m2 = _welford(x, (row0 + tl.arange(0, BLOCK_M) < end)[:, None], count, mean, m2)
    channels = channel0 + tl.arange(0, BLOCK_C)
    first = tl.load(x_ptr + begin.to(tl.int64) * C + channels, channels < C, 0.0).to(ACC)  # as a shift: digits are kept
    split_mean = first + tl.sum(count * (mean - first[None, :]), 0) / (end - begin)
    shift = mean - split_mean[None, :]
    tl.store(mean_ptr + split * C + channels, split_mean, channels < C)
    tl.store(m2_ptr + split * C + channels, tl.sum(m2 + count * (shift * shift), 0), channels < C)


@triton.jit
def _merged_splits(mean_ptr, m2_ptr, channels, M, C, S, split_rows, BLOCK_S: tl.constexpr, ACC: tl.constexpr):
    """Mean and biased variance of a block of channels, from the statistics of all splits."""
    first = tl.load(mean_ptr + channels, channels < C, 0.0, cache_modifier=".cg")
    mean = first
    for split0 in range(0, S, BLOCK_S):
        count, at, inside = _split_block(split0, channels, M, C, S, split_rows, BLOCK_S, ACC)
        shift = tl.load(mean_ptr + at, inside, 0.0, cache_modifier=".cg") - first[None, :]
        mean += tl.sum(tl.where(inside, count / M * shift, 0.0), 0)
    var = tl.zeros(channels.shape, ACC)
    for split0 in range(0, S, BLOCK_S):
        count, at, inside = _split_block(split0, channels, M, C, S, split_rows, BLOCK_S, ACC)
        shift = tl.load(mean_ptr + at, inside, 0.0, cache_modifier=".cg") - mean[None, :]
        m2 = tl.load(m2_ptr + at, inside, 0.0, cache_modifier=".cg")
        var += tl.sum(tl.where(inside, m2 / M + count / M * (shift * shift), 0.0), 0)
    return mean, var


@triton.jit
def _split_block(split0, channels, M, C, S, split_rows, BLOCK_S: tl.constexpr, ACC: tl.constexpr):
    """Rows in each of a block of splits, and where the statistics of a block of channels lie."""
    splits = split0 + tl.arange(0, BLOCK_S)
    count = tl.maximum(tl.minimum(M - splits * split_rows, split_rows), 0).to(ACC)[:, None]
    return count, splits[:, None] * C + channels[None, :], (splits < S)[:, None] & (channels < C)[None, :]


@triton.jit
def merge_stats_kernel(
    mean_ptr, m2_ptr, out_mean_ptr, out_var_ptr, M, C, S, split_rows,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Batch mean and biased variance [C] from the splits' [S, C]."""
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean, var = _merged_splits(mean_ptr, m2_ptr, channels, M, C, S, split_rows, BLOCK_S, ACC)
    tl.store(out_mean_ptr + channels, mean, channels < C)
    tl.store(out_var_ptr + channels, var, channels < C)


@triton.jit
def _write_output(
    x, y_ptr, byte_ptr, residual_ptr, offsets, inside, mean, rstd, weight, bias, slope: tl.constexpr,
    ACT: tl.constexpr, RESIDUAL: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Normalises, activates and stores a tile, with its byte where backward reads that instead of the input."""
    if SAVE == "output":
        weight = _floored(weight)
    normalised = (x - mean[None, :]) * rstd[None, :]
    z = normalised * weight[None, :] + bias[None, :]
    y = _activate(z, ACT, slope)
    if RESIDUAL:
        y += tl.load(residual_ptr + offsets, inside, 0.0).to(y.dtype)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), inside)
    if SAVE == "byte":
        KINK: tl.constexpr = ACT == "relu" or ACT == "leaky_relu"
        STEPS: tl.constexpr = 127 if KINK else 255
        clipped = tl.minimum(tl.maximum(normalised, -BYTE_RANGE), BYTE_RANGE)
        byte = ((clipped + BYTE_RANGE) * (STEPS / (2 * BYTE_RANGE)) + 0.5).to(tl.int32)
        if KINK:  # the top bit says exactly on which side of it z lies
            byte += tl.where(z > 0, 128, 0)
        tl.store(byte_ptr + offsets, byte.to(tl.uint8), inside)


@triton.jit
def apply_kernel(
    x_ptr, y_ptr, byte_ptr, residual_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, M, C,
    eps: tl.constexpr, slope: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr, SAVE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Forward, given the statistics."""
    channel0 = tl.program_id(1) * BLOCK_C
    channels = channel0 + tl.arange(0, BLOCK_C)
    mean, rstd = _moments(mean_ptr, var_ptr, channels, C, eps, ACC)
    weight, bias = _affine(weight_ptr, bias_ptr, channels, C, AFFINE, ACC)
    offsets, inside = _tile(tl.program_id(0) * BLOCK_M, channel0, M, C, BLOCK_M, BLOCK_C)
    x = tl.load(x_ptr + offsets, inside, 0.0).to(ACC)
    _write_output(
        x, y_ptr, byte_ptr, residual_ptr, offsets, inside, mean, rstd, weight, bias, slope, ACT, RESIDUAL, SAVE
    )


@triton.jit
def _read_saved(
    saved_ptr, dy_ptr, offsets, inside, mean, rstd, weight, bias, slope: tl.constexpr,
    ACT: tl.constexpr, SAVE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The normalised input and the gradient at z of a tile, from whatever forward has kept."""
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
    return normalised, _through_activation(dy, z, ACT, slope)


@triton.jit
def backward_sums_kernel(
    saved_ptr, dy_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, dz_sum_ptr, dzx_sum_ptr, M, C, split_rows,
    eps: tl.constexpr, slope: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SAVE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums of dz and of dz times the normalised input over one row split, [S, C] each."""
    channel0, split = tl.program_id(0) * BLOCK_C, tl.program_id(1)
    channels = channel0 + tl.arange(0, BLOCK_C)
    mean, rstd = _moments(mean_ptr, var_ptr, channels, C, eps, ACC)
    weight, bias = _affine(weight_ptr, bias_ptr, channels, C, AFFINE, ACC)
    begin = split * split_rows
    end = tl.minimum(begin + split_rows, M)
    dz_sum = tl.zeros([BLOCK_M, BLOCK_C], ACC)
    dzx_sum = tl.zeros([BLOCK_M, BLOCK_C], ACC)
    for row0 in range(begin, end, BLOCK_M):
        offsets, inside = _tile(row0, channel0, end, C, BLOCK_M, BLOCK_C)
        normalised, dz = _read_saved(
            saved_ptr, dy_ptr, offsets, inside, mean, rstd, weight, bias, slope, ACT, SAVE, ACC
        )
        dz_sum += dz
        dzx_sum += dz * normalised
    tl.store(dz_sum_ptr + split * C + channels, tl.sum(dz_sum, 0), channels < C)
    tl.store(dzx_sum_ptr + split * C + channels, tl.sum(dzx_sum, 0), channels < C)


@triton.jit
def _summed_splits(sums_ptr, channels, C, S, BLOCK_S: tl.constexpr, ACC: tl.constexpr):
    total = tl.zeros(channels.shape, ACC)
    for split0 in range(0, S, BLOCK_S):
        splits = split0 + tl.arange(0, BLOCK_S)
        inside = (splits < S)[:, None] & (channels < C)[None, :]
        at = splits[:, None] * C + channels[None, :]
        total += tl.sum(tl.load(sums_ptr + at, inside, 0.0, cache_modifier=".cg"), 0)
    return total


@triton.jit
def merge_sums_kernel(
    dz_sum_ptr, dzx_sum_ptr, dbias_ptr, dweight_ptr, C, S, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Gradients of beta and gamma [C] from the splits' sums."""
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    tl.store(dbias_ptr + channels, _summed_splits(dz_sum_ptr, channels, C, S, BLOCK_S, ACC), channels < C)
    tl.store(dweight_ptr + channels, _summed_splits(dzx_sum_ptr, channels, C, S, BLOCK_S, ACC), channels < C)


@triton.jit
def _write_dx(
    normalised, dz, dx_ptr, offsets, inside, rstd, weight, dbias, dweight, M, SAVE: tl.constexpr, TRAINING: tl.constexpr
):  # fmt: skip
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
    """Gradient of the input, given those of gamma and beta."""
    channel0 = tl.program_id(1) * BLOCK_C
    channels = channel0 + tl.arange(0, BLOCK_C)
    mean, rstd = _moments(mean_ptr, var_ptr, channels, C, eps, ACC)
    weight, bias = _affine(weight_ptr, bias_ptr, channels, C, AFFINE, ACC)
    dbias = tl.load(dbias_ptr + channels, channels < C, 0.0)
    dweight = tl.load(dweight_ptr + channels, channels < C, 0.0)
    offsets, inside = _tile(tl.program_id(0) * BLOCK_M, channel0, M, C, BLOCK_M, BLOCK_C)
    normalised, dz = _read_saved(saved_ptr, dy_ptr, offsets, inside, mean, rstd, weight, bias, slope, ACT, SAVE, ACC)
    _write_dx(normalised, dz, dx_ptr, offsets, inside, rstd, weight, dbias, dweight, M, SAVE, TRAINING)


@triton.jit
def _grid_barrier(arrived_ptr, expected):
    """Waits until `expected` programs are here, and what they stored before can be read.

    All of them must run at once: the launch is cooperative, which refuses a grid that does not fit on the GPU.
    """
    tl.debug_barrier()  # every thread of this program has stored
    arrived = tl.atomic_add(arrived_ptr, 1, sem="acq_rel", scope="gpu") + 1
    while arrived < expected:
        arrived = tl.atomic_add(arrived_ptr, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()


@triton.jit
def persistent_forward_kernel(
    x_ptr, y_ptr, byte_ptr, residual_ptr, mean_ptr, m2_ptr, out_mean_ptr, out_var_ptr, weight_ptr, bias_ptr,
    arrived_ptr, M, C, S, split_rows, eps: tl.constexpr, slope: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr, SAVE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The whole forward of one row split, which stays in registers between statistics and output: x is read once."""
    channel0, split = tl.program_id(0) * BLOCK_C, tl.program_id(1)
    channels = channel0 + tl.arange(0, BLOCK_C)
    begin = split * split_rows
    end = tl.minimum(begin + split_rows, M)
    offsets, inside = _tile(begin, channel0, end, C, BLOCK_M, BLOCK_C)
    x = tl.load(x_ptr + offsets, inside, 0.0)
    wide = x.to(ACC)
    first = tl.load(x_ptr + begin.to(tl.int64) * C + channels, channels < C, 0.0).to(ACC)
    mean = first + tl.sum(tl.where(inside, wide - first[None, :], 0.0), 0) / (end - begin)
    deviation = tl.where(inside, wide - mean[None, :], 0.0)
    tl.store(mean_ptr + split * C + channels, mean, channels < C)
    tl.store(m2_ptr + split * C + channels, tl.sum(deviation * deviation, 0), channels < C)
    _grid_barrier(arrived_ptr + tl.program_id(0), S)
    mean, var = _merged_splits(mean_ptr, m2_ptr, channels, M, C, S, split_rows, BLOCK_S, ACC)
    if split == 0:
        tl.store(out_mean_ptr + channels, mean, channels < C)
        tl.store(out_var_ptr + channels, var, channels < C)
    weight, bias = _affine(weight_ptr, bias_ptr, channels, C, AFFINE, ACC)
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
    """The whole backward of one row split, which stays in registers between sums and dx: saved and dy are read once."""
    channel0, split = tl.program_id(0) * BLOCK_C, tl.program_id(1)
    channels = channel0 + tl.arange(0, BLOCK_C)
    mean, rstd = _moments(mean_ptr, var_ptr, channels, C, eps, ACC)
    weight, bias = _affine(weight_ptr, bias_ptr, channels, C, AFFINE, ACC)
    begin = split * split_rows
    end = tl.minimum(begin + split_rows, M)
    offsets, inside = _tile(begin, channel0, end, C, BLOCK_M, BLOCK_C)
    normalised, dz = _read_saved(saved_ptr, dy_ptr, offsets, inside, mean, rstd, weight, bias, slope, ACT, SAVE, ACC)
    tl.store(dz_sum_ptr + split * C + channels, tl.sum(dz, 0), channels < C)
    tl.store(dzx_sum_ptr + split * C + channels, tl.sum(dz * normalised, 0), channels < C)
    _grid_barrier(arrived_ptr + tl.program_id(0), S)
    dbias = _summed_splits(dz_sum_ptr, channels, C, S, BLOCK_S, ACC)
    dweight = _summed_splits(dzx_sum_ptr, channels, C, S, BLOCK_S, ACC)
    if split == 0:
        tl.store(dbias_ptr + channels, dbias, channels < C)
        tl.store(dweight_ptr + channels, dweight, channels < C)
    _write_dx(normalised, dz, dx_ptr, offsets, inside, rstd, weight, dbias, dweight, M, SAVE, TRAINING)


@triton.jit
def _move_towards(running_ptr, batch, channels, C, momentum):
    before = tl.load(running_ptr + channels, channels < C, 0.0)
    tl.store(running_ptr + channels, (before + momentum * (batch - before)).to(before.dtype), channels < C)


@triton.jit
def update_running_kernel(
    running_mean_ptr, running_var_ptr, mean_ptr, var_ptr, M, C, momentum, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Moves the running statistics towards the batch's; the running variance is the unbiased one."""
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    var = tl.load(var_ptr + channels, channels < C, 0.0)
    _move_towards(running_mean_ptr, tl.load(mean_ptr + channels, channels < C, 0.0), channels, C, momentum)
    _move_towards(running_var_ptr, var * (M / (M - 1)), channels, C, momentum)
