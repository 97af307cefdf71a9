"""Triton code of `kernels.augment`.

Shape legend: M images of H x W pixels in the set, N in the batch; a program makes BLOCK values of one image.
"""

import triton
import triton.language as tl

# A word of the counter, which keeps the draws apart; `kernels.augment.draw` uses the same word.
CROP_AND_FLIP = tl.constexpr(0)
CUTOUT_AND_JITTER = tl.constexpr(1)
FIRST_FLIP = tl.constexpr(2)


@triton.jit
def _words(seed, sample, epoch, purpose: tl.constexpr):
    zero = sample * 0
    return tl.philox(
        seed, sample.to(tl.uint32), (zero + epoch).to(tl.uint32), (zero + purpose).to(tl.uint32), zero.to(tl.uint32)
    )


@triton.jit
def _below(word, n: tl.constexpr):
    """Returns a number in [0, n) from a random word."""
    return ((word.to(tl.uint64) * n) >> 32).to(tl.int32)


@triton.jit
def _factor(word, spread: tl.constexpr):
    """Returns a number in [1 - spread, 1 + spread) from a random word."""
    return 1 + spread * (2 * ((word >> 8).to(tl.float32) * 5.9604644775390625e-08) - 1)


@triton.jit
def _reflected(position, size: tl.constexpr):
    position = tl.where(position < 0, -position, position)
    return tl.where(position >= size, 2 * (size - 1) - position, position)


@triton.jit
def _of_channel(channel, values: tl.constexpr):
    return tl.where(channel == 0, values[0], tl.where(channel == 1, values[1], values[2]))


@triton.jit
def _values(image_ptr, rows, from_at, row_offset, black_at, brightness, H: tl.constexpr, W: tl.constexpr,
            BRIGHTNESS: tl.constexpr, BLACK: tl.constexpr):  # fmt: skip
    """Returns rows of the cropped and flipped image in units of 1/255, float32 [ROWS, WIDTH].

    No load is masked: a lane outside of the image repeats a pixel of the image.
    """
    row = tl.minimum(rows, H - 1) + row_offset
    from_row = _reflected(row, H) * (3 * W)
    x = tl.load((image_ptr + from_row)[:, None] + from_at[None, :]).to(tl.float32)
    if BLACK:
        x = tl.where(((row < 0) | (row >= H))[:, None] | black_at[None, :], 0.0, x)
    if BRIGHTNESS > 0:
        x = tl.minimum(x * brightness, 255.0)
    return x


@triton.jit
def _counted(x, rows, H: tl.constexpr, ROWS: tl.constexpr):
    """Returns the image's rows, with zeros where a lane repeats a row."""
    return tl.where((rows < H)[:, None], x, 0.0) if H % ROWS else x


@triton.jit(do_not_specialize=["M", "seed", "epoch"])  # or every epoch that divides by 16 compiles anew
def augment_kernel(
    images_ptr, indices_ptr, out_ptr, M, seed, epoch,
    H: tl.constexpr, W: tl.constexpr, PAD: tl.constexpr, FLIP: tl.constexpr, CUTOUT: tl.constexpr,
    BRIGHTNESS: tl.constexpr, CONTRAST: tl.constexpr, SCALE: tl.constexpr, BIAS: tl.constexpr, GREY: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, BLACK: tl.constexpr = None,
):  # fmt: skip
    """Draws, gathers, crops, flips, jitters, normalises and cuts out, in one pass over the images of a batch.

    Values that depend only on the position in a row are computed once for all rows: integers bound this kernel.
    """
    place = tl.program_id(0).to(tl.int64)
    sample = tl.load(indices_ptr + place)
    known = (sample >= 0) & (sample < M)
    image_ptr = images_ptr + tl.where(known, sample, 0) * (H * W * 3)
    row_offset, column_offset, flip = 0, 0, False
    if PAD > 0 or FLIP == "random":
        row_word, column_word, flip_word, _unused = _words(seed, sample, epoch, CROP_AND_FLIP)
        row_offset, column_offset = _below(row_word, 2 * PAD + 1) - PAD, _below(column_word, 2 * PAD + 1) - PAD
        if FLIP == "random":
            flip = flip_word >= 2147483648
    if FLIP == "alternating":
        first_word, _word1, _word2, _word3 = _words(seed, sample, 0, FIRST_FLIP)
        flip = (first_word >= 2147483648) ^ (epoch % 2 == 1)
    brightness, contrast = 1.0, 1.0
    if CUTOUT > 0 or BRIGHTNESS > 0 or CONTRAST > 0:
        cut_row_word, cut_column_word, brightness_word, contrast_word = _words(seed, sample, epoch, CUTOUT_AND_JITTER)
        brightness, contrast = _factor(brightness_word, BRIGHTNESS), _factor(contrast_word, CONTRAST)
    at = tl.arange(0, WIDTH)
    column, channel = tl.minimum(at // 3, W - 1), at % 3
    from_column = tl.where(flip, W - 1 - column, column) + column_offset
    from_at = _reflected(from_column, W) * 3 + channel
    black_at = (from_column < 0) | (from_column >= W) if BLACK else False
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x = _values(image_ptr, rows, from_at, row_offset, black_at, brightness, H, W, BRIGHTNESS, BLACK)
    if CONTRAST > 0:
        weight = tl.where(at < 3 * W, _of_channel(channel, GREY), 0.0)[None, :] / (H * W)
        if ROWS >= H:
            grey = tl.sum(_counted(x * weight, rows, H, ROWS))
        else:
            grey = 0.0
            for row0 in range(0, H, ROWS):
                block = row0 + tl.arange(0, ROWS)
                others = _values(image_ptr, block, from_at, row_offset, black_at, brightness, H, W, BRIGHTNESS, BLACK)
                grey += tl.sum(_counted(others * weight, block, H, ROWS))
        x = tl.minimum(tl.maximum(x * contrast + (grey - grey * contrast), 0.0), 255.0)
    bias = tl.where(known, _of_channel(channel, BIAS), float("nan"))  # an index outside of the set gives NaN throughout
    x = x * _of_channel(channel, SCALE)[None, :] + bias[None, :]
    if CUTOUT > 0:
        from_top = rows - (_below(cut_row_word, H) - CUTOUT // 2)
        from_left = column - (_below(cut_column_word, W) - CUTOUT // 2)
        cut = ((from_top >= 0) & (from_top < CUTOUT))[:, None] & ((from_left >= 0) & (from_left < CUTOUT))[None, :]
        x = tl.where(cut, 0.0, x)
    out = place * (H * W * 3) + rows[:, None] * (3 * W) + at[None, :]
    tl.store(out_ptr + out, x.to(out_ptr.dtype.element_ty), (rows < H)[:, None] & (at < 3 * W)[None, :])
