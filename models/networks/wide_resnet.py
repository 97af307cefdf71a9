"""Wide ResNet; with default arguments it is the network of fast.ai's DAWNBench entry."""

from collections.abc import Sequence

from torch import Tensor, nn

from wallclock.models.layers import BatchNormAct, Conv2d, ResidualSum, Unit, convolve

BRANCH_SCALE = 0.2  # fast.ai's: keeps the sum's variance near its input's, which lets the 1cycle peak be 1.5


class PreActivationBlock(Unit):
    """A branch of BN-ReLU-conv for each convolution, scaled, plus a shortcut taken *after* the first activation.

    Args:
        channels_in: C of the input [N, C, H, W].
        channels_out: C of the output.
        stride: stride of the first convolution and of the shortcut, which is a 1x1 convolution where the shape changes.
        inner, kernels: as in `WideResNet`.
    """

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, *, inner: float, kernels: Sequence[int]
    ) -> None:
        super().__init__()
        channels = [channels_in, *[max(1, round(inner * channels_out))] * (len(kernels) - 1), channels_out]
        self.norm_acts = nn.ModuleList(BatchNormAct(c, act="relu") for c in channels[:-1])
        self.convs = nn.ModuleList(
            Conv2d(c, after, k, stride=1 if number else stride, padding=k // 2)
            for number, (c, after, k) in enumerate(zip(channels[:-1], channels[1:], kernels, strict=True))
        )
        same_shape = channels_in == channels_out and stride == 1
        self.shortcut = nn.Identity() if same_shape else Conv2d(channels_in, channels_out, 1, stride=stride)
        self.sum = ResidualSum(BRANCH_SCALE)

    def chosen_norms(self) -> list[BatchNormAct]:
        """Returns all norms but the first, which has no convolution before it within the block."""
        return [norm_act for norm_act in self.norm_acts[1:] if isinstance(norm_act, BatchNormAct)]

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, [N, channels_out, ceil(H / stride), ceil(W / stride)]."""
        branch = x = self.norm_acts[0](x)
        *convs, last = (conv for conv in self.convs if isinstance(conv, nn.Conv2d))
        for conv, norm_act in zip(convs, self.chosen_norms(), strict=True):
            branch = norm_act.after(conv, branch, defer=True)
        return self.sum(self.shortcut(x), convolve(last, branch))


class WideResNet(nn.Module):
    """A Wide ResNet with pre-activation blocks.

    Args:
        classes: number of outputs.
        blocks: number of residual blocks in each group, or one number for every group; the depth is `6 * blocks + 4` by
            the paper's count.
        widen: factor on the groups' channels, which are 1, 2, 4 ... times `base_channels`.
        base_channels: output channels of the first convolution.
        inner: channels between a block's convolutions, as a fraction of its output's.
        kernels: edge of the filters of each of a block's convolutions in pixels, odd.

    Source: Zagoruyko and Komodakis, https://arxiv.org/abs/1605.07146; fast.ai's DAWNBench entry (2018).
    """

    def __init__(
        self,
        classes: int,
        *,
        blocks: int | Sequence[int] = 3,
        widen: int = 6,
        base_channels: int = 16,
        inner: float = 1.0,
        kernels: Sequence[int] = (3, 3),
    ) -> None:
        super().__init__()
        channels = base_channels
        layers: list[nn.Module] = [Conv2d(3, channels, 3, padding=1)]
        for group, count in enumerate((blocks,) * 3 if isinstance(blocks, int) else blocks):
            width = base_channels * 2**group * widen
            for block in range(count):
                stride = 2 if group > 0 and block == 0 else 1
                layers.append(PreActivationBlock(channels, width, stride, inner=inner, kernels=kernels))
                channels = width
        self.features = nn.Sequential(*layers, BatchNormAct(channels, act="relu"))
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps normalised images [N, 3, H, W] to logits [N, classes]."""
        return self.head(self.features(x).mean((2, 3)))
