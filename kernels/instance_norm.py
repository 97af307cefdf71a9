"""PyTorch's instance norm, with the right gradient even for one image."""

from torch import Tensor
from torch.nn import functional as F


def instance_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """Returns PyTorch's instance norm of a map [N, C, H, W]; a single image goes through batch norm.

    On a CPU the gradient of `F.instance_norm` is wrong for one image if the output's gradient lies in channels-last
    memory (PyTorch 2.11 to 2.15), as after a convolution; batch norm computes the same with the right gradient.

    Args:
        x: map of a floating type.
        weight: gamma [C], or None for ones.
        bias: beta [C], or None for zeros.
        eps: number added to the biased variance.
    """
    if len(x) == 1:
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
    return F.instance_norm(x, weight=weight, bias=bias, eps=eps)
