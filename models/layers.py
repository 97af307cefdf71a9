"""The layers that the networks share, and `choose`, which sets how they carry out their operations.

Shape legend: N batch, C channels, H, W height and width; activations are NCHW tensors in channels-last memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wallclock.kernels.instance_norm import instance_norm
from wallclock.kernels.product_conv import product_conv, worth_it
from wallclock.models.recipes.recipe import Implementation, Implementations, Save
from wallclock.models.upsampling import CollapsedConv, autocast_to

if TYPE_CHECKING:  # triton is imported where it is used
    from wallclock.kernels.batch_norm_act import BatchNorm
    from wallclock.kernels.conv_bn_act import Deferred

Act = Literal["leaky_relu", "relu", "gelu", "silu"]
LEAKY_SLOPE = 0.1
ACTIVATIONS: dict[str, Callable[[float], nn.Module]] = {
    "leaky_relu": lambda slope: nn.LeakyReLU(slope, inplace=True),
    "relu": lambda slope: nn.ReLU(inplace=True),
    "gelu": lambda slope: nn.GELU(),
    "silu": lambda slope: nn.SiLU(),
}


def choose(model: nn.Module, implementations: Implementations) -> None:
    """Sets how every layer of a network carries out its operations, in place."""
    for layer in model.modules():
        if isinstance(layer, ActBatchNorm | BatchNormAct | CollapsedConv | Conv2d | InstanceNormAct | ResidualSum):
            layer.implementations = implementations


class Unit(nn.Module):
    """A group of convolutions and norms, chosen together because each may leave work to the next."""

    def chosen_norms(self) -> list[BatchNormAct]:
        """Returns the norms that `conv_bn_act` applies to, in the order they are computed."""
        return [layer for layer in self.modules() if isinstance(layer, BatchNormAct)]

    def choose(self, choices: Sequence[Implementation]) -> None:
        """Sets how the convolution of each of `chosen_norms` is carried out, one choice for each norm in order."""
        for norm, choice in zip(self.chosen_norms(), choices, strict=True):
            norm.implementations = replace(norm.implementations, conv_bn_act=choice)


def units(model: nn.Module) -> dict[str, Unit]:
    """Returns the outermost units of a network by their names in it."""
    found: dict[str, Unit] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, Unit) and not any(name.startswith(f"{outer}." if outer else "") for outer in found):
            found[name] = layer
    return found


def convolve(conv: nn.Conv2d, x: Tensor | Deferred) -> Tensor:
    """Returns `conv(x)`, [N, K, P, Q]; x is a map, or one whose norm and activation the convolution has to apply."""
    if isinstance(x, Tensor):
        return conv(x)
    from wallclock.kernels import conv_bn_act

    return conv_bn_act.convolved(x, conv.weight, stride=conv.stride[0], padding=int(conv.padding[0]))[0]


def _kernel_norm(norm: nn.Module, training: bool) -> BatchNorm:
    """Returns a norm without activation as the kernels take it, after counting one more batch in training."""
    from wallclock.kernels.batch_norm_act import BatchNorm

    assert isinstance(norm, nn.BatchNorm2d) and norm.momentum is not None
    if training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return BatchNorm(norm.weight, norm.bias, norm.running_mean, norm.running_var, training, norm.momentum, norm.eps)


class Conv2d(nn.Conv2d):
    """PyTorch's square convolution without bias, dilation or groups; `product_conv` may compute the filters' gradient.

    Args:
        channels_in: C of the input [N, C, H, W].
        channels_out: K of the output [N, K, P, Q].
        kernel_size: edge of the filters in pixels.
        stride: stride in both directions, in pixels.
        padding: zeros added on each side of the input, in pixels.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel_size: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(channels_in, channels_out, kernel_size, stride=stride, padding=padding, bias=False)
        self.implementations = Implementations()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution of x [N, C, H, W], a map [N, K, P, Q]."""
        stride, padding = self.stride[0], int(self.padding[0])
        if self.implementations.product_conv and worth_it(x, self.weight, stride, padding):
            return product_conv(autocast_to(x), autocast_to(self.weight), stride=stride, padding=padding)
        return super().forward(x)


class ResidualSum(nn.Module):
    """Adds a branch to a shortcut: `shortcut + alpha * branch`."""

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha, self.implementations = alpha, Implementations()

    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """Returns the sum, [N, C, H, W]; Triton writes it into the branch's memory, which no backward may need."""
        if self.implementations.residual == "triton":
            from wallclock.kernels.residual import residual_

            return residual_(branch, shortcut, alpha=self.alpha)
        return torch.add(shortcut, branch, alpha=self.alpha)


class BatchNormAct(nn.Sequential):
    """Batch norm, then an activation, then the addition of a residual if one is given.

    Args:
        channels: C of the map.
        act: name of the activation in `ACTIVATIONS`.
        momentum: weight of the new batch in the running statistics (PyTorch's meaning).
        eps: added to the variance.
        train_scale: whether gamma is trained; False freezes it at one.
        negative_slope: slope of leaky_relu below 0.
    """

    def __init__(
        self,
        channels: int,
        *,
        act: Act,
        momentum: float = 0.1,
        eps: float = 1e-5,
        train_scale: bool = True,
        negative_slope: float = LEAKY_SLOPE,
    ) -> None:
        norm = nn.BatchNorm2d(channels, eps=eps, momentum=momentum)
        norm.weight.requires_grad_(train_scale)
        super().__init__(norm, ACTIVATIONS[act](negative_slope))
        self.act, self.negative_slope = act, negative_slope
        self.implementations = Implementations()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns `act(norm(x))`, plus the residual if one is given; all are [N, C, H, W]."""
        norm, activate = self
        chosen = self.implementations
        if chosen.batch_norm_act == "triton":
            return self._fused(x, residual)
        z = norm(x)
        if residual is None:
            return activate(z)
        if chosen.residual == "triton" and self.act in ("relu", "leaky_relu"):
            from wallclock.kernels.residual import residual_

            return residual_(z, residual, act=self.act, negative_slope=self.negative_slope)
        return residual + activate(z)

    def _fused(self, x: Tensor, residual: Tensor | None) -> Tensor:
        from wallclock.kernels.batch_norm_act import batch_norm_act

        fused = residual if self.implementations.residual == "triton" else None
        y = batch_norm_act(x, self._kernel_norm(), residual=fused, save=self._save(fused is not None))
        return y if residual is None or fused is not None else residual + y

    def deferred(self, x: Tensor) -> Tensor | Deferred:
        """Returns `act(norm(x))` for a convolution that may apply it while it reads x."""
        if self.implementations.conv_bn_act != "triton" or not self.training:
            return self(x)
        from wallclock.kernels.conv_bn_act import deferred

        return deferred(x, self._kernel_norm())

    @overload
    def after(self, conv: nn.Conv2d, x: Tensor | Deferred, residual: Tensor | None = None) -> Tensor: ...

    @overload
    def after(
        self, conv: nn.Conv2d, x: Tensor | Deferred, residual: Tensor | None = None, *, defer: bool
    ) -> Tensor | Deferred: ...

    def after(
        self, conv: nn.Conv2d, x: Tensor | Deferred, residual: Tensor | None = None, *, defer: bool = False
    ) -> Tensor | Deferred:
        """Returns `act(norm(conv(x)))`, plus the residual if one is given.

        Args:
            conv: the convolution, without bias.
            x: map [N, C, H, W], or a map whose own norm and activation the convolution is to apply.
            residual: map [N, K, P, Q] to add, or None.
            defer: whether to leave this norm and activation to the next convolution, where the implementation can.
        """
        if self.implementations.conv_bn_act != "triton":
            return self(convolve(conv, x), residual)
        from wallclock.kernels.conv_bn_act import conv_bn_act

        fused = residual if self.implementations.residual == "triton" else None
        y = conv_bn_act(
            autocast_to(x) if isinstance(x, Tensor) else x, conv.weight, self._kernel_norm(),
            stride=conv.stride[0], padding=int(conv.padding[0]), residual=fused, save=self._save(fused is not None),
            defer=defer and self.training and residual is None,
        )  # fmt: skip
        return y if residual is None or fused is not None else residual + y  # type: ignore[operator]

    def _kernel_norm(self) -> BatchNorm:
        """Returns norm and activation as the kernels take them, after counting one more batch in training."""
        return _kernel_norm(self[0], self.training)._replace(act=self.act, negative_slope=self.negative_slope)

    def _save(self, fused_sum: bool) -> Save:
        """Returns what the kernel keeps for backward; "byte" replaces "output" where the output cannot be inverted."""
        wanted = self.implementations.batch_norm_save
        invertible = self.act == "leaky_relu" and not fused_sum
        return "byte" if wanted == "output" and not invertible else wanted


class ActBatchNorm(nn.Sequential):
    """An activation, then batch norm: the lesson's order.

    The arguments are those of `BatchNormAct`.
    """

    def __init__(self, channels: int, *, act: Act, negative_slope: float = LEAKY_SLOPE) -> None:
        super().__init__(ACTIVATIONS[act](negative_slope), nn.BatchNorm2d(channels))
        self.implementations = Implementations()

    def forward(self, x: Tensor) -> Tensor:
        """Returns `norm(act(x))`, [N, C, H, W]; the activation may overwrite x."""
        activate, norm = self
        z = activate(x)
        if self.implementations.batch_norm_act != "triton":
            return norm(z)
        from wallclock.kernels.batch_norm_act import batch_norm_act

        wanted = self.implementations.batch_norm_save
        return batch_norm_act(z, _kernel_norm(norm, self.training), save="input" if wanted == "byte" else wanted)


class InstanceNormAct(nn.Module):
    """Instance norm, an activation and the sum with a given residual, padded by reflection for the next convolution.

    Args:
        channels: C of the map.
        act: name of the activation: "none", "relu" or "leaky_relu".
        pad: padding of the output on each side, in pixels.
        affine: whether the norm has a gamma and a beta; CycleGAN's have none.
        negative_slope: slope of leaky_relu below 0; the default is CycleGAN's.
        eps: added to the variance.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        act: Literal["none", "relu", "leaky_relu"],
        pad: int = 0,
        affine: bool = False,
        *,
        negative_slope: float = 0.2,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.act, self.pad, self.negative_slope, self.eps = act, pad, negative_slope, eps
        self.register_parameter("weight", nn.Parameter(torch.ones(channels)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(channels)) if affine else None)
        self.implementations = Implementations()

    def forward(self, x: Tensor, residual: Tensor | None = None, residual_pad: int = 0) -> Tensor:
        """Returns `reflect_pad(act(norm(x)) + residual, pad)`.

        Args:
            x: map [N, C, H, W].
            residual: map [N, C, H + 2*residual_pad, W + 2*residual_pad] whose interior is added: a block's input,
                padded for its first convolution.
            residual_pad: padding of the residual on each side, in pixels.
        """
        if self.implementations.instance_norm_act == "triton":
            from wallclock.kernels.instance_norm_act import InstanceNorm, instance_norm_act

            norm = InstanceNorm(self.weight, self.bias, self.eps, self.act, self.negative_slope, self.pad)
            return instance_norm_act(x, norm, residual=residual, residual_pad=residual_pad)
        z = instance_norm(x, self.weight, self.bias, eps=self.eps)
        if self.act != "none":
            z = F.relu_(z) if self.act == "relu" else F.leaky_relu_(z, self.negative_slope)
        if residual is not None:
            edge = residual_pad
            z = z + (residual[:, :, edge:-edge, edge:-edge] if edge else residual)
        return F.pad(z, (self.pad,) * 4, mode="reflect") if self.pad else z


class ConvBNAct(nn.Sequential, Unit):
    """Convolution without bias and with "same" padding for odd kernels, then batch norm and an activation.

    It maps [N, channels_in, H, W] to [N, channels_out, ceil(H / stride), ceil(W / stride)]; the arguments are those of
    `Conv2d` and `BatchNormAct`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        act: Act = "leaky_relu",
        momentum: float = 0.1,
    ) -> None:
        super().__init__(
            Conv2d(channels_in, channels_out, kernel_size, stride=stride, padding=kernel_size // 2),
            BatchNormAct(channels_out, act=act, momentum=momentum),
        )

    @property
    def reads_deferred(self) -> bool:
        """Whether the convolution is a Triton kernel, which can apply a norm and activation left to it."""
        (norm_act,) = self.chosen_norms()
        return norm_act.implementations.conv_bn_act == "triton"

    def forward(
        self, x: Tensor | Deferred, residual: Tensor | None = None, *, defer: bool = False
    ) -> Tensor | Deferred:
        """Returns `act(norm(conv(x)))`, plus the residual if one is given; see `BatchNormAct.after`."""
        conv, norm_act = self
        assert isinstance(conv, nn.Conv2d) and isinstance(norm_act, BatchNormAct)
        return norm_act.after(conv, x, residual, defer=defer)


class Chain(nn.Sequential):
    """A sequence of layers, in which a `ConvBNAct` leaves its norm and activation to a `ConvBNAct` right after it."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns the last layer's output, to which that layer adds the residual if one is given."""
        *layers, last = self
        y: Tensor | Deferred = x
        for layer, following in zip(layers, [*layers[1:], last], strict=True):
            defers = isinstance(layer, ConvBNAct) and isinstance(following, ConvBNAct) and following.reads_deferred
            y = layer(y, defer=True) if defers else layer(y)
        return last(y) if residual is None else last(y, residual)


class Residual(Unit):
    """Adds a branch to its input: `x + branch(x)`; the branch's last layer takes the sum.

    The lesson wrote `x.add_(branch(x))` to save one activation of memory. Autograd refuses to train that: the branch's
    first convolution has saved `x` for its weight gradient, and the sum overwrites it. Writing into the branch's output
    instead fails for the same reason, because the in-place LeakyReLU that ends the branch has saved its own output. By
    default the sum is out of place; `Implementations.residual="triton"` adds it within the last layer's kernel, or in
    the memory of its norm's output, and has the right gradients too.

    Args:
        branch: layers that map x to its own shape; the last is a `ConvBNAct`.
    """

    def __init__(self, branch: Chain) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x + branch(x)`, [N, C, H, W]."""
        return self.branch(x, x)
