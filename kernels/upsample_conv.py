"""Nearest x2 upsampling and a 3x3 convolution in one operation that never writes the upsampled map.

Shape legend: N batch, I and O input and output channels, H, W height and width of the input.
"""

from typing import Literal

import torch
from torch.nn import functional as F

Implementation = Literal["eager"]


def upsample_conv_ref(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Defines the operation: `conv3x3(upsample(x))`, nearest x2, zero padding 1, computed in float32 at least.

    Args:
        x: [N, I, H, W], floating.
        weight: [O, I, 3, 3].
        bias: [O], or None.

    Returns:
        [N, O, 2H, 2W] of x's dtype.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    up = F.interpolate(x.to(wide), scale_factor=2, mode="nearest")
    return F.conv2d(up, weight.to(wide), None if bias is None else bias.to(wide), padding=1).to(x.dtype)


def collapse(weight: torch.Tensor) -> torch.Tensor:
    """Returns the taps of the transposed convolution (kernel 4, stride 2, padding 1) that does the same.

    An output pixel sees a row of the input through two taps or one: (w0, w1 + w2) in the even rows, (w0 + w1, w2) in
    the odd ones; so with the columns. The channels are swapped before the sums, on 9 taps rather than on 16.

    Args:
        weight: [O, I, 3, 3], floating.

    Returns:
        [I, O, 4, 4] of the same dtype, in channels-last memory if the weight is.

    Raises:
        ValueError: if the kernel is not 3x3.

    Numerics: sums of one, two or four weights, in their dtype; rounded twice at most.
        There is no product in it, so TF32 rounds nothing.
    Cost: a copy, then two sums and a stack for the rows and again for the columns: 116 I O elements read and written;
        105 in the adjoint.
    """
    if weight.ndim != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"weight is {tuple(weight.shape)}; expected (out_channels, in_channels, 3, 3)")
    if weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous():
        swapped = weight.permute(1, 2, 3, 0).contiguous()
        return _sums(_sums(swapped, 1), 2).permute(0, 3, 1, 2)
    return _sums(_sums(weight.transpose(0, 1).contiguous(), 2), 3)


def _sums(weight: torch.Tensor, dim: int) -> torch.Tensor:
    """Three taps of a dimension to four, flipped as a transposed convolution wants them."""
    first, middle, last = weight.unbind(dim)
    return torch.stack((last, middle + last, first + middle, first), dim)


def upsample_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    implementation: Implementation = "eager",
) -> torch.Tensor:
    """Upsamples by two (nearest) and convolves by 3x3 with zero padding 1, as one transposed convolution.

    Args:
        x: [N, I, H, W], floating; any strides.
        weight: [O, I, 3, 3] of x's dtype.
        bias: [O] of x's dtype, or None.
        implementation: "eager" is PyTorch's transposed convolution with the collapsed weight.

    Returns:
        [N, O, 2H, 2W] of x's dtype.

    Raises:
        ValueError: if shapes or dtypes do not fit, or there is no such implementation.

    Numerics: float64 equals the reference to 1e-13; in 16 bits the sums of weights are rounded to that type. A NaN in x
        stays within the 4x4 pixels that see it.
    Cost: 4 multiply-adds for each output pixel, input and output channel instead of 9; reads x, the weight and its
        collapsed form, and writes the output; the upsampled map of 4 N I H W elements is neither written nor saved.
    Source: the phases of Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?",
        https://arxiv.org/abs/1609.07009.
    """
    if implementation != "eager":
        raise ValueError(f"implementation is '{implementation}'; expected eager")
    if x.ndim != 4:
        raise ValueError(f"x is {tuple(x.shape)}; expected (batch, channels, height, width)")
    if weight.ndim != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(f"weight is {tuple(weight.shape)}; expected (out_channels, {x.shape[1]}, 3, 3)")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias is {tuple(bias.shape)}; expected ({weight.shape[0]},)")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise ValueError(f"{name} is {tensor.dtype}; expected {x.dtype} as x")
    return F.conv_transpose2d(x, collapse(weight), bias, stride=2, padding=1)
