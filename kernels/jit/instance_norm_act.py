"""Triton code of `kernels.instance_norm_act`: batch norm of each image by itself, its output padded by reflection.

Shape legend: an image of a channels-last map is a matrix [M, C], M = H*W; S row splits; a tile is [BLOCK_M, BLOCK_C]
of it. A padded map is [N, C, H + 2*PAD, W + 2*PAD]; every pixel of it is the place of exactly one pixel of the image.
Image n is index n along grid axis 2.
"""

import triton
import triton.language as tl

from wallclock.kernels.jit.batch_norm_act import write_dx
from wallclock.kernels.jit.tile import (
    activate,
    affine,
    grid_barrier,
    merged_splits,
    norm_vectors,
    summed_splits,
    through_activation,
    tile,
)


@triton.jit
def _mirrored(i, length, PAD: tl.constexpr, PLACE: tl.constexpr):
    """Returns the PLACE-th position of index i of a row or column in the padded one, and whether it exists.

    PLACE 0 is the index itself, 1 its mirror image, 2 the second one: both edges mirror it where 2 * PAD >= length - 1.
    """
    before = (i >= 1) & (i <= PAD)
    after = (i >= length - 1 - PAD) & (i <= length - 2)
    if PLACE == 0:
        at, there = i + PAD, i >= 0
    elif PLACE == 1:
        at, there = tl.where(before, PAD - i, 2 * (length - 1) - i + PAD), before | after
    else:
        at, there = 2 * (length - 1) - i + PAD, before & after
    return at, there


@triton.jit
def _any_mirrored(first, last, length, PAD: tl.constexpr):
    """Returns whether an edge mirrors any of the indices from first to last: one branch for a whole tile."""
    return ((first <= PAD) & (last >= 1)) | ((last >= length - 1 - PAD) & (first <= length - 2))


@triton.jit
def _edges(row0, H, W, PAD: tl.constexpr, BLOCK_M: tl.constexpr):
    """Returns whether top or bottom edge mirror pixels of a tile, and whether left or right edge do."""
    last = tl.minimum(row0 + BLOCK_M, H * W) - 1
    h0, h1 = row0 // W, last // W
    rows = _any_mirrored(h0, h1, H, PAD)
    columns = (h0 != h1) | _any_mirrored(row0 - h0 * W, last - h1 * W, W, PAD)
    return rows, columns


@triton.jit
def _pixels(row0, W, BLOCK_M: tl.constexpr):
    rows = row0 + tl.arange(0, BLOCK_M)
    h = rows // W
    return h, rows - h * W


@triton.jit
def _offsets(h, w, row_stride, pixel_stride, channels):
    """Returns offsets of pixels and channels, 64-bit for tensors of more than 2**31 elements."""
    return (h.to(tl.int64) * row_stride + w.to(tl.int64) * pixel_stride)[:, None] + channels[None, :]


@triton.jit
def _padded_offsets(h, w, W, C, channels, PAD: tl.constexpr):
    """Returns offsets of pixels and channels in a dense map of W + 2*PAD pixels a row, 64-bit."""
    return ((h.to(tl.int64) * (W + 2 * PAD) + w) * C)[:, None] + channels[None, :]


@triton.jit
def _store_row(
    y, y_ptr, h, w, channels, inside, columns, W, C, PAD: tl.constexpr, PLACES: tl.constexpr, ZERO: tl.constexpr
):  # fmt: skip
    """Stores a tile into padded rows h, at every position of its columns; with ZERO, zeros in its mirror images."""
    tl.store(y_ptr + _padded_offsets(h, w + PAD, W, C, channels, PAD), y, inside)
    if columns:
        mirror = tl.zeros_like(y) if ZERO else y
        for place in tl.static_range(1, PLACES):
            at, there = _mirrored(w, W, PAD, place)
            tl.store(y_ptr + _padded_offsets(h, at, W, C, channels, PAD), mirror, inside & there[:, None])


@triton.jit
def _store_padded(
    y, y_ptr, row0, channels, inside, H, W, C,
    PAD: tl.constexpr, PLACES: tl.constexpr, ZERO: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Stores a tile at all its positions in a dense padded map: its reflection, or zeros around it."""
    y = y.to(y_ptr.dtype.element_ty)
    h, w = _pixels(row0, W, BLOCK_M)
    rows, columns = _edges(row0, H, W, PAD, BLOCK_M)
    _store_row(y, y_ptr, h + PAD, w, channels, inside, columns, W, C, PAD, PLACES, ZERO)
    if rows:
        mirror = tl.zeros_like(y) if ZERO else y
        for place in tl.static_range(1, PLACES):
            at, there = _mirrored(h, H, PAD, place)
            there = inside & there[:, None]
            _store_row(mirror, y_ptr, at, w, channels, there, columns, W, C, PAD, PLACES, ZERO)


@triton.jit
def _load_row(
    dy_ptr, h, w, channels, inside, columns, W, row_stride, pixel_stride,
    PAD: tl.constexpr, PLACES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Returns the sum of padded rows h over every position of a tile's columns."""
    dy = tl.load(dy_ptr + _offsets(h, w + PAD, row_stride, pixel_stride, channels), inside, 0.0).to(ACC)
    if columns:
        for place in tl.static_range(1, PLACES):
            at, there = _mirrored(w, W, PAD, place)
            at = _offsets(h, at, row_stride, pixel_stride, channels)
            dy += tl.load(dy_ptr + at, inside & there[:, None], 0.0).to(ACC)
    return dy


@triton.jit
def _load_folded(
    dy_ptr, row0, channels, inside, H, W, row_stride, pixel_stride,
    PAD: tl.constexpr, PLACES: tl.constexpr, BLOCK_M: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Returns the gradient of a tile, given that of the padded map: each pixel sums all its positions."""
    h, w = _pixels(row0, W, BLOCK_M)
    rows, columns = _edges(row0, H, W, PAD, BLOCK_M)
    dy = _load_row(dy_ptr, h + PAD, w, channels, inside, columns, W, row_stride, pixel_stride, PAD, PLACES, ACC)
    if rows:
        for place in tl.static_range(1, PLACES):
            at, there = _mirrored(h, H, PAD, place)
            dy += _load_row(
                dy_ptr, at, w, channels, inside & there[:, None], columns, W, row_stride, pixel_stride,
                PAD, PLACES, ACC,
            )  # fmt: skip
    return dy


@triton.jit
def _write_output(
    x, y_ptr, residual_ptr, row0, channels, inside, mean, rstd, weight, bias, H, W, C,
    residual_row_stride, residual_pixel_stride, slope: tl.constexpr,
    ACT: tl.constexpr, RESIDUAL: tl.constexpr, PAD: tl.constexpr, PLACES: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Normalises, activates and stores a tile, reflected."""
    z = (x - mean[None, :]) * rstd[None, :] * weight[None, :] + bias[None, :]
    y = activate(z, ACT, slope)
    if RESIDUAL:
        h, w = _pixels(row0, W, BLOCK_M)
        at = _offsets(h, w, residual_row_stride, residual_pixel_stride, channels)
        y += tl.load(residual_ptr + at, inside, 0.0).to(y.dtype)
    _store_padded(y, y_ptr, row0, channels, inside, H, W, C, PAD, PLACES, False, BLOCK_M)


@triton.jit
def image_apply_kernel(
    x_ptr, y_ptr, residual_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, H, W, C,
    residual_image_stride, residual_row_stride, residual_pixel_stride, eps: tl.constexpr, slope: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr, PAD: tl.constexpr, PLACES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Computes the output, given the statistics."""
    n = tl.program_id(2).to(tl.int64)
    row0, channel0 = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_C
    channels = channel0 + tl.arange(0, BLOCK_C)
    mean, rstd, weight, bias = norm_vectors(
        mean_ptr + n * C, var_ptr + n * C, weight_ptr, bias_ptr, channels, C, eps, AFFINE, ACC
    )
    offsets, inside = tile(row0, channel0, H * W, C, BLOCK_M, BLOCK_C)
    x = tl.load(x_ptr + n * H * W * C + offsets, inside, 0.0).to(ACC)
    _write_output(
        x, y_ptr + n * (H + 2 * PAD) * (W + 2 * PAD) * C,
        residual_ptr + n * residual_image_stride if RESIDUAL else None,
        row0, channels, inside, mean, rstd, weight, bias, H, W, C, residual_row_stride, residual_pixel_stride, slope,
        ACT, RESIDUAL, PAD, PLACES, BLOCK_M,
    )  # fmt: skip


@triton.jit
def image_forward_kernel(
    x_ptr, y_ptr, residual_ptr, mean_ptr, m2_ptr, out_mean_ptr, out_var_ptr, weight_ptr, bias_ptr, arrived_ptr,
    H, W, C, S, split_rows, residual_image_stride, residual_row_stride, residual_pixel_stride,
    eps: tl.constexpr, slope: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr, PAD: tl.constexpr, PLACES: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Computes the forward of a row split of an image, which stays in registers: x is read once."""
    n = tl.program_id(2).to(tl.int64)
    channel0, split, M = tl.program_id(0) * BLOCK_C, tl.program_id(1), H * W
    channels = channel0 + tl.arange(0, BLOCK_C)
    begin = split * split_rows
    end = tl.minimum(begin + split_rows, M)
    offsets, inside = tile(begin, channel0, end, C, BLOCK_M, BLOCK_C)
    x_ptr += n * M * C
    x = tl.load(x_ptr + offsets, inside, 0.0)
    first = tl.load(x_ptr + begin.to(tl.int64) * C + channels, channels < C, 0.0).to(ACC)
    mean = first + tl.sum(tl.where(inside, x.to(ACC) - first[None, :], 0.0), 0) / (end - begin)
    deviation = tl.where(inside, x.to(ACC) - mean[None, :], 0.0)
    mean_ptr += n * S * C
    m2_ptr += n * S * C
    tl.store(mean_ptr + split * C + channels, mean, channels < C)
    tl.store(m2_ptr + split * C + channels, tl.sum(deviation * deviation, 0), channels < C)
    grid_barrier(arrived_ptr + n * tl.num_programs(0) + tl.program_id(0), S)
    mean, var = merged_splits(mean_ptr, m2_ptr, channels, M, C, S, split_rows, BLOCK_S, ACC)
    if split == 0:
        tl.store(out_mean_ptr + n * C + channels, mean, channels < C)
        tl.store(out_var_ptr + n * C + channels, var, channels < C)
    weight, bias = affine(weight_ptr, bias_ptr, channels, C, AFFINE, ACC)
    _write_output(
        x.to(ACC), y_ptr + n * (H + 2 * PAD) * (W + 2 * PAD) * C,
        residual_ptr + n * residual_image_stride if RESIDUAL else None,
        begin, channels, inside, mean, tl.rsqrt(var + eps), weight, bias, H, W, C,
        residual_row_stride, residual_pixel_stride, slope, ACT, RESIDUAL, PAD, PLACES, BLOCK_M,
    )  # fmt: skip


@triton.jit
def _read(
    x_ptr, dy_ptr, row0, channels, offsets, inside, mean, rstd, weight, bias, H, W, row_stride, pixel_stride,
    slope: tl.constexpr, ACT: tl.constexpr, PAD: tl.constexpr, PLACES: tl.constexpr, BLOCK_M: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Returns a tile's normalised input, its folded gradient after the activation, and its gradient at z."""
    x = tl.load(x_ptr + offsets, inside, 0.0).to(ACC)
    dy = _load_folded(dy_ptr, row0, channels, inside, H, W, row_stride, pixel_stride, PAD, PLACES, BLOCK_M, ACC)
    normalised = (x - mean[None, :]) * rstd[None, :]
    return normalised, dy, through_activation(dy, normalised * weight[None, :] + bias[None, :], ACT, slope)


@triton.jit
def image_backward_sums_kernel(
    x_ptr, dy_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, dz_sum_ptr, dzx_sum_ptr,
    H, W, C, S, split_rows, dy_image_stride, dy_row_stride, dy_pixel_stride, eps: tl.constexpr, slope: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, PAD: tl.constexpr, PLACES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Stores the sums of dz, and of dz times the normalised input, over a row split of an image, [N, S, C] each."""
    n = tl.program_id(2).to(tl.int64)
    channel0, split = tl.program_id(0) * BLOCK_C, tl.program_id(1)
    channels = channel0 + tl.arange(0, BLOCK_C)
    mean, rstd, weight, bias = norm_vectors(
        mean_ptr + n * C, var_ptr + n * C, weight_ptr, bias_ptr, channels, C, eps, AFFINE, ACC
    )
    begin = split * split_rows
    end = tl.minimum(begin + split_rows, H * W)
    x_ptr += n * H * W * C
    dy_ptr += n * dy_image_stride
    dz_sum = tl.zeros([BLOCK_M, BLOCK_C], ACC)
    dzx_sum = tl.zeros([BLOCK_M, BLOCK_C], ACC)
    for row0 in range(begin, end, BLOCK_M):
        offsets, inside = tile(row0, channel0, end, C, BLOCK_M, BLOCK_C)
        normalised, _, dz = _read(
            x_ptr, dy_ptr, row0, channels, offsets, inside, mean, rstd, weight, bias, H, W,
            dy_row_stride, dy_pixel_stride, slope, ACT, PAD, PLACES, BLOCK_M, ACC,
        )  # fmt: skip
        dz_sum += dz
        dzx_sum += dz * normalised
    at = (n * S + split) * C + channels
    tl.store(dz_sum_ptr + at, tl.sum(dz_sum, 0), channels < C)
    tl.store(dzx_sum_ptr + at, tl.sum(dzx_sum, 0), channels < C)


@triton.jit
def _write_gradients(
    normalised, dy, dz, dx_ptr, dresidual_ptr, n, row0, channels, offsets, inside, rstd, weight, dbias, dweight,
    H, W, C, DRESIDUAL: tl.constexpr, RESIDUAL_PAD: tl.constexpr, RESIDUAL_PLACES: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Stores the gradient of the input and, if DRESIDUAL, that of the residual, with zeros in its padding."""
    write_dx(
        normalised, dz, dx_ptr + n * H * W * C, offsets, inside, rstd, weight, dbias, dweight, H * W, "input", True
    )
    if DRESIDUAL:
        dresidual_ptr += n * (H + 2 * RESIDUAL_PAD) * (W + 2 * RESIDUAL_PAD) * C
        _store_padded(dy, dresidual_ptr, row0, channels, inside, H, W, C, RESIDUAL_PAD, RESIDUAL_PLACES, True, BLOCK_M)


@triton.jit
def image_backward_apply_kernel(
    x_ptr, dy_ptr, dx_ptr, dresidual_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, dbias_ptr, dweight_ptr, H, W, C,
    dy_image_stride, dy_row_stride, dy_pixel_stride, eps: tl.constexpr, slope: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, PAD: tl.constexpr, PLACES: tl.constexpr,
    DRESIDUAL: tl.constexpr, RESIDUAL_PAD: tl.constexpr, RESIDUAL_PLACES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Stores the gradients of the input and the residual, given the image's sums."""
    n = tl.program_id(2).to(tl.int64)
    row0, channel0 = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_C
    channels = channel0 + tl.arange(0, BLOCK_C)
    mean, rstd, weight, bias = norm_vectors(
        mean_ptr + n * C, var_ptr + n * C, weight_ptr, bias_ptr, channels, C, eps, AFFINE, ACC
    )
    dbias = tl.load(dbias_ptr + n * C + channels, channels < C, 0.0)
    dweight = tl.load(dweight_ptr + n * C + channels, channels < C, 0.0)
    offsets, inside = tile(row0, channel0, H * W, C, BLOCK_M, BLOCK_C)
    normalised, dy, dz = _read(
        x_ptr + n * H * W * C, dy_ptr + n * dy_image_stride, row0, channels, offsets, inside, mean, rstd, weight, bias,
        H, W, dy_row_stride, dy_pixel_stride, slope, ACT, PAD, PLACES, BLOCK_M, ACC,
    )  # fmt: skip
    _write_gradients(
        normalised, dy, dz, dx_ptr, dresidual_ptr, n, row0, channels, offsets, inside, rstd, weight, dbias, dweight,
        H, W, C, DRESIDUAL, RESIDUAL_PAD, RESIDUAL_PLACES, BLOCK_M,
    )  # fmt: skip


@triton.jit
def image_backward_kernel(
    x_ptr, dy_ptr, dx_ptr, dresidual_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, dz_sum_ptr, dzx_sum_ptr,
    dbias_ptr, dweight_ptr, arrived_ptr, H, W, C, S, split_rows, dy_image_stride, dy_row_stride, dy_pixel_stride,
    eps: tl.constexpr, slope: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, PAD: tl.constexpr, PLACES: tl.constexpr,
    DRESIDUAL: tl.constexpr, RESIDUAL_PAD: tl.constexpr, RESIDUAL_PLACES: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Computes the backward of a row split of an image, which stays in registers: x and dy are read once."""
    n = tl.program_id(2).to(tl.int64)
    channel0, split, M = tl.program_id(0) * BLOCK_C, tl.program_id(1), H * W
    channels = channel0 + tl.arange(0, BLOCK_C)
    mean, rstd, weight, bias = norm_vectors(
        mean_ptr + n * C, var_ptr + n * C, weight_ptr, bias_ptr, channels, C, eps, AFFINE, ACC
    )
    begin = split * split_rows
    end = tl.minimum(begin + split_rows, M)
    offsets, inside = tile(begin, channel0, end, C, BLOCK_M, BLOCK_C)
    normalised, dy, dz = _read(
        x_ptr + n * M * C, dy_ptr + n * dy_image_stride, begin, channels, offsets, inside, mean, rstd, weight, bias,
        H, W, dy_row_stride, dy_pixel_stride, slope, ACT, PAD, PLACES, BLOCK_M, ACC,
    )  # fmt: skip
    dz_sum_ptr += n * S * C
    dzx_sum_ptr += n * S * C
    tl.store(dz_sum_ptr + split * C + channels, tl.sum(dz, 0), channels < C)
    tl.store(dzx_sum_ptr + split * C + channels, tl.sum(dz * normalised, 0), channels < C)
    grid_barrier(arrived_ptr + n * tl.num_programs(0) + tl.program_id(0), S)
    dbias = summed_splits(dz_sum_ptr, channels, C, S, BLOCK_S, ACC)
    dweight = summed_splits(dzx_sum_ptr, channels, C, S, BLOCK_S, ACC)
    if split == 0:
        tl.store(dbias_ptr + n * C + channels, dbias, channels < C)
        tl.store(dweight_ptr + n * C + channels, dweight, channels < C)
    _write_gradients(
        normalised, dy, dz, dx_ptr, dresidual_ptr, n, begin, channels, offsets, inside, rstd, weight, dbias, dweight,
        H, W, C, DRESIDUAL, RESIDUAL_PAD, RESIDUAL_PLACES, BLOCK_M,
    )  # fmt: skip
