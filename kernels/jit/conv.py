"""Triton code of `kernels.conv`: convolutions as matrix products that gather their rows from channels-last maps.

Shape legend of the convolution: N images, H, W input map, C input channels, P, Q output map, K output channels, R, S
filter; filters are [K, R, S, C] in memory. In a product a row is a pixel, a column a channel of the result,
and the inner dimension runs over filter places and channels of the map that is read.
"""

import triton
import triton.language as tl

from wallclock.kernels.jit.tile import activate, through_activation

# A norm's vectors are the rows of a float32 table [5, C]; see `kernels.conv.Norm`.
SCALE, SHIFT, MEAN, RSTD = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def vector(table_ptr, row: tl.constexpr, channels, C):
    """Returns a row of a norm's table at a block of channels."""
    return tl.load(table_ptr + row * C + channels, channels < C, 0.0)


@triton.jit
def _gathered(
    ptr, offsets, inside, channels, table_ptr, C: tl.constexpr, BLOCK: tl.constexpr,
    PROLOGUE: tl.constexpr, ACT: tl.constexpr, slope: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Returns a tile of pixels and channels of a map, normalised and activated first if PROLOGUE.

    Values outside the map are zero after the activation: the convolution pads the activated map.
    """
    mask = inside[:, None]
    if C % BLOCK != 0:
        mask = mask & (channels < C)[None, :]
    x = tl.load(ptr + offsets[:, None] + channels[None, :], mask, 0.0)
    if PROLOGUE:
        scale, shift = vector(table_ptr, SCALE, channels, C), vector(table_ptr, SHIFT, channels, C)
        z = x.to(ACC) * scale[None, :] + shift[None, :]
        x = tl.where(mask, activate(z, ACT, slope), 0.0).to(x.dtype)
    return x


@triton.jit
def _product(a, b, acc, PRECISION: tl.constexpr, ACC: tl.constexpr):
    """Returns a @ b + acc; "widened" is for the interpreter, which would multiply the bits of bfloat16 as integers."""
    if PRECISION == "widened":
        return tl.dot(a.to(ACC), b.to(ACC), acc, input_precision="ieee", out_dtype=ACC)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def conv_kernel(
    a_ptr, filter_ptr, out_ptr, a_table_ptr, first_ptr, second_ptr, scale_ptr, shift_ptr, other_ptr, other_table_ptr,
    rows, a_height, a_width, out_height, out_width, grid_height, grid_width,
    A_C: tl.constexpr, OUT_C: tl.constexpr, R: tl.constexpr, S: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr,
    TRANSPOSED: tl.constexpr, PROLOGUE: tl.constexpr, EPILOGUE: tl.constexpr, ACT: tl.constexpr, slope: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Computes a convolution, or (TRANSPOSED) the gradient of one's input, as a convolution by phases of STRIDE.

    EPILOGUE: "" stores the result; "stats" also stores each tile's mean and sum of squared deviations by channel;
    "affine" applies scale, shift, activation and residual (`other_ptr`), those that are given; "sums" takes the
    gradient through the norm and the activation of the map `other_ptr`, and stores each tile's sums of the gradient and
    of the gradient times the normalised map.
    """
    tiles_n: tl.constexpr = (OUT_C + BLOCK_N - 1) // BLOCK_N
    pid = tl.program_id(0)
    tile_m = pid // tiles_n
    n = (pid % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    within = m % (grid_height * grid_width)
    image, i, j = (m // (grid_height * grid_width)).to(tl.int64), within // grid_width, within % grid_width
    if TRANSPOSED:
        phase_h, phase_w = tl.program_id(1) // STRIDE, tl.program_id(1) % STRIDE
        r0, s0 = (phase_h + PAD) % STRIDE, (phase_w + PAD) % STRIDE
        taps_r, taps_s = (R - r0 + STRIDE - 1) // STRIDE, (S - s0 + STRIDE - 1) // STRIDE
        row0, column0 = i + (phase_h + PAD - r0) // STRIDE, j + (phase_w + PAD - s0) // STRIDE
        out_row, out_column = i * STRIDE + phase_h, j * STRIDE + phase_w
    else:
        r0, s0, taps_r, taps_s = 0, 0, R, S
        row0, column0 = i * STRIDE - PAD, j * STRIDE - PAD
        out_row, out_column = i, j
    valid = (m < rows) & (out_row < out_height) & (out_column < out_width)
    k_blocks: tl.constexpr = (A_C + BLOCK_K - 1) // BLOCK_K
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for step in range(0, taps_r * taps_s * k_blocks):
        tap, k = step // k_blocks, (step % k_blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
        r, s = tap // taps_s, tap % taps_s
        if TRANSPOSED:
            row, column = row0 - r, column0 - s
            place = (r0 + r * STRIDE) * S + s0 + s * STRIDE
        else:
            row, column = row0 + r, column0 + s
            place = tap
        inside = valid
        if R * S > 1 or PAD > 0 or TRANSPOSED:
            inside = valid & (row >= 0) & (row < a_height) & (column >= 0) & (column < a_width)
        offsets = ((image * a_height + row) * a_width + column) * A_C
        a = _gathered(a_ptr, offsets, inside, k, a_table_ptr, A_C, BLOCK_K, PROLOGUE, ACT, slope, ACC)
        if TRANSPOSED:
            at = (k[:, None] * (R * S) + place) * OUT_C + n[None, :]
        else:
            at = (n[None, :] * (R * S) + place) * A_C + k[:, None]
        if OUT_C % BLOCK_N == 0 and A_C % BLOCK_K == 0:
            b = tl.load(filter_ptr + at)
        else:
            b = tl.load(filter_ptr + at, (k < A_C)[:, None] & (n < OUT_C)[None, :], 0.0)
        acc = _product(a, b, acc, PRECISION, ACC)
    out_at = ((image * out_height + out_row) * out_width + out_column)[:, None] * OUT_C + n[None, :]
    mask = valid[:, None]
    if OUT_C % BLOCK_N != 0:
        mask = mask & (n < OUT_C)[None, :]
    partial_at = (tl.program_id(1).to(tl.int64) * (tl.num_programs(0) // tiles_n) + tile_m) * OUT_C + n
    if EPILOGUE == "affine":
        if scale_ptr is not None:
            acc = acc * tl.load(scale_ptr + n, n < OUT_C, 0.0)[None, :]
        if shift_ptr is not None:
            acc = acc + tl.load(shift_ptr + n, n < OUT_C, 0.0)[None, :]
        acc = activate(acc, ACT, slope)
        if other_ptr is not None:
            acc += tl.load(other_ptr + out_at, mask, 0.0).to(ACC)
    elif EPILOGUE == "sums":
        x = tl.load(other_ptr + out_at, mask, 0.0).to(ACC)
        scale, shift = vector(other_table_ptr, SCALE, n, OUT_C), vector(other_table_ptr, SHIFT, n, OUT_C)
        acc = tl.where(mask, through_activation(acc, x * scale[None, :] + shift[None, :], ACT, slope), 0.0)
        deviation = x - vector(other_table_ptr, MEAN, n, OUT_C)[None, :]
        tl.store(first_ptr + partial_at, tl.sum(acc, 0), n < OUT_C)
        dzx = tl.sum(acc * deviation, 0) * vector(other_table_ptr, RSTD, n, OUT_C)
        tl.store(second_ptr + partial_at, dzx, n < OUT_C)
    out = acc.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_at, out, mask)
    if EPILOGUE == "stats":  # of the stored values, so that their norm has mean 0 and variance 1
        y = out.to(ACC)
        mean = tl.sum(tl.where(mask, y, 0.0), 0) / tl.minimum(rows - tile_m * BLOCK_M, BLOCK_M)
        deviation = tl.where(mask, y - mean[None, :], 0.0)
        tl.store(first_ptr + partial_at, mean, n < OUT_C)
        tl.store(second_ptr + partial_at, tl.sum(deviation * deviation, 0), n < OUT_C)


@triton.jit
def filter_gradient_kernel(
    dy_ptr, a_ptr, partial_ptr, a_table_ptr, rows, a_height, a_width, out_height, out_width, split_rows,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr,
    PROLOGUE: tl.constexpr, ACT: tl.constexpr, slope: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Computes the gradient of one filter place over a split of the output's pixels: [K, R, S, C] of each split.

    A tile is BLOCK_M output channels by BLOCK_N input channels; BLOCK_K pixels are taken at a time.
    """
    tiles_c: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    tiles_k: tl.constexpr = (K + BLOCK_M - 1) // BLOCK_M
    pid, split = tl.program_id(0), tl.program_id(1)
    place = pid // (tiles_c * tiles_k)
    k = (pid // tiles_c) % tiles_k * BLOCK_M + tl.arange(0, BLOCK_M)
    c = pid % tiles_c * BLOCK_N + tl.arange(0, BLOCK_N)
    end = tl.minimum((split + 1) * split_rows, rows)
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for row0 in range(split * split_rows, end, BLOCK_K):
        m = row0 + tl.arange(0, BLOCK_K)
        valid = m < end
        mask = valid[:, None]
        if K % BLOCK_M != 0:
            mask = mask & (k < K)[None, :]
        dy = tl.load(dy_ptr + m.to(tl.int64)[:, None] * K + k[None, :], mask, 0.0)
        image, within = (m // (out_height * out_width)).to(tl.int64), m % (out_height * out_width)
        row = within // out_width * STRIDE + (place // S - PAD)
        column = within % out_width * STRIDE + (place % S - PAD)
        inside = valid
        if R * S > 1 or PAD > 0:
            inside = valid & (row >= 0) & (row < a_height) & (column >= 0) & (column < a_width)
        offsets = ((image * a_height + row) * a_width + column) * C
        a = _gathered(a_ptr, offsets, inside, c, a_table_ptr, C, BLOCK_N, PROLOGUE, ACT, slope, ACC)
        acc = _product(tl.trans(dy), a, acc, PRECISION, ACC)
    at = ((split.to(tl.int64) * K + k[:, None]) * (R * S) + place) * C + c[None, :]
    tl.store(partial_ptr + at, acc.to(partial_ptr.dtype.element_ty), (k < K)[:, None] & (c < C)[None, :])


@triton.jit
def sum_splits_kernel(partial_ptr, out_ptr, n, splits, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """Sums [splits, n] to [n], in order."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], ACC)
    place = at
    for _ in range(0, splits):
        total += tl.load(partial_ptr + place, at < n, 0.0)
        place += n
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), at < n)
