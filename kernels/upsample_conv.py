"""Nearest x2 upsampling and a 3x3 convolution in one operation that never writes the upsampled map.

Shape legend: N batch, I and O input and output channels, H, W height and width of the input.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wallclock.kernels.batch_norm_act import dense
from wallclock.kernels.conv import conv, conv_transposed, filter_gradient, new_map
from wallclock.kernels.operator import Gradients, operator

Implementation = Literal["eager", "triton"]


def upsample_conv_ref(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Defines `upsample_conv`: `conv3x3(upsample(x))`, nearest x2, zero padding 1, computed in float32 at least.

    Arguments and result are those of `upsample_conv`.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    up = F.interpolate(x.to(wide), scale_factor=2, mode="nearest")
    return F.conv2d(up, weight.to(wide), None if bias is None else bias.to(wide), padding=1).to(x.dtype)


def collapse(weight: Tensor) -> Tensor:
    """Returns the taps of the transposed convolution (kernel 4, stride 2, padding 1) that computes `upsample_conv`.

    An output pixel sees a row of the input through two taps or one: (w0, w1 + w2) in the even rows, (w0 + w1, w2) in
    the odd ones; so with the columns. The channels are swapped before the sums, on 9 taps rather than on 16.

    Args:
        weight: weight [O, I, 3, 3], floating.

    Returns:
        Taps [I, O, 4, 4] of the weight's dtype, in channels-last memory if the weight is.

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


def _sums(weight: Tensor, dim: int) -> Tensor:
    """Returns the four taps for the three of a dimension, flipped as a transposed convolution reads them."""
    first, middle, last = weight.unbind(dim)
    return torch.stack((last, middle + last, first + middle, first), dim)


def upsample_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, implementation: Implementation = "eager"
) -> Tensor:
    """Upsamples by two (nearest) and convolves by 3x3 with zero padding 1, as one transposed convolution.

    Args:
        x: map [N, I, H, W], floating, with any strides.
        weight: weight [O, I, 3, 3] of x's dtype, or float32 with x in 16 bits: its sums are then rounded once.
        bias: bias [O] of x's dtype, or None.
        implementation: "eager" is PyTorch's transposed convolution with the collapsed weight; "triton" computes it as
            products, one for each phase of the output.

    Returns:
        [N, O, 2H, 2W] of x's dtype.

    Raises:
        ValueError: if shapes or dtypes do not fit, or no implementation has that name.

    Numerics: float64 equals the reference to 1e-13; in 16 bits the sums of weights are rounded to that type. A NaN in x
        stays within the 4x4 pixels that see it.
    Cost: 4 multiply-adds for each output pixel, input and output channel instead of 9; reads x, the weight and its
        collapsed form, and writes the output; the upsampled map of 4 N I H W elements is neither written nor saved.
    Source: the phases of Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?",
        https://arxiv.org/abs/1609.07009.
    """
    if implementation not in ("eager", "triton"):
        raise ValueError(f"implementation is '{implementation}'; expected eager or triton")
    if x.ndim != 4:
        raise ValueError(f"x is {tuple(x.shape)}; expected (batch, channels, height, width)")
    if weight.ndim != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(f"weight is {tuple(weight.shape)}; expected (out_channels, {x.shape[1]}, 3, 3)")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias is {tuple(bias.shape)}; expected ({weight.shape[0]},)")
    master = weight.dtype == torch.float32 and x.dtype in (torch.bfloat16, torch.float16)
    for name, tensor in (("weight", None if master else weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise ValueError(f"{name} is {tensor.dtype}; expected {x.dtype} as x")
    taps = collapse(weight).to(x.dtype)
    if implementation == "triton":
        return torch.ops.wallclock.upsample_conv(x, taps, bias)
    return F.conv_transpose2d(x, taps, bias, stride=2, padding=1)


# The operation is the gradient of a convolution of stride 2 with respect to its input, so its own gradients are that
# convolution and the gradient of its filters.


def _output(x: Tensor, taps: Tensor) -> Tensor:
    return new_map(x, x.shape[0], taps.shape[1], 2 * x.shape[2], 2 * x.shape[3])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gradients(ctx: Any, dy: Tensor) -> Gradients:
    dx, dtaps = torch.ops.wallclock.upsample_conv_backward(dy, *ctx.saved_tensors)
    return {"x": dx, "taps": dtaps, "bias": dy.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None}


@operator("upsample_conv", outputs=_output, keep=_keep, gradients=_gradients)
def _forward(x: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    """Returns the transposed convolution of x [N, I, H, W] by taps [I, O, 4, 4]."""
    if x.numel() == 0:
        return _output(x, taps)
    height, width = 2 * x.shape[2], 2 * x.shape[3]
    shift = None if bias is None else bias.contiguous()
    y, _ = conv_transposed(dense(x), dense(taps), height=height, width=width, stride=2, padding=1, shift=shift)
    return y


def _backward_outputs(x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    dx, dtaps = (torch.empty_like(t, memory_format=torch.channels_last) for t in (x, taps))
    return dx, dtaps


@operator("upsample_conv_backward", outputs=_backward_outputs)
def _backward(dy: Tensor, x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of x and taps."""
    if x.numel() == 0:
        dx, dtaps = _backward_outputs(x, taps)
        return dx, dtaps.zero_()
    dy, x = dense(dy), dense(x)
    dx, _, _ = conv(dy, dense(taps), stride=2, padding=1)
    return dx, filter_gradient(x, dy, filter_size=(4, 4), stride=2, padding=1, dtype=taps.dtype)
