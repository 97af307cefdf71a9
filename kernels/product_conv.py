"""A convolution whose filters' gradient is one matrix product over the unfolded input: for small maps on a CPU.

Shape legend: N images, H, W input map, C input channels, P, Q output map, K output channels, R, S filter. Maps are NCHW
tensors, fastest in channels-last memory; `rows` are the N*P*Q places of the filter.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

# Largest output map, in pixels, for which the product is worth its copy of the input. On a Xeon with AMX, bfloat16, 500
# images of 256 channels, oneDNN's own gradient takes 149 ms at 7x7 and the product 70; at 15x15 and 64 channels 83 and
# 77.
MAX_PIXELS = 64


def worth_it(x: Tensor, filters: Tensor, stride: int, padding: int) -> bool:
    """Returns whether `product_conv` of these arguments pays: a small output map, and filters that are trained."""
    edges = zip(x.shape[2:], filters.shape[2:], strict=True)
    p, q = ((size + 2 * padding - edge) // stride + 1 for size, edge in edges)
    return torch.is_grad_enabled() and filters.requires_grad and p * q <= MAX_PIXELS


def product_conv_ref(x: Tensor, filters: Tensor, *, stride: int, padding: int) -> Tensor:
    """Defines `product_conv`: PyTorch's convolution."""
    return F.conv2d(x, filters, None, stride, padding)


def unfolded(x: Tensor, filter_size: tuple[int, int], *, stride: int, padding: int) -> Tensor:
    """Returns the pixels of x [N, C, H, W] under each place of a filter of R, S pixels, [N*P*Q, R*S*C].

    Stride and padding are those of `product_conv`. It is a view if this is the map itself.
    """
    x_NHWC = x.permute(0, 2, 3, 1)
    if padding:
        x_NHWC = F.pad(x_NHWC, (0, 0, padding, padding, padding, padding))
    windows = x_NHWC.unfold(1, filter_size[0], stride).unfold(2, filter_size[1], stride)  # [N, P, Q, C, R, S]
    n, p, q, c, r, s = windows.shape
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(n * p * q, r * s * c)


class _ProductConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, filters: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, filters)
        ctx.geometry = stride, padding  # type: ignore[attr-defined]
        return F.conv2d(x, filters, None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, filters = ctx.saved_tensors  # type: ignore[attr-defined]
        stride, padding = ctx.geometry  # type: ignore[attr-defined]
        wants_x, wants_filters = ctx.needs_input_grad[:2]  # type: ignore[attr-defined]
        dx = dfilters = None
        if wants_x:
            dx, _, _ = torch.ops.aten.convolution_backward(
                dy, x, filters, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [True, False, False]
            )
        if wants_filters:
            k, c, r, s = filters.shape
            rows = dy.permute(0, 2, 3, 1).reshape(-1, k)
            product = rows.t() @ unfolded(x, (r, s), stride=stride, padding=padding)  # [K, R*S*C]
            dfilters = product.view(k, r, s, c).permute(0, 3, 1, 2)
        return dx, dfilters, None, None


def product_conv(x: Tensor, filters: Tensor, *, stride: int, padding: int) -> Tensor:
    """Returns a convolution whose filters' gradient is a product of the output's gradient and the unfolded input.

    Args:
        x: map [N, C, H, W], of a floating type, on any device.
        filters: filters [K, C, R, S] of x's type, on its device.
        stride: stride in both directions.
        padding: zeros around x.

    Returns:
        The map [N, K, P, Q], which can be differentiated once.

    Numerics: products are accumulated in float32 and rounded to x's type once, as PyTorch's gradient is.

    Cost: besides PyTorch's convolution, backward writes and reads the unfolded input, R*S times x; nothing more is
        kept for it. The number of operations is PyTorch's.

    Source: Chellapilla et al., https://hal.science/inria-00112631 (unfolding)
    """
    return _ProductConv.apply(x, filters, stride, padding)
