"""CycleGAN's networks: a residual generator and a discriminator of 70x70 patches.

Shape legend: N images, C channels, H, W height and width; activations are NCHW tensors.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wallclock.models.layers import InstanceNormAct

NEGATIVE_SLOPE = 0.2
DOWNSAMPLINGS = 2


def _initialised(net: nn.Module) -> None:
    """Draws weights from N(0, 0.02) and sets biases to zero, as the published code does by default."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with instance norms around a shortcut; its input and output are padded by reflection.

    Args:
        channels: C of the map.
        pad: padding of the output on each side in pixels, for the convolution that follows.
    """

    def __init__(self, channels: int, pad: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3)
        self.norm_act1 = InstanceNormAct(channels, "relu", pad=1)
        self.conv2 = nn.Conv2d(channels, channels, 3)
        self.norm2 = InstanceNormAct(channels, "none", pad=pad)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H + 2, W + 2], padded by one pixel, to [N, C, H + 2*pad, W + 2*pad]."""
        return self.norm2(self.conv2(self.norm_act1(self.conv1(x))), residual=x, residual_pad=1)


class ResnetGenerator(nn.Module):
    """The generator, images to images: two halvings, residual blocks at a quarter of the size, two doublings, tanh.

    Each layer pads its own output by reflection for the layer after it, so that map and padding are written together.

    Args:
        blocks: number of residual blocks; the published networks have 6 for images of 128 pixels and 9 for 256.
        channels: number of channels of the first map.

    Raises:
        ValueError: if `blocks` or `channels` is below one.

    Source: Zhu et al., https://arxiv.org/abs/1703.10593; Johnson et al., https://arxiv.org/abs/1603.08155
    """

    def __init__(self, *, blocks: int = 9, channels: int = 64) -> None:
        super().__init__()
        if blocks < 1 or channels < 1:
            raise ValueError(f"blocks is {blocks}, channels {channels}; expected at least 1 of each")
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 7), InstanceNormAct(channels, "relu")]
        for step in range(DOWNSAMPLINGS):
            layers.append(nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1))
            channels *= 2
            layers.append(InstanceNormAct(channels, "relu", pad=int(step == DOWNSAMPLINGS - 1)))
        layers += [ResidualBlock(channels, pad=int(block < blocks - 1)) for block in range(blocks)]
        for step in range(DOWNSAMPLINGS):
            layers.append(nn.ConvTranspose2d(channels, channels // 2, 3, stride=2, padding=1, output_padding=1))
            channels //= 2
            layers.append(InstanceNormAct(channels, "relu", pad=3 * int(step == DOWNSAMPLINGS - 1)))
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 3, 7))
        _initialised(self)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, 3, H, W] in [-1, 1] to images like them; H and W are multiples of 4, at least 8."""
        return torch.tanh(self.layers(F.pad(images, (3, 3, 3, 3), mode="reflect")))


class PatchDiscriminator(nn.Module):
    """The discriminator, from images to a map of scores, each the score of a patch of 70x70 pixels.

    Args:
        channels: number of channels of the first map.

    Raises:
        ValueError: if `channels` is below one.

    Source: Isola et al., https://arxiv.org/abs/1611.07004
    """

    def __init__(self, *, channels: int = 64) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels is {channels}; expected at least 1")
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(NEGATIVE_SLOPE, True)]
        for factor, stride in ((2, 2), (4, 2), (8, 1)):
            before, after = channels * factor // 2, channels * factor
            layers.append(nn.Conv2d(before, after, 4, stride=stride, padding=1))
            layers.append(InstanceNormAct(after, "leaky_relu", negative_slope=NEGATIVE_SLOPE))
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * channels, 1, 4, padding=1))
        _initialised(self)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, 3, H, W] of at least 24x24 pixels to scores [N, 1, H/8 - 2, W/8 - 2]."""
        return self.layers(images)
