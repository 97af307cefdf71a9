"""DCGAN's generator and critic, as the WGAN paper's code and fast.ai's lesson define them.

Shape legend: N batch, Z noise channels, C channels, S image edge; activations are NCHW tensors.
"""

from typing import Literal

from torch import Tensor, nn

from wallclock.models.layers import Act, ActBatchNorm, BatchNormAct
from wallclock.models.upsampling import ShuffleConv, icnr_, upsample2x

Order = Literal["paper", "lesson"]
Norm = Literal["batch", "layer"]
NEGATIVE_SLOPE = 0.2
SMALLEST = 4  # edge of the map that the generator begins with and the critic ends with


class Block(nn.Module):
    """A convolution of any kind without bias, then norm and activation in one of two orders.

    Args:
        conv: the convolution, a module of any kind.
        channels: channels of the convolution's output.
        act: name of the activation, "leaky_relu" or "relu".
        order: "paper" puts the norm before the activation, "lesson" after it.
        norm: "batch"; "layer", which normalises C, H and W of each image, with gamma and beta by channel; or None.
    """

    def __init__(self, conv: nn.Module, channels: int, *, act: Act, order: Order, norm: Norm | None = "batch") -> None:
        super().__init__()
        self.conv = conv
        activate = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True) if act == "leaky_relu" else nn.ReLU(inplace=True)
        if norm == "batch":
            kind = BatchNormAct if order == "paper" else ActBatchNorm
            self.rest: nn.Module = kind(channels, act=act, negative_slope=NEGATIVE_SLOPE)
        elif norm == "layer":
            layers = [nn.GroupNorm(1, channels), activate]
            self.rest = nn.Sequential(*(layers if order == "paper" else layers[::-1]))
        else:
            self.rest = activate

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, [N, C, H', W']."""
        if isinstance(self.conv, nn.Conv2d) and isinstance(self.rest, BatchNormAct):
            return self.rest.after(self.conv, x)  # one kernel may compute both
        return self.rest(self.conv(x))


class NoiseToMap(nn.ConvTranspose2d):
    """The transposed convolution of a 1x1 map: each pixel of the output is a product of the noise and one filter tap.

    Attributes:
        as_product: True computes it as one matrix product, whose sums the library may add up in another order.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, SMALLEST, bias=False)
        self.as_product = False

    def forward(self, z: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Maps [N, Z, 1, 1] to [N, C, 4, 4]."""
        if not self.as_product:
            return super().forward(z, output_size)
        taps = self.weight.permute(0, 2, 3, 1).flatten(1)  # [Z, 4 * 4 * C]; a view of channels-last memory
        map_NHWC = (z.flatten(1) @ taps).view(len(z), SMALLEST, SMALLEST, -1)
        return map_NHWC.permute(0, 3, 1, 2)


class MapToScore(nn.Conv2d):
    """The convolution of a 4x4 map with a 4x4 filter: one inner product for each image.

    `as_product` is that of `NoiseToMap`.
    """

    def __init__(self, channels_in: int) -> None:
        super().__init__(channels_in, 1, SMALLEST, bias=False)
        self.as_product = False

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, 4, 4] to [N, 1, 1, 1]."""
        if not self.as_product:
            return super().forward(x)
        flat = x.permute(0, 2, 3, 1).flatten(1)
        return (flat @ self.weight.permute(0, 2, 3, 1).flatten(1).T)[..., None, None]


class Generator(nn.Module):
    """The generator: a transposed convolution to 4x4, doublings, extra 3x3 layers, a doubling to 3 colours, tanh.

    Args:
        image_size: S, edge of the images in pixels: 16 or a power of two above it.
        noise_channels: Z, channels of the noise.
        base_channels: channels of the map before the extra layers; each earlier map has twice as many as the next.
        n_extra_layers: number of 3x3 layers before the last doubling.
        order: order of norm and activation, see `Block`; the lesson's extra layers are transposed convolutions.
        upsampling: name of the doubling layers in `models.upsampling.UPSAMPLINGS`.

    Raises:
        ValueError: if an argument is out of range.

    Source: https://arxiv.org/abs/1511.06434; https://arxiv.org/abs/1701.07875; fast.ai 2018, part 2, lesson 12
    """

    def __init__(
        self,
        *,
        image_size: int = 64,
        noise_channels: int = 100,
        base_channels: int = 64,
        n_extra_layers: int = 0,
        order: Order = "paper",
        upsampling: str = "deconv",
    ) -> None:
        super().__init__()
        doublings = _count_doublings(image_size, order, n_extra_layers, min(noise_channels, base_channels))
        self.noise_channels = noise_channels
        channels = base_channels * 2 ** (doublings - 1)

        def block(conv: nn.Module, channels: int) -> Block:
            return Block(conv, channels, act="relu", order=order)

        layers: list[nn.Module] = [block(NoiseToMap(noise_channels, channels), channels)]
        for _ in range(doublings - 1):
            layers.append(block(upsample2x(upsampling, channels, channels // 2), channels // 2))
            channels //= 2
        extra = nn.Conv2d if order == "paper" else nn.ConvTranspose2d
        layers += [block(extra(channels, channels, 3, padding=1, bias=False), channels) for _ in range(n_extra_layers)]
        self.layers = nn.Sequential(*layers, upsample2x(upsampling, channels, 3), nn.Tanh())
        if order == "paper":
            self.apply(_init_as_paper)

    def forward(self, noise: Tensor) -> Tensor:
        """Maps noise [N, Z, 1, 1] to images [N, 3, S, S] in (-1, 1)."""
        return self.layers(noise)


class Critic(nn.Module):
    """The critic: strided 4x4 convolutions down to 4x4, extra 3x3 layers after the first, and one number as the score.

    Args:
        base_channels: number of channels of the first map.
        n_extra_layers: number of 3x3 layers after the first convolution.
        image_size, order: as in `Generator`.
        norm: "batch", or "layer" for a gradient penalty, which is defined for one image at a time.

    Raises:
        ValueError: if an argument is out of range.

    Source: as `Generator`; https://arxiv.org/abs/1704.00028 for the layer norm
    """

    def __init__(
        self,
        *,
        image_size: int = 64,
        base_channels: int = 64,
        n_extra_layers: int = 0,
        order: Order = "paper",
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        halvings = _count_doublings(image_size, order, n_extra_layers, base_channels)
        if norm not in ("batch", "layer"):
            raise ValueError(f"norm is '{norm}'; expected batch or layer")

        def block(channels_in: int, channels_out: int, edge: int, norm: Norm | None) -> Block:
            stride = 2 if edge == 4 else 1
            conv = nn.Conv2d(channels_in, channels_out, edge, stride=stride, padding=1, bias=False)
            return Block(conv, channels_out, act="leaky_relu", order=order, norm=norm)

        channels = base_channels
        layers = [block(3, channels, 4, None)]
        layers += [block(channels, channels, 3, norm) for _ in range(n_extra_layers)]
        for _ in range(halvings - 1):
            layers.append(block(channels, 2 * channels, 4, norm))
            channels *= 2
        self.layers = nn.Sequential(*layers, MapToScore(channels))
        if order == "paper":
            self.apply(_init_as_paper)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, 3, S, S] to scores [N]; in training a batch norm uses this call's own statistics."""
        return self.layers(images).flatten()


def _count_doublings(image_size: int, order: str, n_extra_layers: int, channels: int) -> int:
    """Checks the arguments that both networks have, and returns how many doublings lead from 4 to the image's edge."""
    doublings = (image_size // SMALLEST).bit_length() - 1
    if image_size < 16 or SMALLEST * 2**doublings != image_size:
        raise ValueError(f"image_size is {image_size}; expected 16, 32, 64, 128 or another power of two")
    if order not in ("paper", "lesson"):
        raise ValueError(f"order is '{order}'; expected paper or lesson")
    if n_extra_layers < 0 or channels < 1:
        raise ValueError(f"n_extra_layers is {n_extra_layers}, channels {channels}; expected at least 0 and 1")
    return doublings


def _init_as_paper(layer: nn.Module) -> None:
    """Draws filters from N(0, 0.02) and batch norm's gammas from N(1, 0.02), as the paper's code does."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
        if isinstance(layer, ShuffleConv):
            icnr_(layer.weight)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
        nn.init.zeros_(layer.bias)
