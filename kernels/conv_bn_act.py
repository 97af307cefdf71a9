"""Convolution, batch norm and activation: the convolution computes the norm's statistics, the next one applies it.

Shape legend: N images, H, W input map, C input channels, P, Q output map, K output channels, R, S filter. Maps are NCHW
tensors in channels-last memory.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from wallclock.kernels import conv_bn_operators  # noqa: F401  registers the operators
from wallclock.kernels.batch_norm_act import Act, Save, batch_norm_act, batch_norm_act_ref, check_norm, dense
from wallclock.kernels.checks import check_residual
from wallclock.kernels.conv import output_size


def conv_bn_act_ref(
    x: Tensor,
    filters: Tensor,
    *norm: Tensor | None,
    stride: int = 1,
    padding: int = 0,
    residual: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Defines `conv_bn_act`: `act(batch_norm(conv(x))) + residual`, computed in float32 at least.

    Args:
        x: map [N, C, H, W], floating.
        filters: filters [K, C, R, S].
        norm: gamma, beta, running mean and running variance, see `batch_norm_act_ref`.
        stride: stride of the convolution.
        padding: zeros around x.
        residual: map [N, K, P, Q] of x's dtype; or None.
        options: other keyword arguments of `batch_norm_act_ref`.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    y = F.conv2d(x.to(wide), filters.to(wide), stride=stride, padding=padding)
    return batch_norm_act_ref(y, *norm, residual=None if residual is None else residual.to(wide), **options).to(x.dtype)


class Deferred(NamedTuple):
    """A map whose batch norm and activation are applied by the operation that reads it, without a pass of their own.

    Attributes:
        map: map [N, C, H, W] before the norm, dense.
        table: the norm's table with the batch's statistics, see `kernels.conv.Norm`.
        weight: gamma [C], or None.
        bias: beta [C], or None.
        eps: number added to the variance.
        act: name of the activation in `kernels.batch_norm_act.ACTS`.
        negative_slope: slope of leaky_relu below zero.
    """

    map: Tensor
    table: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    act: Act
    negative_slope: float

    def applied(self, residual: Tensor | None = None, save: Save = "input") -> Tensor:
        """Returns `act(norm(map)) + residual`, [N, C, H, W]; reads each map once and writes one.

        Args:
            residual: map [N, C, H, W] of the map's dtype; or None.
            save: tensors that backward reads; see `batch_norm_act`.
        """
        return torch.ops.wallclock.batch_norm_act(
            self.map, self.weight, self.bias, self.table[2], self.table[4], residual, True, self.eps, self.act,
            self.negative_slope, save, None,
        )[0]  # fmt: skip


def deferred(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: Act = "none",
    negative_slope: float = 0.01,
) -> Deferred:
    """Leaves a training batch norm and its activation to the convolution that reads x [N, C, H, W] next.

    The arguments are those of `batch_norm_act` in training. The call reads x once, for the statistics.

    Raises:
        ValueError: if there is only one value for each channel.
    """
    norm = (weight, bias, running_mean, running_var)
    check_norm(x.shape[1], *norm, training=True, momentum=momentum, act=act)
    x = dense(x)
    # The convolution that reads x computes the gradients of gamma and beta, and that of x through its statistics.
    given = (None if t is None else t.detach() for t in (weight, bias))
    table = torch.ops.wallclock.norm_table(x.detach(), *given, eps)
    _update(running_mean, running_var, table, x, momentum)
    return Deferred(x, table, weight, bias, eps, act, negative_slope)


def conv_bn_act(
    x: Tensor | Deferred,
    filters: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    stride: int = 1,
    padding: int = 0,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: Act = "none",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    save: Save = "input",
    defer: bool = False,
) -> Tensor | Deferred:
    """Returns `act(batch_norm(conv(x))) + residual`, with statistics from the convolution's kernel, and its gradients.

    The arguments are those of `batch_norm_act`, with vectors of K channels, and:
        x: [N, C, H, W], floating; copied if it is not in channels-last memory. Or a deferred map, whose norm and
            activation are applied while it is read.
        filters: [K, C, R, S]; converted to x's dtype.
        stride: stride of the convolution.
        padding: zeros around the activated x.
        residual: [N, K, P, Q] of x's dtype, added after the activation; or None.
        defer: in training, leave norm and activation to the operation that reads the result; not with a residual.
    Evaluation without gradients folds the running statistics into one kernel with convolution and activation.

    Returns:
        [N, K, P, Q] of x's dtype in channels-last memory, or that map deferred.

    Raises:
        ValueError: if shapes or dtypes do not fit, in training there is only one value per channel, or a residual is to
            be added to a deferred map.

    Numerics: products of x's type summed in float32 (float64 for float64; float32 through TensorFloat-32 where
    `torch.backends.cudnn.allow_tf32`); statistics of the rounded output, by tile, merged in fixed order; no atomics.
    Cost: passes over y beside the convolution's own traffic: forward 2, backward 5; deferred 0 and 4.
    Source: Jung et al., https://arxiv.org/abs/1807.01702 (fission and fusion of batch norm); cuDNN's graph samples
    "scale-bias-relu, convolution, statistics".
    """
    source = x.map if isinstance(x, Deferred) else x
    _check(source, filters, stride, padding, residual if not defer else None)
    norm = (weight, bias, running_mean, running_var)
    check_norm(filters.shape[0], *norm, training=training, momentum=momentum, act=act)
    if defer and residual is not None:
        raise ValueError("a deferred map takes no residual; leave out `defer` where one is added")
    parameters = (filters, weight, bias)
    wants_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (source, *parameters))
    if training:
        y, table = convolved(x, filters, stride=stride, padding=padding, stats_for=(weight, bias, eps))
        _update(running_mean, running_var, table, y, momentum)
        made = Deferred(y, table, weight, bias, eps, act, negative_slope)
        return made if defer else made.applied(residual, save)
    if wants_gradient or isinstance(x, Deferred):
        y, _ = convolved(x, filters, stride=stride, padding=padding)
        return batch_norm_act(
            y, *norm, training=False, eps=eps, act=act, negative_slope=negative_slope, residual=residual, save=save
        )
    return torch.ops.wallclock.conv_bn_act_folded(
        x, filters, *norm, residual, stride, padding, eps, act, negative_slope
    )


def convolved(
    x: Tensor | Deferred,
    filters: Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
    stats_for: tuple[Tensor | None, Tensor | None, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns a convolution with gradients, and the table of a norm of its output.

    Args:
        x: map [N, C, H, W], floating; or a deferred map.
        filters: filters [K, C, R, S]; converted to x's dtype.
        stride: stride of the convolution.
        padding: zeros around the activated x.
        stats_for: gamma, beta and eps of the norm whose table is wanted; or None.

    Returns:
        The map [N, K, P, Q], and the table [5, K], empty if none is wanted.
    """
    norm: tuple[object, ...] = (None, None, None, "none", 0.0)
    if isinstance(x, Deferred):
        norm = (x.table, x.weight, x.bias, x.act, x.negative_slope)
        x = x.map
    weight, bias, eps = stats_for or (None, None, 0.0)
    return torch.ops.wallclock.conv_bn(x, filters, *norm, stride, padding, stats_for is not None, weight, bias, eps)


def _check(x: Tensor, filters: Tensor, stride: int, padding: int, residual: Tensor | None) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"conv_bn_act needs a floating [N, C, H, W], got {x.dtype} {tuple(x.shape)}")
    if filters.ndim != 4 or filters.shape[1] != x.shape[1]:
        raise ValueError(f"filters are {tuple(filters.shape)}; expected [K, {x.shape[1]}, R, S] for x {tuple(x.shape)}")
    if stride < 1 or padding < 0:
        raise ValueError(f"stride is {stride} and padding {padding}; expected at least 1 and 0")
    p, q = (output_size(x.shape[i], filters.shape[i], stride, padding) for i in (2, 3))
    if p < 1 or q < 1:
        raise ValueError(f"filters of {tuple(filters.shape[2:])} do not fit on a map of {tuple(x.shape[2:])}")
    check_residual(residual, x.dtype, (x.shape[0], filters.shape[0], p, q))


def _update(running_mean: Tensor | None, running_var: Tensor | None, table: Tensor, y: Tensor, momentum: float) -> None:
    m = y.numel() // y.shape[1]
    if m == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(y.shape)}")
    if running_mean is not None and m:
        torch.ops.wallclock.update_running_stats_(running_mean, running_var, table[2], table[4], m, momentum)
