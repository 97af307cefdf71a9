"""The layers that the networks share, and the one place where an implementation of them is chosen.

Shape legend: N batch, C channels, H, W height and width; activations are NCHW tensors in channels-last memory.
"""

import torch
from torch import nn

ACTIVATIONS = {
    "leaky_relu": lambda: nn.LeakyReLU(0.1, inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
}


class BatchNormAct(nn.Sequential):
    """Batch norm, then an activation.

    Args:
        channels: C.
        act: a name in `ACTIVATIONS`.
        momentum: weight of the new batch in the running statistics (PyTorch's meaning).
        eps: added to the variance.
        train_scale: whether gamma is trained; False freezes it at one.
    """

    def __init__(
        self, channels: int, *, act: str, momentum: float = 0.1, eps: float = 1e-5, train_scale: bool = True
    ) -> None:
        norm = nn.BatchNorm2d(channels, eps=eps, momentum=momentum)
        norm.weight.requires_grad_(train_scale)
        super().__init__(norm, ACTIVATIONS[act]())


class ConvBNAct(nn.Sequential):
    """Convolution without bias and with "same" padding for odd kernels, then batch norm and an activation.

    Args:
        channels_in: C of the input [N, C, H, W].
        channels_out: C of the output [N, C, ceil(H / stride), ceil(W / stride)].
        kernel_size: odd edge length of the filter.
        stride: of the convolution.
        act: a name in `ACTIVATIONS`.
        momentum: of the batch norm's running statistics.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel_size: int, *, stride: int = 1, act: str, momentum: float
    ) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel_size, stride=stride, padding=kernel_size // 2, bias=False),
            BatchNormAct(channels_out, act=act, momentum=momentum),
        )


class Residual(nn.Module):
    """Adds a branch to its input, out of place: `x + branch(x)`.

    The lesson wrote `x.add_(branch(x))` to save one activation of memory. Autograd refuses to train that: the branch's
    first convolution has saved `x` for its weight gradient, and the sum overwrites it. Writing into the branch's output
    instead fails for the same reason, because the in-place LeakyReLU that ends the branch has saved its own output. The
    out-of-place sum costs one more map of the block's size and has the right gradients.
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns `x + branch(x)`, [N, C, H, W]."""
        return x + self.branch(x)
