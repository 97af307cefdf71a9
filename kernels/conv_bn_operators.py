"""The operators of `kernels.conv_bn_act`, forward and backward, as `torch.library` and so the compiler know them.

Shape legend: N images, H, W input map, C input channels, P, Q output map, K output channels, R, S filter. Maps are NCHW
tensors in channels-last memory.
"""

import torch
import triton

from wallclock.kernels.batch_norm_act import accumulator, dense, plan
from wallclock.kernels.conv import Norm, conv, conv_affine_act, conv_transposed, filter_gradient, new_map, output_size
from wallclock.kernels.jit import batch_norm_act as norm_jit
from wallclock.kernels.jit import conv_bn_act as jit

GROUP = 64  # tiles that are merged at once; more than one group is merged in two launches


def _table(
    partial: torch.Tensor, split_rows: int, m: int, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """Returns a norm's table from mean and sum of squared deviations by split, [2, S, C]."""
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


def _summed(partial: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the two sums [C] of those by split, [2, S, C]."""
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


def _filters(filters: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return filters.to(x.dtype).contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("wallclock::norm_table", mutates_args=())
def _norm_table(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Returns the table [5, C] of a norm of x by its own statistics."""
    if x.numel() == 0:
        return x.new_zeros((5, x.shape[1]), dtype=accumulator(x.dtype)[0])
    x = dense(x)
    m, c = x.numel() // x.shape[1], x.shape[1]
    cut = plan(m, c, resident_programs=None)
    wide, acc = accumulator(x.dtype)
    partial = torch.empty((2, cut.splits, c), dtype=wide, device=x.device)
    norm_jit.stats_kernel[(triton.cdiv(c, cut.block_c), cut.splits)](
        x, partial[0], partial[1], m, c, cut.split_rows, BLOCK_M=cut.block_m, BLOCK_C=cut.block_c, ACC=acc
    )
    return _table(partial, cut.split_rows, m, weight, bias, eps)


@_norm_table.register_fake
def _(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    return x.new_empty((5, x.shape[1]), dtype=accumulator(x.dtype)[0])


@torch.library.custom_op("wallclock::conv_bn", mutates_args=())
def _forward(
    x: torch.Tensor,
    filters: torch.Tensor,
    table: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    act: str,
    slope: float,
    stride: int,
    padding: int,
    stats: bool,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns y and the table of a norm of it.

    `table`, `act` and `slope` are of the norm of x; its `norm_weight` and `norm_bias` are in the table already, and are
    here for their gradients.
    """
    y, made = _forward_outputs(x, filters, stride, padding, stats)
    if x.numel() == 0:
        return y, made.zero_()
    norm = None if table is None else Norm(table, act, slope)
    y, partial, split_rows = conv(
        dense(x), _filters(filters, x), stride=stride, padding=padding, norm=norm, stats=stats
    )
    if stats:
        made = _table(partial, split_rows, y.numel() // y.shape[1], weight, bias, eps)
    return y, made


def _forward_outputs(
    x: torch.Tensor, filters: torch.Tensor, stride: int, padding: int, stats: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    k, _, r, s = filters.shape
    y = new_map(
        x, x.shape[0], k, output_size(x.shape[2], r, stride, padding), output_size(x.shape[3], s, stride, padding)
    )
    return y, x.new_empty((5 if stats else 0, k), dtype=accumulator(x.dtype)[0])


@_forward.register_fake
def _(x, filters, table, norm_weight, norm_bias, act, slope, stride, padding, stats, weight, bias, eps):  # type: ignore[no-untyped-def]
    return _forward_outputs(x, filters, stride, padding, stats)


@torch.library.custom_op("wallclock::conv_bn_backward", mutates_args=())
def _backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    filters: torch.Tensor,
    norm_table: torch.Tensor | None,
    norm_act: str,
    negative_slope: float,
    stride: int,
    padding: int,
    wants_dx: bool,
    wants_dfilters: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the gradients of x, filters, and the norm's gamma and beta; those not wanted are empty."""
    dx, dfilters, dweight, dbias = _backward_outputs(x, filters, norm_table, wants_dx, wants_dfilters)
    if dy.numel() == 0:
        return dx, dfilters.zero_(), dweight.zero_(), dbias.zero_()
    dy, x = dense(dy), dense(x)
    norm = None if norm_table is None else Norm(norm_table, norm_act, negative_slope)
    if wants_dfilters:
        dfilters = filter_gradient(
            dy, x, filter_size=(filters.shape[2], filters.shape[3]), stride=stride, padding=padding, norm=norm,
            dtype=filters.dtype,
        )  # fmt: skip
    if wants_dx:
        dx, partial = conv_transposed(
            dy, _filters(filters, x), height=x.shape[2], width=x.shape[3], stride=stride, padding=padding,
            of=None if norm is None else (x, norm),
        )  # fmt: skip
        if norm is not None:
            dbias, dweight = _summed(partial)
            m, c = x.numel() // x.shape[1], x.shape[1]
            block_c = min(triton.next_power_of_2(c), 64)
            block_m = 4096 // block_c
            jit.input_gradient_kernel[(triton.cdiv(m, block_m), triton.cdiv(c, block_c))](
                x, dx, norm.table, dbias, dweight, m, c, BLOCK_M=block_m, BLOCK_C=block_c, ACC=accumulator(x.dtype)[1]
            )
    return dx, dfilters, dweight, dbias


def _backward_outputs(
    x: torch.Tensor, filters: torch.Tensor, norm_table: torch.Tensor | None, wants_dx: bool, wants_dfilters: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    n, c, h, w = x.shape
    dx = new_map(x, n, c, h, w) if wants_dx else x.new_empty(0)
    dfilters = torch.empty_like(filters, memory_format=torch.channels_last) if wants_dfilters else filters.new_empty(0)
    channels = c if wants_dx and norm_table is not None else 0
    wide = accumulator(x.dtype)[0]
    return dx, dfilters, x.new_empty(channels, dtype=wide), x.new_empty(channels, dtype=wide)


@_backward.register_fake
def _(dy, x, filters, norm_table, norm_act, negative_slope, stride, padding, wants_dx, wants_dfilters):  # type: ignore[no-untyped-def]
    return _backward_outputs(x, filters, norm_table, wants_dx, wants_dfilters)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, filters, norm_table, norm_weight, norm_bias, *options = inputs
    ctx.options = options[:4]
    ctx.parameter_dtypes = [None if p is None else p.dtype for p in (norm_weight, norm_bias)]
    ctx.save_for_backward(x, filters, norm_table)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward_formula(ctx, dy, _):  # type: ignore[no-untyped-def]
    if dy is None:
        return (None,) * 13
    x, filters, norm_table = ctx.saved_tensors
    through_norm = norm_table is not None and any(ctx.needs_input_grad[at] for at in (3, 4))
    wants_dx, wants_dfilters = ctx.needs_input_grad[0] or through_norm, ctx.needs_input_grad[1]
    dx, dfilters, *of_norm = torch.ops.wallclock.conv_bn_backward(
        dy, x, filters, norm_table, *ctx.options, wants_dx, wants_dfilters
    )
    of_norm = [
        gradient.to(dtype) if dtype is not None and ctx.needs_input_grad[at] else None
        for at, gradient, dtype in zip((3, 4), of_norm, ctx.parameter_dtypes, strict=True)
    ]
    return dx if wants_dx else None, dfilters if wants_dfilters else None, None, *of_norm, *(None,) * 8


torch.library.register_autograd("wallclock::conv_bn", _backward_formula, setup_context=_setup_context)


@torch.library.custom_op("wallclock::conv_bn_act_folded", mutates_args=())
def _folded(
    x: torch.Tensor,
    filters: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    residual: torch.Tensor | None,
    stride: int,
    padding: int,
    eps: float,
    act: str,
    negative_slope: float,
) -> torch.Tensor:
    """Returns the whole operation by the running statistics; without gradients."""
    if x.numel() == 0:
        return _forward_outputs(x, filters, stride, padding, False)[0]
    moments = torch.stack([running_mean, running_var])[:, None].to(accumulator(x.dtype)[0])
    table = _table(moments, 1, 1, weight, bias, eps)
    return conv_affine_act(
        dense(x), _filters(filters, x), stride=stride, padding=padding, scale=table[0], shift=table[1], act=act,
        negative_slope=negative_slope, residual=None if residual is None else dense(residual),
    )  # fmt: skip


@_folded.register_fake
def _(x, filters, weight, bias, running_mean, running_var, residual, stride, padding, eps, act, negative_slope):  # type: ignore[no-untyped-def]
    return _forward_outputs(x, filters, stride, padding, False)[0]
