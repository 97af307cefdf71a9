"""Augmentation of uint8 images on their device: gather, reflect pad, crop, flip, cut out, normalise, in one pass.

Shape legend: N batch, M images in the set, H, W height and width, C = 3; offsets and centres are (row, column).
"""

import functools

import torch

# Mean and standard deviation of CIFAR-10's training pixels, of a range of 0 to 1.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


def augment_ref(
    image_HWC: torch.Tensor,
    offset: tuple[int, int] = (0, 0),
    flip: bool = False,
    cutout: tuple[int, int, int] | None = None,
) -> torch.Tensor:
    """Defines the augmentation of one image; every pipeline is held to it, image by image.

    Args:
        image_HWC: uint8 [H, W, 3].
        offset: rows and columns by which the crop window lies off the image, each in [-pad, pad]; pixels outside the
            image are its reflection (the edge row is not repeated).
        flip: whether the cropped image is mirrored left to right.
        cutout: centre row, centre column and edge of a square set to the mean colour, or None.

    Returns:
        float32 [3, H, W], normalised by `MEAN` and `STD`.
    """
    height, width, _ = image_HWC.shape
    pad = max(abs(offset[0]), abs(offset[1]))
    x = image_HWC.permute(2, 0, 1).float().div(255)
    padded = torch.nn.functional.pad(x[None], (pad,) * 4, mode="reflect")[0] if pad else x
    top, left = pad + offset[0], pad + offset[1]
    x = padded[:, top : top + height, left : left + width]
    if flip:
        x = x.flip(2)
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    if cutout is not None:
        row, column, edge = cutout
        top, left = max(0, row - edge // 2), max(0, column - edge // 2)
        x[:, top : row - edge // 2 + edge, left : column - edge // 2 + edge] = 0
    return x


def _reflected(positions: torch.Tensor, size: int) -> torch.Tensor:
    """Maps positions in [-size + 1, 2 * size - 2] into [0, size) by reflection at the edge pixels."""
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)


@functools.cache
def _scale_and_bias(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 [3] each, on the device once and for all: a copy to a GPU in every batch would make the host wait."""
    std = torch.tensor(STD, device=device)
    return 1 / (255 * std), -torch.tensor(MEAN, device=device) / std


def augment(
    images_MHWC: torch.Tensor,
    indices: torch.Tensor,
    *,
    offsets: torch.Tensor | None = None,
    flips: torch.Tensor | None = None,
    cutout_centres: torch.Tensor | None = None,
    cutout: int = 0,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Gathers and augments a batch, without host synchronisation; equal to `augment_ref` image by image.

    The padding is never built: its pixels are read through reflected indices.

    Args:
        images_MHWC: uint8 [M, H, W, 3], the whole data set.
        indices: int64 [N] into it.
        offsets: int64 [N, 2], see `augment_ref`; None for no crop.
        flips: bool [N]; None for no flip.
        cutout_centres: int64 [N, 2] when `cutout` is above 0.
        cutout: edge of the square, pixels.
        dtype: of the result; normalised in float32, then rounded once.

    Returns:
        [N, 3, H, W] of `dtype` in channels-last memory, on the device of the images.

    Cost: reads 3NHW bytes, writes 3NHW elements.
    """
    device = images_MHWC.device
    height, width = images_MHWC.shape[1:3]
    if offsets is None and flips is None:
        pixels = images_MHWC[indices]
    else:
        rows = torch.arange(height, device=device).expand(len(indices), height)
        columns = torch.arange(width, device=device).expand(len(indices), width)
        if flips is not None:
            columns = torch.where(flips[:, None], width - 1 - columns, columns)
        if offsets is not None:
            rows = _reflected(rows + offsets[:, :1], height)
            columns = _reflected(columns + offsets[:, 1:], width)
        # Whole pixels by one flat index: 4 ms for 1,000 images on two cores; advanced indexing takes 15.
        pixel = (indices[:, None, None] * height + rows[:, :, None]) * width + columns[:, None, :]
        pixels = images_MHWC.reshape(-1, 3).index_select(0, pixel.view(-1)).view(-1, height, width, 3)
    scale, bias = _scale_and_bias(device)
    x = torch.addcmul(bias, pixels.float(), scale).to(dtype)
    if cutout > 0 and cutout_centres is not None:
        top_left = cutout_centres - cutout // 2
        rows = torch.arange(height, device=device) - top_left[:, :1]
        columns = torch.arange(width, device=device) - top_left[:, 1:]
        inside = ((rows >= 0) & (rows < cutout))[:, :, None] & ((columns >= 0) & (columns < cutout))[:, None, :]
        x = x.masked_fill(inside[..., None], 0)
    return x.permute(0, 3, 1, 2)
