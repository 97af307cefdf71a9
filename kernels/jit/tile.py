"""Triton code that several kernels share: activations, tiles of a channels-last map, statistics merged over splits.

Shape legend: a channels-last map is a matrix [M, C], M = N*H*W; S row splits; a tile is [BLOCK_M, BLOCK_C] of it.
"""

import triton
import triton.language as tl

# Coefficients of log2 of the normal distribution's tail at z >= 0, from the highest power down; see `_normal`.
LOG2_TAIL = tl.constexpr((
    -2.453097295074258e-06, 3.532591654220596e-05, -0.00016918739129323512, -0.00017306108202319592,
    0.007104941643774509, -0.05252164974808693, -0.45920050144195557, -1.1511061191558838, -1.0,
))  # fmt: skip


@triton.jit
def _reciprocal(d):
    """Returns 1 / d for positive d; a division over all of float32's range takes three times the instructions."""
    root = tl.rsqrt(d)
    return root * root


@triton.jit
def _normal(z):
    """Returns the normal distribution function of z.

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
def activate(z, ACT: tl.constexpr, slope: tl.constexpr):
    """Returns the activation of z; NaN stays NaN."""
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
def through_activation(dy, z, ACT: tl.constexpr, slope: tl.constexpr):
    """Returns the gradient at z, given the gradient after the activation."""
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
def tile(row0, channel0, M, C, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """Returns offsets (64-bit, for tensors of more than 2**31 elements) and mask of a tile of the [M, C] matrix."""
    rows = row0 + tl.arange(0, BLOCK_M)
    channels = channel0 + tl.arange(0, BLOCK_C)
    offsets = rows.to(tl.int64)[:, None] * C + channels[None, :]
    return offsets, (rows < M)[:, None] & (channels < C)[None, :]


@triton.jit
def affine(weight_ptr, bias_ptr, channels, C, AFFINE: tl.constexpr, ACC: tl.constexpr):
    """Returns gamma and beta of a block of channels."""
    weight = tl.full(channels.shape, 1.0, ACC)
    bias = tl.full(channels.shape, 0.0, ACC)
    if AFFINE:
        weight = tl.load(weight_ptr + channels, channels < C, 1.0).to(ACC)
        bias = tl.load(bias_ptr + channels, channels < C, 0.0).to(ACC)
    return weight, bias


@triton.jit
def norm_vectors(
    mean_ptr, var_ptr, weight_ptr, bias_ptr, channels, C, eps: tl.constexpr, AFFINE: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Returns mean, reciprocal deviation, gamma and beta of a block of channels."""
    mean = tl.load(mean_ptr + channels, channels < C, 0.0).to(ACC)
    rstd = tl.rsqrt(tl.load(var_ptr + channels, channels < C, 1.0).to(ACC) + eps)
    weight, bias = affine(weight_ptr, bias_ptr, channels, C, AFFINE, ACC)
    return mean, rstd, weight, bias


@triton.jit
def of_image(ptr, rows, C, IMAGES: tl.constexpr):
    """Returns a pointer to the [rows, C] matrix of this program's image (grid axis 2), or of the map without IMAGES."""
    return ptr + tl.program_id(2).to(tl.int64) * rows * C if IMAGES else ptr


@triton.jit
def merged_splits(mean_ptr, m2_ptr, channels, M, C, S, split_rows, BLOCK_S: tl.constexpr, ACC: tl.constexpr):
    """Returns mean and biased variance of a block of channels, given the statistics of all splits."""
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
    """Returns the rows of each of a block of splits, and offsets and mask of its statistics."""
    splits = split0 + tl.arange(0, BLOCK_S)
    count = tl.maximum(tl.minimum(M - splits * split_rows, split_rows), 0).to(ACC)[:, None]
    return count, splits[:, None] * C + channels[None, :], (splits < S)[:, None] & (channels < C)[None, :]


@triton.jit
def summed_splits(sums_ptr, channels, C, S, BLOCK_S: tl.constexpr, ACC: tl.constexpr):
    """Returns the sums of a block of channels over all splits."""
    total = tl.zeros(channels.shape, ACC)
    for split0 in range(0, S, BLOCK_S):
        splits = split0 + tl.arange(0, BLOCK_S)
        inside = (splits < S)[:, None] & (channels < C)[None, :]
        at = splits[:, None] * C + channels[None, :]
        total += tl.sum(tl.load(sums_ptr + at, inside, 0.0, cache_modifier=".cg"), 0)
    return total


@triton.jit
def grid_barrier(arrived_ptr, expected):
    """Waits until `expected` programs have arrived, so that the values they stored before can be read.

    All programs must run at once: the cooperative launch refuses a grid that does not fit on the GPU.
    """
    tl.debug_barrier()  # every thread of this program has stored
    arrived = tl.atomic_add(arrived_ptr, 1, sem="acq_rel", scope="gpu") + 1
    while arrived < expected:
        arrived = tl.atomic_add(arrived_ptr, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()
