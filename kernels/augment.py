"""Augmentation of uint8 images on their device: gather, pad, crop, flip, cut out, normalise, in one pass.

Shape legend: N batch, M images in the set, H, W height and width, C = 3; offsets and centres are (row, column).
"""

import dataclasses
import functools
from typing import Literal, get_args

import torch
from torch import Tensor

from wallclock.kernels.operator import operator
from wallclock.kernels.philox import philox_ref

Flip = Literal["alternating", "random", "none"]
Padding = Literal["reflect", "zero"]

# Weights of red, green and blue in the grey value from which contrast is measured (ITU-R BT.601, as torchvision).
GREY = (0.299, 0.587, 0.114)
# Mean and standard deviation of CIFAR-10's training pixels, which range from 0 to 1.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

TILE = 4096  # values that a program makes: a whole CIFAR image
WARPS = 2  # few, because each thread computes the values that the rows share


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image: pad, crop, flip, jitter, cut out a square.

    Attributes:
        pad: pixels of padding on every side before the crop back to the image's size.
        flip: "alternating" mirrors a fixed random half of the images in even epochs and the other half in odd ones, so
            that two epochs show every image both ways; "random" tosses a coin for each; "none" mirrors none.
        cutout: edge in pixels of a square set to the mean colour; 0 for none.
        brightness: range of the factors on the pixels, uniform in [1 - brightness, 1 + brightness]; 0 for none.
        contrast: range of the factors on the contrast, uniform in [1 - contrast, 1 + contrast]; 0 for none.
        padding: content of the padding: "reflect" mirrors the image at its unrepeated edge pixels; "zero" is black.

    Raises:
        ValueError: if a number is negative, or `flip` or `padding` has another value.
    """

    pad: int = 2
    flip: Flip = "alternating"
    cutout: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    padding: Padding = "reflect"

    def __post_init__(self) -> None:
        if self.pad < 0 or self.cutout < 0:
            raise ValueError(f"pad is {self.pad} and cutout {self.cutout}; expected pixels, 0 for none")
        if not (0 <= self.brightness <= 1 and 0 <= self.contrast <= 1):
            raise ValueError(f"brightness is {self.brightness} and contrast {self.contrast}; expected 0 to 1")
        if self.flip not in get_args(Flip):
            raise ValueError(f"flip is '{self.flip}'; expected one of {', '.join(get_args(Flip))}")
        if self.padding not in get_args(Padding):
            raise ValueError(f"padding is '{self.padding}'; expected one of {', '.join(get_args(Padding))}")


def augment_ref(
    image_HWC: Tensor,
    offset: tuple[int, int] = (0, 0),
    flip: bool = False,
    cutout: tuple[int, int, int] | None = None,
    brightness: float = 1.0,
    contrast: float = 1.0,
    padding: Padding = "reflect",
) -> Tensor:
    """Defines the augmentation of one image; every pipeline is tested against it, image by image.

    Args:
        image_HWC: image, uint8 [H, W, 3].
        offset: rows and columns by which the crop window is shifted from the image, each in [-pad, pad].
        flip: whether the cropped image is mirrored left to right.
        cutout: centre row, centre column and edge of a square set to the mean colour, or None.
        brightness: factor on the pixels, which are clipped to their range.
        contrast: factor on the distance to the crop's mean grey, applied after the brightness, and clipped too.
        padding: content of the pixels outside the image: "reflect" (without the edge itself), or "zero" for black.

    Returns:
        The augmented image, float32 [3, H, W], normalised by `MEAN` and `STD`.
    """
    height, width, _ = image_HWC.shape
    pad = max(abs(offset[0]), abs(offset[1]))
    x = image_HWC.permute(2, 0, 1).float().div(255)
    mode = "reflect" if padding == "reflect" else "constant"
    padded = torch.nn.functional.pad(x[None], (pad,) * 4, mode=mode)[0] if pad else x
    top, left = pad + offset[0], pad + offset[1]
    x = padded[:, top : top + height, left : left + width]
    if flip:
        x = x.flip(2)
    x = (x * brightness).clamp(0, 1)
    grey = (x * torch.tensor(GREY).view(3, 1, 1)).sum(0).mean()
    x = ((x - grey) * contrast + grey).clamp(0, 1)
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    if cutout is not None:
        row, column, edge = cutout
        top, left = max(0, row - edge // 2), max(0, column - edge // 2)
        x[:, top : row - edge // 2 + edge, left : column - edge // 2 + edge] = 0
    return x


def _reflected(positions: Tensor, size: int) -> Tensor:
    """Maps positions in [-size + 1, 2 * size - 2] into [0, size) by reflection at the edge pixels."""
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)


def _outside(positions: Tensor, size: int) -> Tensor:
    return (positions < 0) | (positions >= size)


@functools.cache
def _constants(device: torch.device, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns scale and bias for a row of pixels, float32 [3 * width], and weights of grey, float32 [3].

    They stay on the device, because a copy would make the host wait. A CPU takes 2.6 ms to normalise 1,000 images by
    three numbers, and 0.7 ms by a row of 96.
    """
    std = torch.tensor(STD, device=device)
    scale, bias = 1 / (255 * std), -torch.tensor(MEAN, device=device) / std
    return scale.repeat(width), bias.repeat(width), torch.tensor(GREY, device=device)


def augment(
    images_MHWC: Tensor,
    indices: Tensor | None,
    *,
    offsets: Tensor | None = None,
    flips: Tensor | None = None,
    cutout_centres: Tensor | None = None,
    cutout: int = 0,
    brightness: Tensor | None = None,
    contrast: Tensor | None = None,
    padding: Padding = "reflect",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Gathers and augments a batch without host synchronisation; equal to `augment_ref` image by image.

    No padding is stored: its pixels are read through reflected indices.

    Args:
        images_MHWC: the whole data set, uint8 [M, H, W, 3].
        indices: indices of the batch in the data set, int64 [N]; None for all images in order.
        offsets: shift of each crop window, int64 [N, 2], see `augment_ref`; None for no crop.
        flips: whether each image is mirrored, bool [N]; None for no flip.
        cutout_centres: centres of the squares, int64 [N, 2], needed when `cutout` is above 0.
        cutout: edge of the squares in pixels.
        brightness: factors on the pixels, float32 [N]; None for no change.
        contrast: factors on the contrast, float32 [N]; None for no change.
        padding: content of the pixels outside an image, see `augment_ref`.
        dtype: dtype of the result; normalised in float32, then rounded once.

    Returns:
        [N, 3, H, W] of `dtype` in channels-last memory, on the device of the images.

    Cost: reads 3NHW bytes, writes 3NHW elements.
    """
    device = images_MHWC.device
    height, width = images_MHWC.shape[1:3]
    outside = None
    if offsets is None and flips is None:
        pixels = images_MHWC if indices is None else images_MHWC[indices]
    else:
        indices = torch.arange(len(images_MHWC), device=device) if indices is None else indices
        rows = torch.arange(height, device=device).expand(len(indices), height)
        columns = torch.arange(width, device=device).expand(len(indices), width)
        if flips is not None:
            columns = torch.where(flips[:, None], width - 1 - columns, columns)
        if offsets is not None:
            rows, columns = rows + offsets[:, :1], columns + offsets[:, 1:]
            if padding == "zero":
                outside = _outside(rows, height)[:, :, None] | _outside(columns, width)[:, None, :]
            rows, columns = _reflected(rows, height), _reflected(columns, width)
        # Gathers whole pixels by one flat index: 4 ms for 1,000 images on two cores; advanced indexing takes 15.
        pixel = (indices[:, None, None] * height + rows[:, :, None]) * width + columns[:, None, :]
        pixels = images_MHWC.reshape(-1, 3).index_select(0, pixel.view(-1)).view(-1, height, width, 3)
    if outside is not None:
        pixels = pixels.masked_fill_(outside[..., None], 0)
    scale, bias, grey_weights = _constants(device, width)
    values = pixels.float()
    if brightness is not None:
        values = (values * brightness.view(-1, 1, 1, 1)).clamp(max=255)
    if contrast is not None:
        grey = (values * grey_weights).sum(3).mean((1, 2)).view(-1, 1, 1, 1)
        values = ((values - grey) * contrast.view(-1, 1, 1, 1) + grey).clamp(0, 255)
    rows = values.view(-1, height, 3 * width)
    x = torch.addcmul(bias, rows, scale).to(dtype).view(-1, height, width, 3)
    if cutout > 0 and cutout_centres is not None:
        top_left = cutout_centres - cutout // 2
        rows = torch.arange(height, device=device) - top_left[:, :1]
        columns = torch.arange(width, device=device) - top_left[:, 1:]
        inside = ((rows >= 0) & (rows < cutout))[:, :, None] & ((columns >= 0) & (columns < cutout))[:, None, :]
        x = x.masked_fill(inside[..., None], 0)
    return x.permute(0, 3, 1, 2)


def draw(
    augmentation: Augmentation, seed: int, epoch: int, samples: Tensor, height: int, width: int
) -> dict[str, Tensor]:
    """Draws the random arguments of `augment` for each sample of an epoch.

    The numbers depend on seed, epoch and sample alone, not on the batch, the device or earlier draws.

    The seed lies in [0, 2**63), epochs count from 0, `samples` are indices in the data set, int64 [N], and height and
    width are those of the images in pixels.
    """
    pad, flip, drawn = augmentation.pad, augmentation.flip, {}
    if pad or flip == "random":
        row, column, coin, _ = philox_ref(seed, samples, epoch, 0)
        if pad:
            drawn["offsets"] = torch.stack([_below(row, 2 * pad + 1), _below(column, 2 * pad + 1)], 1) - pad
        if flip == "random":
            drawn["flips"] = coin >= 2**31
    if flip == "alternating":
        drawn["flips"] = (philox_ref(seed, samples, 0, 2)[0] >= 2**31) ^ (epoch % 2 == 1)
    if augmentation.cutout or augmentation.brightness or augmentation.contrast:
        row, column, bright, strong = philox_ref(seed, samples, epoch, 1)
        if augmentation.cutout:
            drawn["cutout_centres"] = torch.stack([_below(row, height), _below(column, width)], 1)
        if augmentation.brightness:
            drawn["brightness"] = _factor(bright, augmentation.brightness)
        if augmentation.contrast:
            drawn["contrast"] = _factor(strong, augmentation.contrast)
    return drawn


def _below(word: Tensor, n: int) -> Tensor:
    return (word * n) >> 32


def _factor(word: Tensor, spread: float) -> Tensor:
    return 1 + spread * (2 * ((word >> 8).float() * 2.0**-24) - 1)


def augment_fused(
    images_MHWC: Tensor,
    indices: Tensor,
    augmentation: Augmentation,
    *,
    seed: int,
    epoch: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draws and augments a batch in one Triton kernel; equal to `augment` with the numbers of `draw`.

    Images and dtype are those of `augment`, and so is the result; augmentation, seed and epoch are those of `draw`. An
    index outside of the data set gives an image of NaN, because raising would make the host wait.

    Raises:
        ValueError: if shapes, types or devices do not fit, or an image is too small for the padding.

    Cost: reads 3NHW bytes (twice with contrast if an image exceeds `TILE`), writes 3NHW elements.
    """
    if images_MHWC.dtype != torch.uint8 or images_MHWC.ndim != 4 or images_MHWC.shape[3] != 3 or not len(images_MHWC):
        raise ValueError(f"images are {_described(images_MHWC)}; expected uint8 [M, H, W, 3] and at least one")
    if indices.dtype != torch.int64 or indices.ndim != 1 or indices.device != images_MHWC.device:
        where = images_MHWC.device
        raise ValueError(f"indices are {_described(indices)} on {indices.device}; expected int64 [N] on {where}")
    if augmentation.pad >= min(images_MHWC.shape[1:3]):
        raise ValueError(
            f"pad is {augmentation.pad}; an image of {_described(images_MHWC)} has too few pixels to reflect"
        )
    chosen = augmentation  # field by field: torch 2.11 compiles no `dataclasses.astuple`
    fields = (chosen.pad, chosen.flip, chosen.cutout, chosen.brightness, chosen.contrast, chosen.padding)
    return torch.ops.wallclock.augment(images_MHWC, indices, *fields, seed, epoch, dtype)


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _output(images: Tensor, indices: Tensor, dtype: torch.dtype) -> Tensor:
    _, height, width, channels = images.shape
    return images.new_empty(len(indices), height, width, channels, dtype=dtype).permute(0, 3, 1, 2)


@operator("augment", outputs=_output)
def _augment(
    images: Tensor, indices: Tensor, augmentation: Augmentation, seed: int, epoch: int, dtype: torch.dtype
) -> Tensor:
    import triton

    from wallclock.kernels.jit.augment import augment_kernel

    _, height, width, channels = images.shape
    out, chosen = _output(images, indices, dtype), augmentation
    if len(indices):
        across = triton.next_power_of_2(width * channels)
        rows = min(triton.next_power_of_2(height), max(1, TILE // across))
        scale = tuple(1 / (255 * std) for std in STD)
        bias = tuple(-mean / std for mean, std in zip(MEAN, STD, strict=True))
        augment_kernel[(len(indices), triton.cdiv(height, rows))](
            images.contiguous(), indices, out, len(images), seed, epoch,
            height, width, chosen.pad, chosen.flip, chosen.cutout, chosen.brightness, chosen.contrast,
            SCALE=scale, BIAS=bias, GREY=GREY, ROWS=rows, WIDTH=across,
            BLACK=True if chosen.padding == "zero" else None, num_warps=WARPS,
        )  # fmt: skip
    return out
