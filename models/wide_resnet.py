"""Wide ResNet, as fast.ai's DAWNBench entry writes it; `wrn_22` is the network of that entry."""

import torch
from torch import nn

from models.layers import BatchNormAct, ResidualSum, Unit, convolved

BRANCH_SCALE = 0.2  # fast.ai's: keeps the sum's variance near its input's, which lets the 1cycle peak be 1.5


class PreActivationBlock(Unit):
    """BN-ReLU-conv, BN-ReLU-conv, scaled, plus a shortcut taken *after* the first activation.

    Args:
        channels_in: C of the input [N, C, H, W].
        channels_out: C of the output.
        stride: of the first convolution and of the shortcut, which is a 1x1 convolution where the shape changes.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.norm_act1 = BatchNormAct(channels_in, act="relu")
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm_act2 = BatchNormAct(channels_out, act="relu")
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        same_shape = channels_in == channels_out and stride == 1
        self.shortcut = (
            nn.Identity() if same_shape else nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
        )
        self.sum = ResidualSum(BRANCH_SCALE)

    def chosen_norms(self) -> list[BatchNormAct]:
        """Returns the second norm; the first has no convolution before it within the block."""
        return [self.norm_act2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output, [N, channels_out, ceil(H / stride), ceil(W / stride)]."""
        x = self.norm_act1(x)
        branch = convolved(self.conv2, self.norm_act2.after(self.conv1, x, defer=True))
        return self.sum(self.shortcut(x), branch)


class WideResNet(nn.Module):
    """Pre-activation Wide ResNet of three groups.

    Args:
        classes: number of outputs.
        blocks: residual blocks in each group; the depth is `6 * blocks + 4` by the paper's count.
        widen: factor on 16, 32 and 64 channels.
        base_channels: output channels of the first convolution.

    Source: Zagoruyko and Komodakis, https://arxiv.org/abs/1605.07146; fast.ai's DAWNBench entry (2018).
    """

    def __init__(self, classes: int, *, blocks: int, widen: int, base_channels: int = 16) -> None:
        super().__init__()
        channels = base_channels
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
        for group in range(3):
            width = base_channels * 2**group * widen
            for block in range(blocks):
                layers.append(PreActivationBlock(channels, width, stride=2 if group > 0 and block == 0 else 1))
                channels = width
        self.features = nn.Sequential(*layers, BatchNormAct(channels, act="relu"))
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps normalised images [N, 3, H, W] to logits [N, classes]."""
        return self.head(self.features(x).mean((2, 3)))


def wrn_22(classes: int, *, blocks: int = 3, widen: int = 6) -> WideResNet:
    """Returns the network of fast.ai's DAWNBench entry, unless told otherwise: 3 blocks a group, 6 times as wide."""
    return WideResNet(classes, blocks=blocks, widen=widen)
