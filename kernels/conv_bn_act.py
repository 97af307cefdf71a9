"""Convolution, batch norm and activation: the convolution computes the norm's statistics, the next one applies it.

The shape legend is that of `kernels.conv`.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from wallclock.kernels import conv_bn_operators  # noqa: F401  registers the operators
from wallclock.kernels.batch_norm_act import (
    BatchNorm,
    Save,
    batch_norm_act,
    batch_norm_act_ref,
    check_norm,
    dense,
    move_running,
)
from wallclock.kernels.checks import check_residual
from wallclock.kernels.conv import NO_NORM, Norm, output_size


def conv_bn_act_ref(
    x: Tensor, filters: Tensor, norm: BatchNorm, *, stride: int = 1, padding: int = 0, residual: Tensor | None = None
) -> Tensor:
    """Defines `conv_bn_act`: `act(batch_norm(conv(x))) + residual`, computed in float32 at least.

    The arguments are those of `conv_bn_act`, with x of any memory order.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    y = F.conv2d(x.to(wide), filters.to(wide), stride=stride, padding=padding)
    return batch_norm_act_ref(y, norm, residual=None if residual is None else residual.to(wide)).to(x.dtype)


class Deferred(NamedTuple):
    """A map whose batch norm and activation are applied by the operation that reads it, without a pass of their own.

    Attributes:
        map: map [N, C, H, W] before the norm, dense.
        table: the norm's table with the batch's statistics, see `kernels.conv.Norm`.
        norm: the norm and its activation, in training.
    """

    map: Tensor
    table: Tensor
    norm: BatchNorm

    def applied(self, residual: Tensor | None = None, save: Save = "input") -> Tensor:
        """Returns `act(norm(map)) + residual`, [N, C, H, W]; reads each map once and writes one.

        The arguments are those of `batch_norm_act`.
        """
        known = self.norm._replace(running_mean=self.table[2], running_var=self.table[4])
        return torch.ops.wallclock.batch_norm_act(self.map, *known, residual, save, None)[0]


def deferred(x: Tensor, norm: BatchNorm) -> Deferred:
    """Leaves a training batch norm and its activation to the convolution that reads x [N, C, H, W] next.

    The call reads x once, for the statistics.

    Raises:
        ValueError: if the norm does not fit, or there is only one value for each channel.
    """
    check_norm(tuple(x.shape), norm)
    x = dense(x)
    # The convolution that reads x computes the gradients of gamma and beta, and that of x through its statistics.
    given = (None if t is None else t.detach() for t in norm[:2])
    table = torch.ops.wallclock.norm_table(x.detach(), *given, norm.eps)
    move_running(norm, table[2], table[4], x)
    return Deferred(x, table, norm)


def conv_bn_act(
    x: Tensor | Deferred,
    filters: Tensor,
    norm: BatchNorm,
    *,
    stride: int = 1,
    padding: int = 0,
    residual: Tensor | None = None,
    save: Save = "input",
    defer: bool = False,
) -> Tensor | Deferred:
    """Returns `act(batch_norm(conv(x))) + residual`, with statistics from the convolution's kernel, and its gradients.

    Evaluation without gradients folds the running statistics into one kernel with convolution and activation.

    Args:
        x: [N, C, H, W], floating; copied if it is not in channels-last memory. Or a deferred map, whose norm and
            activation are applied while it is read.
        filters: [K, C, R, S]; converted to x's dtype.
        norm: the norm of K channels and its activation.
        stride: stride of the convolution.
        padding: zeros around the activated x.
        residual: [N, K, P, Q] of x's dtype, added after the activation; or None.
        save: tensors that backward reads; see `batch_norm_act`.
        defer: in training, leave norm and activation to the operation that reads the result; not with a residual.

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
    shape = _output_shape(source, filters, stride, padding)
    check_norm(shape, norm)
    if defer and residual is not None:
        raise ValueError("a deferred map takes no residual; leave out `defer` where one is added")
    check_residual(residual, source.dtype, shape)
    if norm.training:
        y, table = convolved(x, filters, stride=stride, padding=padding, stats_for=norm)
        move_running(norm, table[2], table[4], y)
        made = Deferred(y, table, norm)
        return made if defer else made.applied(residual, save)
    trained = any(t is not None and t.requires_grad for t in (source, filters, norm.weight, norm.bias))
    if (torch.is_grad_enabled() and trained) or isinstance(x, Deferred):
        y, _ = convolved(x, filters, stride=stride, padding=padding)
        return batch_norm_act(y, norm, residual=residual, save=save)
    return torch.ops.wallclock.conv_bn_act_folded(x, filters, *norm, residual, stride, padding)


def convolved(
    x: Tensor | Deferred, filters: Tensor, *, stride: int = 1, padding: int = 0, stats_for: BatchNorm | None = None
) -> tuple[Tensor, Tensor]:
    """Returns a convolution with gradients, and the table of a norm of its output.

    The arguments are those of `conv_bn_act`; `stats_for` is the norm whose table is wanted, or None.

    Returns:
        The map [N, K, P, Q], and the table [5, K], empty if none is wanted.
    """
    of_input = NO_NORM
    if isinstance(x, Deferred):
        norm = x.norm
        of_input, x = Norm(x.table, norm.weight, norm.bias, norm.act, norm.negative_slope), x.map
    of_output = (False, None, None, 0.0) if stats_for is None else (True, *stats_for[:2], stats_for.eps)
    return torch.ops.wallclock.conv_bn(x, filters, *of_input, stride, padding, *of_output)


def _output_shape(x: Tensor, filters: Tensor, stride: int, padding: int) -> tuple[int, int, int, int]:
    """Returns N, K, P, Q of a convolution; raises a ValueError if its arguments do not fit."""
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"conv_bn_act needs a floating [N, C, H, W], got {x.dtype} {tuple(x.shape)}")
    if filters.ndim != 4 or filters.shape[1] != x.shape[1]:
        raise ValueError(f"filters are {tuple(filters.shape)}; expected [K, {x.shape[1]}, R, S] for x {tuple(x.shape)}")
    if stride < 1 or padding < 0:
        raise ValueError(f"stride is {stride} and padding {padding}; expected at least 1 and 0")
    p, q = (output_size(x.shape[i], filters.shape[i], stride, padding) for i in (2, 3))
    if p < 1 or q < 1:
        raise ValueError(f"filters of {tuple(filters.shape[2:])} do not fit on a map of {tuple(x.shape[2:])}")
    return x.shape[0], filters.shape[0], p, q
