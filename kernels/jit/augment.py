"""Triton code of `kernels.augment`.

Shape legend: M images of H x W pixels in the set, N in the batch; a program makes BLOCK values of one image.
"""

import triton
import triton.language as tl

# Of the counter: which numbers are drawn. `kernels.augment.draw` uses the same.
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
    """A number in [0, n) from a random word."""
    return ((word.to(tl.uint64) * n) >> 32).to(tl.int32)


@triton.jit
def _factor(word, spread: tl.constexpr):
    """A number in [1 - spread, 1 + spread) from a random word."""
    return 1 + spread * (2 * ((word >> 8).to(tl.float32) * 5.9604644775390625e-08) - 1)


@triton.jit
def _reflected(position, size: tl.constexpr):
    position = tl.where(position < 0, -position, position)
    return tl.where(position >= size, 2 * (size - 1) - position, position)


@triton.jit
def _pixels(image_ptr, at, flip, row_offset, column_offset, brightness, H: tl.constexpr, W: tl.constexpr,
            BRIGHTNESS: tl.constexpr):  # fmt: skip
    """Values `at` of the cropped and flipped image, in units of 1/255, and their row, column and channel."""
    channel = at % 3
    column = (at // 3) % W
    row = at // (3 * W)
    from_column = _reflected(tl.where(flip, W - 1 - column, column) + column_offset, W)
    from_row = _reflected(row + row_offset, H)
    x = tl.load(image_ptr + (from_row * W + from_column) * 3 + channel, at < H * W * 3, 0).to(tl.float32)
    if BRIGHTNESS > 0:
        x = tl.minimum(x * brightness, 255.0)
    return x, row, column, channel


@triton.jit
def _of_channel(channel, red: tl.constexpr, green: tl.constexpr, blue: tl.constexpr):
    return tl.where(channel == 0, red, tl.where(channel == 1, green, blue))


@triton.jit(do_not_specialize=["seed", "epoch"])  # or every epoch that divides by 16 compiles anew
def augment_kernel(
    images_ptr, indices_ptr, out_ptr, seed, epoch,
    H: tl.constexpr, W: tl.constexpr, PAD: tl.constexpr, FLIP: tl.constexpr, CUTOUT: tl.constexpr,
    BRIGHTNESS: tl.constexpr, CONTRAST: tl.constexpr, SCALE: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Draws, gathers, crops, flips, jitters, normalises and cuts out, in one pass over the images of a batch."""
    place = tl.program_id(0).to(tl.int64)
    sample = tl.load(indices_ptr + place)
    image_ptr = images_ptr + sample * (H * W * 3)
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
    grey = 0.0
    if CONTRAST > 0:
        for start in range(0, H * W * 3, BLOCK):
            values, _row, _column, colour = _pixels(
                image_ptr, start + tl.arange(0, BLOCK), flip, row_offset, column_offset, brightness, H, W, BRIGHTNESS
            )
            grey += tl.sum(values * _of_channel(colour, 0.299, 0.587, 0.114)) / (H * W)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x, row, column, channel = _pixels(image_ptr, at, flip, row_offset, column_offset, brightness, H, W, BRIGHTNESS)
    if CONTRAST > 0:
        x = tl.minimum(tl.maximum((x - grey) * contrast + grey, 0.0), 255.0)
    x = x * _of_channel(channel, SCALE[0], SCALE[1], SCALE[2]) + _of_channel(channel, BIAS[0], BIAS[1], BIAS[2])
    if CUTOUT > 0:
        from_top = row - (_below(cut_row_word, H) - CUTOUT // 2)
        from_left = column - (_below(cut_column_word, W) - CUTOUT // 2)
        x = tl.where((from_top >= 0) & (from_top < CUTOUT) & (from_left >= 0) & (from_left < CUTOUT), 0.0, x)
    tl.store(out_ptr + place * (H * W * 3) + at, x.to(out_ptr.dtype.element_ty), at < H * W * 3)
