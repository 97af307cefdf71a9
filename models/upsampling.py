"""Five layers that double a map's height and width by a learnt filter; each has one parameter, `weight`.

Shape legend: N batch, I and O input and output channels, H, W height and width of the input.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wallclock.kernels.upsample_conv import upsample_conv
from wallclock.models.recipes.levers import unknown
from wallclock.models.recipes.recipe import Implementations

UPSAMPLINGS = ("deconv", "nearest", "bilinear", "collapsed", "pixelshuffle")


def autocast_to(x: Tensor) -> Tensor:
    """Returns x in the type that autocast would give it before a convolution; for operations it does not cover."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


class ResizeConv(nn.Conv2d):
    """Resizes by two with the interpolation `mode`, then convolves by 3x3 with zero padding 1 and no bias.

    Source: Odena, Dumoulin, Olah, https://distill.pub/2016/deconv-checkerboard/
    """

    def __init__(self, channels_in: int, channels_out: int, mode: Literal["nearest", "bilinear"]) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1, bias=False)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, I, H, W] to [N, O, 2H, 2W]."""
        return super().forward(F.interpolate(x, scale_factor=2, mode=self.mode))


class CollapsedConv(nn.Conv2d):
    """Computes a nearest-neighbour `ResizeConv` with its weight, but never builds the resized map.

    It takes 4 multiply-adds for each output pixel and pair of channels in place of 9. Under autocast the taps are
    summed in the weight's float32 and rounded once.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1, bias=False)
        self.implementations = Implementations()

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, I, H, W] to [N, O, 2H, 2W]."""
        return upsample_conv(autocast_to(x), self.weight, implementation=self.implementations.upsample_conv)


class ShuffleConv(nn.Conv2d):
    """Convolves by 3x3 to four times the channels and lays each four side by side as 2x2 pixels; no bias.

    Source: Shi et al., https://arxiv.org/abs/1609.05158
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, 4 * channels_out, 3, padding=1, bias=False)
        icnr_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, I, H, W] to [N, O, 2H, 2W]."""
        return F.pixel_shuffle(super().forward(x), 2)


@torch.no_grad()
def icnr_(weight: Tensor) -> Tensor:
    """Copies the first of each output channel's four filters to the other three, in place, so that all phases agree.

    The layer is then a convolution whose output is resized to nearest neighbours. The distribution stays that of the
    weight. Apply it again after any other initialisation.

    Args:
        weight: weight [4 O, I, h, w] of a `ShuffleConv`; the function returns it.

    Raises:
        ValueError: if the weight's first dimension is no multiple of four.

    Source: Aitken et al., https://arxiv.org/abs/1707.02937
    """
    if weight.shape[0] % 4:
        raise ValueError(f"weight is {tuple(weight.shape)}; expected four filters for each output channel")
    return weight.copy_(weight[::4].repeat_interleave(4, 0))


def upsample2x(kind: str, channels_in: int, channels_out: int) -> nn.Module:
    """Returns a layer that maps [N, I, H, W] to [N, O, 2H, 2W], without bias and with PyTorch's default initialisation.

    Args:
        kind: name of the layer in `UPSAMPLINGS`. Multiply-adds per output pixel and pair of channels, and weights per
            pair: "deconv" (transposed convolution of kernel 4, stride 2, padding 1) 4 and 16; "nearest" and "bilinear"
            9 and 9; "collapsed" 4 and 9; "pixelshuffle" 9 and 36.
        channels_in: I, channels of the input.
        channels_out: O, channels of the output.

    Raises:
        ValueError: if no layer has that name (names the nearest).
    """
    match kind:
        case "deconv":
            return nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1, bias=False)
        case "nearest" | "bilinear":
            return ResizeConv(channels_in, channels_out, kind)
        case "collapsed":
            return CollapsedConv(channels_in, channels_out)
        case "pixelshuffle":
            return ShuffleConv(channels_in, channels_out)
    raise ValueError(unknown("upsampling", kind, UPSAMPLINGS))
