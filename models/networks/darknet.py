"""Darknet, as fast.ai's 2018 lesson 12 defines it for CIFAR-10."""

from collections.abc import Sequence

from torch import Tensor, nn

from wallclock.models.layers import Chain, ConvBNAct, Residual


def _conv(channels_in: int, channels_out: int, kernel_size: int = 3, stride: int = 1) -> ConvBNAct:
    return ConvBNAct(channels_in, channels_out, kernel_size, stride=stride, act="leaky_relu", momentum=0.01)


class Darknet(nn.Module):
    """Darknet-53's plan for small images: groups that double the channels, then 1x1 -> 3x3 residual blocks.

    Every group but the second halves the map (`stride = 2 - (i == 1)` in the lesson's code; its prose says the first).
    Batch norm's gammas start uniform in [0, 1], PyTorch's default until 1.1 and so the lesson's: with today's ones the
    sums of the residual groups are twice as large, and the lesson's rates diverge (one epoch of 1cycle to 1.3 on
    `cifar10-jpeg`: a loss of 2e2 and then 4e8 nats in the first two quarters, against 3.8 and 2.6).

    Args:
        classes: number of outputs.
        num_blocks: number of residual blocks in each group.
        base_channels: output channels of the first convolution.

    Source: fast.ai 2018, part 2, lesson 12; Redmon and Farhadi, https://arxiv.org/abs/1804.02767
    """

    def __init__(self, classes: int, *, num_blocks: Sequence[int] = (1, 2, 4, 6, 3), base_channels: int = 32) -> None:
        super().__init__()
        channels = base_channels
        layers: list[nn.Module] = [_conv(3, channels)]
        for group, blocks in enumerate(num_blocks):
            layers.append(_conv(channels, 2 * channels, stride=1 if group == 1 else 2))
            channels *= 2
            layers += [
                Residual(Chain(_conv(channels, channels // 2, 1), _conv(channels // 2, channels)))
                for _ in range(blocks)
            ]
        self.features = Chain(*layers)
        self.head = nn.Linear(channels, classes)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Maps normalised images [N, 3, H, W] to logits [N, classes]."""
        return self.head(self.features(x).mean((2, 3)))
