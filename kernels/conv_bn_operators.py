"""The operators of `kernels.conv_bn_act`, forward and backward, as registered with `torch.library`.

The shape legend is that of `kernels.conv`.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from wallclock.kernels.batch_norm_act import BatchNorm, accumulator, dense, matrix, plan, workspace
from wallclock.kernels.conv import Norm, conv, conv_transposed, convolution_output, filter_gradient, new_map
from wallclock.kernels.jit import batch_norm_act as norm_jit
from wallclock.kernels.jit import conv_bn_act as jit
from wallclock.kernels.operator import Gradients, operator

GROUP = 64  # tiles that one program merges; more of them take further launches


def _table(partial: Tensor, split_rows: int, m: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Returns a norm's table, made of mean and sum of squared deviations of each split, [2, S, C]."""
    _, splits, c = partial.shape
    acc = accumulator(partial.dtype)[1]
    table = partial.new_empty(5, c)
    while splits > GROUP:
        groups = triton.cdiv(splits, GROUP)
        merged = partial.new_empty(2, groups, c)
        jit.merge_groups_kernel[(triton.cdiv(c, 32), groups)](
            partial[0], partial[1], merged[0], merged[1], m, c, splits, split_rows, GROUP=GROUP, BLOCK_C=32, ACC=acc
        )
        partial, splits, split_rows = merged, groups, split_rows * GROUP
    jit.table_kernel[(triton.cdiv(c, 32),)](
        partial[0], partial[1], weight, bias, table, m, c, splits, split_rows, eps,
        AFFINE=weight is not None, BLOCK_S=min(triton.next_power_of_2(splits), GROUP), BLOCK_C=32, ACC=acc,
    )  # fmt: skip
    return table


def _sum_splits(partial: Tensor) -> tuple[Tensor, Tensor]:
    """Returns two sums [C], added up from those of each split, [2, S, C]."""
    acc = accumulator(partial.dtype)[1]
    while partial.shape[1] > 1:
        _, splits, c = partial.shape
        groups = triton.cdiv(splits, GROUP)
        merged = partial.new_empty(2, groups, c)
        jit.sum_groups_kernel[(triton.cdiv(c, 32), groups)](
            partial[0], partial[1], merged[0], merged[1], c, splits, GROUP=GROUP, BLOCK_C=32, ACC=acc
        )
        partial = merged
    return partial[0, 0].clone(), partial[1, 0].clone()


def _filters(filters: Tensor, x: Tensor) -> Tensor:
    return filters.to(x.dtype).contiguous(memory_format=torch.channels_last)


def _table_output(x: Tensor) -> Tensor:
    return x.new_empty((5, x.shape[1]), dtype=accumulator(x.dtype)[0])


@operator("norm_table", outputs=_table_output)
def _norm_table(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Returns the table [5, C] of a norm of x by its own statistics."""
    if x.numel() == 0:
        return _table_output(x).zero_()
    x = dense(x)
    m, c = matrix(x)
    cut = plan(m, c, resident_programs=None)
    columns, partial, _, tile = workspace(x, cut)
    norm_jit.stats_kernel[(columns, cut.splits)](x, partial[0], partial[1], m, c, cut.split_rows, **tile)
    return _table(partial[:, 0], cut.split_rows, m, weight, bias, eps)


def _forward_outputs(x: Tensor, filters: Tensor, stride: int, padding: int, stats: bool) -> tuple[Tensor, Tensor]:
    table = x.new_empty((5 if stats else 0, len(filters)), dtype=accumulator(x.dtype)[0])
    return convolution_output(x, filters, stride, padding), table


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, filters, table, *norm_and_geometry = inputs[:9]
    ctx.options = norm_and_geometry[2:]
    ctx.parameter_dtypes = [None if p is None else p.dtype for p in norm_and_geometry[:2]]
    ctx.save_for_backward(x, filters, table)


def _gradients(ctx: Any, dy: Tensor) -> Gradients:
    wants_x, wants_dfilters, _, *wants_parameters = ctx.needs_input_grad[:5]
    has_norm = ctx.saved_tensors[2] is not None
    wants_dx = wants_x or (has_norm and any(wants_parameters))
    dx, dfilters, *of_norm = torch.ops.wallclock.conv_bn_backward(
        dy, *ctx.saved_tensors, None, None, *ctx.options, wants_dx, wants_dfilters
    )
    dweight, dbias = (
        gradient.to(dtype) if dtype is not None and wanted else None
        for wanted, gradient, dtype in zip(wants_parameters, of_norm, ctx.parameter_dtypes, strict=True)
    )
    return {
        "x": dx if wants_dx else None,
        "filters": dfilters if wants_dfilters else None,
        "weight": dweight,
        "bias": dbias,
    }


@operator("conv_bn", outputs=_forward_outputs, keep=_keep, gradients=_gradients)
def _forward(
    x: Tensor,
    filters: Tensor,
    norm: Norm,
    stride: int,
    padding: int,
    stats: bool,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Returns y, and the table of a norm of y by gamma, beta and eps if `stats`; `norm` is that of x."""
    y, made = _forward_outputs(x, filters, stride, padding, stats)
    if x.numel() == 0:
        return y, made.zero_()
    y, partial, split_rows = conv(
        dense(x), _filters(filters, x), stride=stride, padding=padding, norm=norm, stats=stats
    )
    if stats:
        made = _table(partial, split_rows, matrix(y)[0], out_weight, out_bias, eps)
    return y, made


def _backward_outputs(
    x: Tensor, filters: Tensor, norm: Norm, wants_dx: bool, wants_dfilters: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    dx = new_map(x, n, c, h, w) if wants_dx else x.new_empty(0)
    dfilters = torch.empty_like(filters, memory_format=torch.channels_last) if wants_dfilters else filters.new_empty(0)
    channels = c if wants_dx and norm.table is not None else 0
    wide = accumulator(x.dtype)[0]
    return dx, dfilters, x.new_empty(channels, dtype=wide), x.new_empty(channels, dtype=wide)


@operator("conv_bn_backward", outputs=_backward_outputs)
def _backward(
    dy: Tensor, x: Tensor, filters: Tensor, norm: Norm, stride: int, padding: int, wants_dx: bool, wants_dfilters: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of x, filters, and the norm's gamma and beta; an empty tensor where one is not wanted."""
    dx, dfilters, dweight, dbias = _backward_outputs(x, filters, norm, wants_dx, wants_dfilters)
    if dy.numel() == 0:
        return dx, dfilters.zero_(), dweight.zero_(), dbias.zero_()
    dy, x = dense(dy), dense(x)
    if wants_dfilters:
        dfilters = filter_gradient(
            dy, x, filter_size=(filters.shape[2], filters.shape[3]), stride=stride, padding=padding, norm=norm,
            dtype=filters.dtype,
        )  # fmt: skip
    if wants_dx:
        dx, partial = conv_transposed(
            dy, _filters(filters, x), height=x.shape[2], width=x.shape[3], stride=stride, padding=padding,
            of=None if norm.table is None else (x, norm),
        )  # fmt: skip
        if norm.table is not None:
            dbias, dweight = _sum_splits(partial)
            m, c = matrix(x)
            block_c = min(triton.next_power_of_2(c), 64)
            block_m = 4096 // block_c
            jit.input_gradient_kernel[(triton.cdiv(m, block_m), triton.cdiv(c, block_c))](
                x, dx, norm.table, dbias, dweight, m, c, BLOCK_M=block_m, BLOCK_C=block_c, ACC=accumulator(x.dtype)[1]
            )
    return dx, dfilters, dweight, dbias


@operator("conv_bn_act_folded", outputs=convolution_output)
def _folded(x: Tensor, filters: Tensor, norm: BatchNorm, residual: Tensor | None, stride: int, padding: int) -> Tensor:
    """Returns the whole operation with the running statistics, without gradients."""
    if x.numel() == 0:
        return convolution_output(x, filters, stride, padding)
    assert norm.running_mean is not None and norm.running_var is not None
    moments = torch.stack([norm.running_mean, norm.running_var])[:, None].to(accumulator(x.dtype)[0])
    table = _table(moments, 1, 1, norm.weight, norm.bias, norm.eps)
    after = Norm(table, act=norm.act, negative_slope=norm.negative_slope)
    residual = None if residual is None else dense(residual)
    return conv(dense(x), _filters(filters, x), stride=stride, padding=padding, after=after, residual=residual)[0]
