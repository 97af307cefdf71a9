"""Sprint: the small network of the speedrun recipe.

Shape legend: N batch, C channels, H, W height and width, P patches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wallclock.models.layers import ACTIVATIONS, Act, BatchNormAct, Conv2d, Unit

WHITEN_SIZE = 2
WHITEN_CHANNELS = 2 * 3 * WHITEN_SIZE**2  # each eigenvector and its negative


def whitening_filters(images: Tensor, eps: float = 5e-4) -> Tensor:
    """Returns filters, in both signs, whose outputs on the images' 2x2 patches are uncorrelated with unit variance.

    Args:
        images: normalised images [N, 3, H, W], float.
        eps: number added to the eigenvalues of the patch covariance.

    Returns:
        [24, 3, 2, 2] float32, OIHW: twelve eigenvectors divided by their standard deviation, then their negatives.

    Source: Page, https://myrtle.ai/learn/how-to-train-your-resnet/; Jordan, https://arxiv.org/abs/2404.00498
    """
    patches = images.float().unfold(2, WHITEN_SIZE, 1).unfold(3, WHITEN_SIZE, 1)  # [N, 3, H-1, W-1, 2, 2]
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, WHITEN_CHANNELS // 2)
    eigenvalues, eigenvectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (eigenvectors.T / (eigenvalues[:, None] + eps).sqrt()).reshape(-1, 3, WHITEN_SIZE, WHITEN_SIZE)
    return torch.cat([filters, -filters])


class SprintGroup(Unit):
    """A group of layers: conv, 2x2 max-pool, BN, activation, conv, BN, activation.

    The convolutions start as the identity on their first channels. Pooling before the norm leaves the norm and the
    activation a quarter of the map to read. A group of three convolutions adds the first's output to the last's.

    Depth, the number of convolutions, and activation are those of `Sprint`.

    Raises:
        ValueError: if the depth is neither 2 nor 3.
    """

    def __init__(self, channels_in: int, channels_out: int, *, depth: int, act: Act) -> None:
        super().__init__()
        if depth not in (2, 3):
            raise ValueError(f"depth is {depth}; expected 2 or 3 convolutions in a group")
        self.deep = depth == 3
        self.conv1, self.norm_act1 = self._layers(channels_in, channels_out, act)
        self.conv2, self.norm_act2 = self._layers(channels_out, channels_out, act)
        if self.deep:
            self.conv3, self.norm_act3 = self._layers(channels_out, channels_out, act)

    @staticmethod
    def _layers(channels_in: int, channels_out: int, act: Act) -> tuple[Conv2d, BatchNormAct]:
        conv = Conv2d(channels_in, channels_out, 3, padding=1)
        nn.init.dirac_(conv.weight.data[:channels_in])
        return conv, BatchNormAct(channels_out, act=act, momentum=0.4, eps=1e-12, train_scale=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [N, channels_in, H, W] to [N, channels_out, H // 2, W // 2]."""
        pooled = F.max_pool2d(self.conv1(x), 2)
        if not self.deep:
            return self.norm_act2.after(self.conv2, self.norm_act1.deferred(pooled))
        shortcut = self.norm_act1(pooled)
        return self.norm_act3.after(self.conv3, self.norm_act2.after(self.conv2, shortcut), shortcut)


class Sprint(nn.Module):
    """A frozen whitening convolution, three groups, a global max-pool and a linear head.

    Odd maps are halved with floor, so that any input from 17 pixels up works: early epochs may train on smaller images.

    Args:
        classes: number of outputs.
        widths: output channels of each of the three groups.
        depth: number of convolutions in a group, 2 or 3.
        act: name of every activation in `models.layers.ACTIVATIONS`.

    Source: after the airbench94 network, Jordan, https://arxiv.org/abs/2404.00498
    """

    def __init__(
        self, classes: int, *, widths: Sequence[int] = (64, 256, 256), depth: int = 2, act: Act = "gelu"
    ) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, WHITEN_CHANNELS, WHITEN_SIZE)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        self.act = ACTIVATIONS[act](0.0)
        channels = (WHITEN_CHANNELS, *widths)
        self.groups = nn.Sequential(
            *(SprintGroup(before, after, depth=depth, act=act) for before, after in zip(channels, widths, strict=False))
        )
        self.head = nn.Linear(widths[-1], classes, bias=False)
        with torch.no_grad():
            self.head.weight.div_(self.head.weight.std())

    @torch.no_grad()
    def initialise_from(self, images: Tensor) -> None:
        """Sets the whitening filters from normalised training images [N, 3, H, W]."""
        self.whiten.weight.copy_(whitening_filters(images))

    def features(self, x: Tensor) -> Tensor:
        """Maps normalised images [N, 3, H, W] to the head's input, [N, widths[-1]]."""
        x = self.groups(self.act(self.whiten(x)))
        # Max-pool routes gradients by position. In the backward of `amax`, compiled code looks for a value equal to an
        # unrounded maximum, finds none, and divides by zero.
        return F.max_pool2d(x, x.shape[2:]).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps normalised images [N, 3, H, W] to logits [N, classes]."""
        x = self.features(x)
        return self.head(x) / x.size(1)
