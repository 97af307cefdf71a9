"""Batch norm, activation and an optional residual in one operation, forward and backward.

Shape legend: N batch, C channels, H, W height and width, in channels-last memory, which is a matrix [M, C] with
M = N*H*W; S row splits, each reduced by one program.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from wallclock.kernels.jit import batch_norm_act as jit

Act = Literal["none", "relu", "leaky_relu", "silu", "gelu"]
Save = Literal["input", "output", "byte"]
ACTS: tuple[Act, ...] = ("none", "relu", "leaky_relu", "silu", "gelu")


def batch_norm_act_ref(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: Act = "none",
    negative_slope: float = 0.01,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Defines the operation: `act(batch_norm(x)) + residual`, computed in float32 at least.

    Args:
        x: [N, C, H, W], floating.
        weight: gamma [C], or None for ones.
        bias: beta [C], or None for zeros.
        running_mean: [C], updated in place in training; None to keep none.
        running_var: [C], the same; holds the unbiased variance.
        training: normalise by the batch's statistics rather than the running ones.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.
        act: one of `ACTS`.
        negative_slope: of leaky_relu.
        residual: [N, C, H, W] of x's dtype, or None.

    Returns:
        [N, C, H, W] of x's dtype.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias = (None if t is None else t.to(wide) for t in (weight, bias))
    z = F.batch_norm(x.to(wide), running_mean, running_var, weight, bias, training, momentum, eps)
    y = {
        "none": lambda z: z,
        "relu": F.relu,
        "leaky_relu": lambda z: F.leaky_relu(z, negative_slope),
        "silu": F.silu,
        "gelu": F.gelu,
    }[act](z)
    return (y if residual is None else y + residual.to(wide)).to(x.dtype)


@dataclass(frozen=True)
class Plan:
    """How an [M, C] matrix is cut up.

    Attributes:
        persistent: one program keeps a split in registers; else each loops over its split, twice.
        block_m: rows of a tile; of the whole split when persistent.
        block_c: channels of a tile, a power of two.
        splits: S, programs along the rows.
        split_rows: rows of each split but the last.
    """

    persistent: bool
    block_m: int
    block_c: int
    splits: int
    split_rows: int


TILE = 2048  # elements: two vector loads a thread of each tensor, and registers for three programs or more
PERSISTENT_TILE = 8192  # elements of each tensor that a program keeps
PROGRAMS = 1024  # about eight to each multiprocessor of the largest GPUs; fixed, so that no result depends on the GPU


def plan(m: int, c: int, *, resident_programs: int | None) -> Plan:
    """Returns how to cut up an [m, c] matrix.

    Args:
        m: rows.
        c: channels.
        resident_programs: how many programs may wait for each other; None for no persistent form.
    """
    block_c = min(triton.next_power_of_2(c), 64)
    column_blocks = triton.cdiv(c, block_c)
    tallest = PERSISTENT_TILE // block_c
    splits = triton.cdiv(m, tallest)
    if resident_programs is not None and (splits == 1 or splits * column_blocks <= resident_programs):
        rows = triton.cdiv(m, splits)
        return Plan(True, triton.next_power_of_2(rows), block_c, triton.cdiv(m, rows), rows)
    block_m = TILE // block_c
    tiles = triton.cdiv(m, block_m)
    tiles_of_split = triton.cdiv(tiles, max(1, PROGRAMS // column_blocks))
    return Plan(False, block_m, block_c, triton.cdiv(tiles, tiles_of_split), tiles_of_split * block_m)


def resident_programs(device: torch.device) -> int:
    """Returns how many programs surely run at once on a device: one to each multiprocessor of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


def _plan_for(x: torch.Tensor, persistent: bool | None) -> Plan:
    m, c = x.numel() // x.shape[1], x.shape[1]
    return plan(m, c, resident_programs=None if persistent is False else resident_programs(x.device))


def accumulator(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    """Returns what sums of a storage type are kept in, to torch and to Triton."""
    return (torch.float64, tl.float64) if dtype == torch.float64 else (torch.float32, tl.float32)


def dense(x: torch.Tensor) -> torch.Tensor:
    """Returns a map in channels-last memory."""
    return x.contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("wallclock::batch_norm_act", mutates_args=())
def _forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    given_mean: torch.Tensor | None,
    given_var: torch.Tensor | None,
    residual: torch.Tensor | None,
    training: bool,
    eps: float,
    act: str,
    negative_slope: float,
    save: str,
    persistent: bool | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns y, the batch's mean and biased variance (empty where moments are given), and the byte map.

    In training, moments that are given are those of x, which a convolution has found while it made x.
    """
    y, mean, var, byte = _forward_outputs(x, given_mean, save)
    if x.numel() == 0:
        mean.zero_()
        var.zero_()
        return y, mean, var, byte
    x, residual = dense(x), None if residual is None else dense(residual)
    m, c = x.numel() // x.shape[1], x.shape[1]
    cut = _plan_for(x, persistent)
    wide, acc = accumulator(x.dtype)
    columns = triton.cdiv(c, cut.block_c)
    options = {
        "AFFINE": weight is not None, "ACT": act, "RESIDUAL": residual is not None, "SAVE": save,
        "BLOCK_M": cut.block_m, "BLOCK_C": cut.block_c, "ACC": acc,
    }  # fmt: skip
    if given_mean is None:
        partial = torch.empty(2, cut.splits, c, device=x.device, dtype=wide)
        if cut.persistent:
            arrived = torch.zeros(columns, device=x.device, dtype=torch.int32)
            jit.persistent_forward_kernel[(columns, cut.splits)](
                x, y, byte, residual, partial[0], partial[1], mean, var, weight, bias, arrived,
                m, c, cut.splits, cut.split_rows, eps, negative_slope,
                **options, BLOCK_S=_block_s(cut), num_warps=8, **_cooperative(cut),
            )  # fmt: skip
            return y, mean, var, byte
        jit.stats_kernel[(columns, cut.splits)](
            x, partial[0], partial[1], m, c, cut.split_rows, BLOCK_M=cut.block_m, BLOCK_C=cut.block_c, ACC=acc
        )
        grid, blocks = _merge_grid(c, cut)
        jit.merge_stats_kernel[grid](
            partial[0], partial[1], mean, var, m, c, cut.splits, cut.split_rows, **blocks, ACC=acc
        )
    used_mean, used_var = (mean, var) if given_mean is None else (given_mean, given_var)
    tile_rows = TILE // cut.block_c
    jit.apply_kernel[(triton.cdiv(m, tile_rows), columns)](
        x, y, byte, residual, used_mean, used_var, weight, bias, m, c, eps, negative_slope,
        **{**options, "BLOCK_M": tile_rows},
    )  # fmt: skip
    return y, mean, var, byte


def _forward_outputs(
    x: torch.Tensor, given_mean: torch.Tensor | None, save: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    wide, _ = accumulator(x.dtype)
    moments = x.shape[1] if given_mean is None else 0
    y = torch.empty_like(x, memory_format=torch.channels_last)
    byte = torch.empty_like(y, dtype=torch.uint8) if save == "byte" else x.new_empty(0, dtype=torch.uint8)
    return y, x.new_empty(moments, dtype=wide), x.new_empty(moments, dtype=wide), byte


def _block_s(cut: Plan) -> int:
    return min(triton.next_power_of_2(cut.splits), 32)


def _merge_grid(c: int, cut: Plan) -> tuple[tuple[int], dict[str, int]]:
    """One program for every few channels: all splits of them at once."""
    block_s = triton.next_power_of_2(cut.splits)
    block_c = max(1, min(triton.next_power_of_2(c), TILE // block_s))
    return (triton.cdiv(c, block_c),), {"BLOCK_S": block_s, "BLOCK_C": block_c}


def _cooperative(cut: Plan) -> dict[str, bool]:
    return {"launch_cooperative_grid": True} if cut.splits > 1 else {}


@_forward.register_fake
def _(x, weight, bias, given_mean, given_var, residual, training, eps, act, negative_slope, save, persistent):  # type: ignore[no-untyped-def]
    return _forward_outputs(x, given_mean, save)


@torch.library.custom_op("wallclock::batch_norm_act_backward", mutates_args=())
def _backward(
    dy: torch.Tensor,
    saved: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    training: bool,
    eps: float,
    act: str,
    negative_slope: float,
    save: str,
    persistent: bool | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the gradients of x, gamma and beta."""
    dx, dweight, dbias = _backward_outputs(dy)
    if dy.numel() == 0:
        return dx, dweight.zero_(), dbias.zero_()
    dy, saved = dense(dy), dense(saved)
    m, c = dy.numel() // dy.shape[1], dy.shape[1]
    cut = _plan_for(dy, persistent)
    wide, acc = accumulator(dy.dtype)
    columns = triton.cdiv(c, cut.block_c)
    options = {
        "AFFINE": weight is not None, "ACT": act, "SAVE": save,
        "BLOCK_M": cut.block_m, "BLOCK_C": cut.block_c, "ACC": acc,
    }  # fmt: skip
    partial = torch.empty(2, cut.splits, c, device=dy.device, dtype=wide)
    if cut.persistent:
        arrived = torch.zeros(columns, device=dy.device, dtype=torch.int32)
        jit.persistent_backward_kernel[(columns, cut.splits)](
            saved, dy, dx, mean, var, weight, bias, partial[0], partial[1], dbias, dweight, arrived,
            m, c, cut.splits, cut.split_rows, eps, negative_slope,
            **options, TRAINING=training, BLOCK_S=_block_s(cut), num_warps=16, **_cooperative(cut),
        )  # fmt: skip
        return dx, dweight, dbias
    jit.backward_sums_kernel[(columns, cut.splits)](
        saved, dy, mean, var, weight, bias, partial[0], partial[1], m, c, cut.split_rows, eps, negative_slope, **options
    )
    grid, blocks = _merge_grid(c, cut)
    jit.merge_sums_kernel[grid](partial[0], partial[1], dbias, dweight, c, cut.splits, **blocks, ACC=acc)
    jit.backward_apply_kernel[(triton.cdiv(m, cut.block_m), columns)](
        saved, dy, dx, mean, var, weight, bias, dbias, dweight, m, c, eps, negative_slope, **options, TRAINING=training
    )
    return dx, dweight, dbias


def _backward_outputs(dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wide, _ = accumulator(dy.dtype)
    dx = torch.empty_like(dy, memory_format=torch.channels_last)
    return dx, dy.new_empty(dy.shape[1], dtype=wide), dy.new_empty(dy.shape[1], dtype=wide)


@_backward.register_fake
def _(dy, saved, mean, var, weight, bias, training, eps, act, negative_slope, save, persistent):  # type: ignore[no-untyped-def]
    return _backward_outputs(dy)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, bias, given_mean, given_var, residual, ctx.training, *ctx.options = inputs
    y, mean, var, byte = output
    save = ctx.options[3]
    saved = {"input": x, "output": y, "byte": byte}[save]
    ctx.has_residual = residual is not None
    moments = (mean, var) if given_mean is None else (given_mean, given_var)
    ctx.save_for_backward(saved, *moments, weight, bias)
    ctx.mark_non_differentiable(mean, var, byte)
    ctx.set_materialize_grads(False)


def _backward_formula(ctx, dy, *_):  # type: ignore[no-untyped-def]
    if dy is None:
        return (None,) * 12
    saved, mean, var, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = torch.ops.wallclock.batch_norm_act_backward(
        dy, saved, mean, var, weight, bias, ctx.training, *ctx.options
    )
    dweight = None if weight is None else dweight.to(weight.dtype)
    dbias = None if bias is None else dbias.to(bias.dtype)
    return dx, dweight, dbias, None, None, dy if ctx.has_residual else None, *(None,) * 6


torch.library.register_autograd("wallclock::batch_norm_act", _backward_formula, setup_context=_setup_context)


@torch.library.custom_op("wallclock::update_running_stats_", mutates_args=("running_mean", "running_var"))
def _update_running_stats(
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    m: int,
    momentum: float,
) -> None:
    """Moves the running statistics towards the batch's; the running variance is the unbiased one."""
    c = len(mean)
    jit.update_running_kernel[(triton.cdiv(c, 1024),)](
        running_mean, running_var, mean, var, m, c, momentum, BLOCK_C=1024
    )


def batch_norm_act(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: Act = "none",
    negative_slope: float = 0.01,
    residual: torch.Tensor | None = None,
    save: Save = "input",
    persistent: bool | None = None,
) -> torch.Tensor:
    """Computes `batch_norm_act_ref` in one operation, with its gradients.

    Args:
        x: [N, C, H, W], floating; what is not in channels-last memory is copied into it.
        weight: gamma [C], given together with `bias` or not at all.
        bias: beta [C].
        running_mean: [C], updated in place in training; None to keep none.
        running_var: [C], the same; holds the unbiased variance.
        training: normalise by the batch's statistics rather than the running ones.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.
        act: one of `ACTS`.
        negative_slope: of leaky_relu.
        residual: [N, C, H, W] of x's dtype, added after the activation, or None.
        save: what backward reads. "input" keeps x. "output" keeps y alone, which the next convolution keeps anyway, and
            inverts it: for `act` none or leaky_relu, without a residual; gamma then counts as at least 0.1 in size.
            "byte" keeps one byte an element: the normalised input in small steps, and exactly on which side of the kink
            it is. It errs by 1 to 3% of gamma's gradient, and by 0.1% of x's (1% with a smooth activation).
        persistent: None chooses the form by size; False forbids the one that reads its input once.

    Returns:
        [N, C, H, W] of x's dtype, in channels-last memory.

    Raises:
        ValueError: if shapes or dtypes do not fit, or in training there is only one value a channel.

    Numerics: float32 throughout (float64 for float64), per-split mean and sum of squared deviations merged in fixed
    order, no atomics on values: the same input gives the same bits.
    Cost: in passes over the map, forward 3 (2 persistent) and 1 for a residual, backward 5 (3 persistent); see `SPEC`.
    Source: Ioffe and Szegedy, https://arxiv.org/abs/1502.03167; Chan et al. (1983) for the merge; Rota Bulo et al.,
    https://arxiv.org/abs/1712.02616 for `save="output"`.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"batch_norm_act needs a floating [N, C, H, W], got {x.dtype} {tuple(x.shape)}")
    check_norm(x.shape[1], weight, bias, running_mean, running_var, training, momentum, act)
    _check_map(x, training, act, negative_slope, residual, save)
    given = (None, None) if training else (running_mean, running_var)
    y, mean, var, _ = torch.ops.wallclock.batch_norm_act(
        x, weight, bias, *given, residual, training, eps, act, negative_slope, save, persistent
    )
    if training and running_mean is not None and x.numel():
        m = x.numel() // x.shape[1]
        torch.ops.wallclock.update_running_stats_(running_mean, running_var, mean, var, m, momentum)
    return y


def check_norm(
    channels: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    training: bool,
    momentum: float,
    act: str,
) -> None:
    """Refuses what cannot be a norm's and an activation's arguments.

    Raises:
        ValueError: if a vector is not [channels] in dense memory, one of a pair is missing, or a name is unknown.
    """
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, vector in vectors.items():
        if vector is not None and vector.shape != (channels,):
            raise ValueError(f"{name} has shape {tuple(vector.shape)}; expected ({channels},), one value a channel")
        if vector is not None and not vector.is_contiguous():
            raise ValueError(f"{name} has stride {vector.stride(0)}; expected a dense vector, call .contiguous()")
    if (weight is None) != (bias is None):
        raise ValueError("weight and bias are given together or not at all")
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var are given together or not at all")
    if not training and running_mean is None:
        raise ValueError("evaluation needs running statistics; pass training=True to normalise by the batch's")
    if not isinstance(momentum, float | int):
        raise ValueError(f"momentum is {momentum}; for a cumulative average pass 1 / (batches seen so far + 1)")
    if act not in ACTS:
        raise ValueError(f"act is '{act}'; expected one of {', '.join(ACTS)}")


def _check_map(
    x: torch.Tensor, training: bool, act: str, negative_slope: float, residual: torch.Tensor | None, save: str
) -> None:
    if training and x.numel() == x.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"residual is {residual.dtype} {tuple(residual.shape)}; expected {x.dtype} {tuple(x.shape)} as the input"
        )
    if save not in ("input", "output", "byte"):
        raise ValueError(f"save is '{save}'; expected input, output or byte")
    invertible = act == "none" or (act == "leaky_relu" and negative_slope > 0)
    if save == "output" and (residual is not None or not invertible):
        raise ValueError(f"save='output' cannot invert {act}{' + residual' * (residual is not None)}; use save='byte'")
