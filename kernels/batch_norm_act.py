"""Batch norm, activation and an optional residual in one operation, forward and backward.

Shape legend: N batch, C channels, H, W height and width, in channels-last memory, which is a matrix [M, C] with
M = N*H*W; S row splits, each reduced by one program.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from wallclock.kernels.checks import check_act, check_residual, check_vectors
from wallclock.kernels.jit import batch_norm_act as jit
from wallclock.kernels.operator import Gradients, operator

Act = Literal["none", "relu", "leaky_relu", "silu", "gelu"]
Save = Literal["input", "output", "byte"]
ACTS: tuple[Act, ...] = get_args(Act)


class BatchNorm(NamedTuple):
    """A batch norm and the activation after it.

    Attributes:
        weight: gamma [C], dense, given together with `bias` or not at all.
        bias: beta [C].
        running_mean: running mean [C], updated in place in training; or None.
        running_var: running unbiased variance [C], updated in place too; given with `running_mean` or not at all.
        training: whether to normalise by the batch's statistics rather than the running ones.
        momentum: weight of the batch in the running statistics.
        eps: number added to the variance.
        act: name of the activation in `ACTS`.
        negative_slope: slope of leaky_relu below zero.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    training: bool = True
    momentum: float = 0.1
    eps: float = 1e-5
    act: Act = "none"
    negative_slope: float = 0.01


def batch_norm_act_ref(x: Tensor, norm: BatchNorm, *, residual: Tensor | None = None) -> Tensor:
    """Defines `batch_norm_act`: `act(batch_norm(x)) + residual`, computed in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias = (None if t is None else t.to(wide) for t in (norm.weight, norm.bias))
    running = norm.running_mean, norm.running_var
    z = F.batch_norm(x.to(wide), *running, weight, bias, norm.training, norm.momentum, norm.eps)
    y = activate_ref(z, norm.act, norm.negative_slope)
    return (y if residual is None else y + residual.to(wide)).to(x.dtype)


def activate_ref(z: Tensor, act: str, negative_slope: float) -> Tensor:
    """Returns the activation `act`, one of `ACTS`, of a map."""
    if act == "leaky_relu":
        return F.leaky_relu(z, negative_slope)
    return z if act == "none" else getattr(F, act)(z)


@dataclass(frozen=True)
class Plan:
    """Plan by which an [M, C] matrix is divided among programs.

    Attributes:
        persistent: whether each program keeps its split in registers; otherwise it loops over its split, twice.
        block_m: rows of a tile, which is the whole split when persistent.
        block_c: channels of a tile, a power of two.
        splits: S, the number of programs along the rows.
        split_rows: rows of each split except the last, which may have fewer.
    """

    persistent: bool
    block_m: int
    block_c: int
    splits: int
    split_rows: int

    def merge_options(self) -> dict[str, int]:
        """Returns launch options of a persistent program: splits that it merges at a time, and leave to wait."""
        options = {"BLOCK_S": min(triton.next_power_of_2(self.splits), 32)}
        return options | ({"launch_cooperative_grid": True} if self.splits > 1 else {})


TILE = 2048  # elements: two vector loads per thread and tensor, and registers for three programs or more
PERSISTENT_TILE = 8192  # elements of each tensor that a program keeps in registers
PROGRAMS = 1024  # about eight for each multiprocessor of the largest GPUs; fixed, so that no result depends on the GPU


def plan(m: int, c: int, *, resident_programs: int | None, images: int = 1) -> Plan:
    """Returns the plan for a matrix [m, c], or for each of several images with that one.

    Args:
        m: number of rows.
        c: number of channels.
        resident_programs: number of programs that may wait for each other; None forbids the persistent form, which is
            for one image here.
        images: number of images.
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
    tiles_of_split = triton.cdiv(tiles, max(1, PROGRAMS // (column_blocks * images)))
    return Plan(False, block_m, block_c, triton.cdiv(tiles, tiles_of_split), tiles_of_split * block_m)


def resident_programs(device: torch.device) -> int:
    """Returns the number of programs that surely run at once on a device: one on each multiprocessor of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


def matrix(x: Tensor) -> tuple[int, int]:
    """Returns M and C of a map [N, C, H, W]."""
    return x.numel() // x.shape[1], x.shape[1]


def _plan_for(x: Tensor, persistent: bool | None) -> Plan:
    return plan(*matrix(x), resident_programs=None if persistent is False else resident_programs(x.device))


def workspace(x: Tensor, cut: Plan, images: int = 1) -> tuple[int, Tensor, Tensor, dict[str, Any]]:
    """Returns what the launches of a plan share.

    Returns:
        Number of tiles along the channels; partial results of the splits, [2, images, S, C]; counters of the programs
        that have arrived at the barrier, zero, int32; options of a tile.
    """
    wide, acc = accumulator(x.dtype)
    c = x.shape[1]
    columns = triton.cdiv(c, cut.block_c)
    partial = x.new_empty(2, images, cut.splits, c, dtype=wide)
    arrived = x.new_zeros(images * columns if cut.persistent else 0, dtype=torch.int32)
    return columns, partial, arrived, {"BLOCK_M": cut.block_m, "BLOCK_C": cut.block_c, "ACC": acc}


def accumulator(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    """Returns the type in which values of a storage type are summed, as torch's and as Triton's type."""
    return (torch.float64, tl.float64) if dtype == torch.float64 else (torch.float32, tl.float32)


def dense(x: Tensor) -> Tensor:
    """Returns a map in channels-last memory, copied if it is in another."""
    return x.contiguous(memory_format=torch.channels_last)


def _forward_outputs(x: Tensor, norm: BatchNorm, save: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide, _ = accumulator(x.dtype)
    moments = x.shape[1] if norm.running_mean is None else 0
    y = torch.empty_like(x, memory_format=torch.channels_last)
    byte = torch.empty_like(y, dtype=torch.uint8) if save == "byte" else x.new_empty(0, dtype=torch.uint8)
    return y, x.new_empty(moments, dtype=wide), x.new_empty(moments, dtype=wide), byte


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, given_mean, given_var, *options, residual, save, persistent = inputs
    y, mean, var, byte = output
    moments = (mean, var) if given_mean is None else (given_mean, given_var)
    ctx.has_residual, ctx.options = residual is not None, (*options, save, persistent)
    ctx.save_for_backward({"input": x, "output": y, "byte": byte}[save], weight, bias, *moments)


def _gradients(ctx: Any, dy: Tensor) -> Gradients:
    _, weight, bias, *_ = ctx.saved_tensors
    dx, dweight, dbias = torch.ops.wallclock.batch_norm_act_backward(dy, *ctx.saved_tensors, *ctx.options)
    return {
        "x": dx,
        "weight": None if weight is None else dweight.to(weight.dtype),
        "bias": None if bias is None else dbias.to(bias.dtype),
        "residual": dy if ctx.has_residual else None,
    }


@operator("batch_norm_act", outputs=_forward_outputs, keep=_keep, gradients=_gradients)
def _forward(
    x: Tensor, norm: BatchNorm, residual: Tensor | None, save: str, persistent: bool | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns y, the batch's mean and biased variance (empty if a mean is given), and the byte map.

    Given moments are the running ones in evaluation. In training they are those of x, known from the convolution that
    made x, or None.
    """
    y, mean, var, byte = _forward_outputs(x, norm, save)
    if x.numel() == 0:
        mean.zero_()
        var.zero_()
        return y, mean, var, byte
    weight, bias, given_mean, given_var, _, _, eps, act, negative_slope = norm
    x, residual = dense(x), None if residual is None else dense(residual)
    m, c = matrix(x)
    cut = _plan_for(x, persistent)
    columns, partial, arrived, tile = workspace(x, cut)
    options = {"AFFINE": weight is not None, "ACT": act, "RESIDUAL": residual is not None, "SAVE": save}
    if given_mean is None and cut.persistent:
        jit.persistent_forward_kernel[(columns, cut.splits)](
            x, y, byte, residual, partial[0], partial[1], mean, var, weight, bias, arrived,
            m, c, cut.splits, cut.split_rows, eps, negative_slope,
            **options, **tile, num_warps=8, **cut.merge_options(),
        )  # fmt: skip
        return y, mean, var, byte
    if given_mean is None:
        jit.stats_kernel[(columns, cut.splits)](x, partial[0], partial[1], m, c, cut.split_rows, **tile)
        grid, blocks = merge_grid(c, cut)
        jit.merge_stats_kernel[grid](
            partial[0], partial[1], mean, var, m, c, cut.splits, cut.split_rows, **blocks, ACC=tile["ACC"]
        )
    used = (mean, var) if given_mean is None else (given_mean, given_var)
    tile["BLOCK_M"] = TILE // cut.block_c
    jit.apply_kernel[(triton.cdiv(m, tile["BLOCK_M"]), columns)](
        x, y, byte, residual, *used, weight, bias, m, c, eps, negative_slope, **options, **tile
    )
    return y, mean, var, byte


def merge_grid(c: int, cut: Plan) -> tuple[tuple[int], dict[str, int]]:
    """Returns grid and block sizes of a merge, in which each program takes all splits of a few channels."""
    block_s = triton.next_power_of_2(cut.splits)
    block_c = max(1, min(triton.next_power_of_2(c), TILE // block_s))
    return (triton.cdiv(c, block_c),), {"BLOCK_S": block_s, "BLOCK_C": block_c}


def _backward_outputs(dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide, _ = accumulator(dy.dtype)
    dx = torch.empty_like(dy, memory_format=torch.channels_last)
    return dx, dy.new_empty(dy.shape[1], dtype=wide), dy.new_empty(dy.shape[1], dtype=wide)


@operator("batch_norm_act_backward", outputs=_backward_outputs)
def _backward(
    dy: Tensor, saved: Tensor, norm: BatchNorm, save: str, persistent: bool | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of x, gamma and beta; the norm's mean and variance are those that forward used."""
    weight, bias, mean, var, training, _, eps, act, negative_slope = norm
    dx, dweight, dbias = _backward_outputs(dy)
    if dy.numel() == 0:
        return dx, dweight.zero_(), dbias.zero_()
    dy, saved = dense(dy), dense(saved)
    m, c = matrix(dy)
    cut = _plan_for(dy, persistent)
    columns, partial, arrived, tile = workspace(dy, cut)
    options = {"AFFINE": weight is not None, "ACT": act, "SAVE": save, **tile}
    if cut.persistent:
        jit.persistent_backward_kernel[(columns, cut.splits)](
            saved, dy, dx, mean, var, weight, bias, partial[0], partial[1], dbias, dweight, arrived,
            m, c, cut.splits, cut.split_rows, eps, negative_slope,
            **options, TRAINING=training, num_warps=16, **cut.merge_options(),
        )  # fmt: skip
        return dx, dweight, dbias
    jit.backward_sums_kernel[(columns, cut.splits)](
        saved, dy, mean, var, weight, bias, partial[0], partial[1], m, c, cut.split_rows, eps, negative_slope, **options
    )
    grid, blocks = merge_grid(c, cut)
    jit.merge_sums_kernel[grid](partial[0], partial[1], dbias, dweight, c, cut.splits, **blocks, ACC=tile["ACC"])
    jit.backward_apply_kernel[(triton.cdiv(m, cut.block_m), columns)](
        saved, dy, dx, mean, var, weight, bias, dbias, dweight, m, c, eps, negative_slope, **options, TRAINING=training
    )
    return dx, dweight, dbias


@operator("update_running_stats_", mutates=("running_mean", "running_var"))
def _update_running_stats(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, m: int, momentum: float
) -> None:
    """Moves the running statistics towards the batch's; the running variance is unbiased."""
    c = len(mean)
    jit.update_running_kernel[(triton.cdiv(c, 1024),)](
        running_mean, running_var, mean, var, m, c, momentum, BLOCK_C=1024
    )


def move_running(norm: BatchNorm, mean: Tensor, var: Tensor, x: Tensor) -> None:
    """Moves a norm's running statistics, if it has any, towards mean and biased variance [C] of the map x."""
    m, _ = matrix(x)
    if norm.running_mean is not None and m:
        torch.ops.wallclock.update_running_stats_(norm.running_mean, norm.running_var, mean, var, m, norm.momentum)


def batch_norm_act(
    x: Tensor, norm: BatchNorm, *, residual: Tensor | None = None, save: Save = "input", persistent: bool | None = None
) -> Tensor:
    """Returns `act(batch_norm(x)) + residual`, computed in one operation, with its gradients.

    Args:
        x: map [N, C, H, W], floating; copied if it is not in channels-last memory.
        norm: the norm and its activation.
        residual: map [N, C, H, W] of x's dtype, added after the activation; or None.
        save: tensors that backward reads. "input" keeps x. "output" keeps y alone, which the next convolution keeps
            anyway, and inverts it: for `act` none or leaky_relu, without a residual; gamma then counts as at least 0.1.
            "byte" keeps one byte per element: the normalised input in small steps, and exactly on which side of the
            kink it lies. Its error is 1 to 3% of gamma's gradient, and 0.1% of x's (1% with a smooth activation).
        persistent: False forbids the form that reads its input once; None chooses the form by size.

    Returns:
        [N, C, H, W] of x's dtype, in channels-last memory.

    Raises:
        ValueError: if shapes or dtypes do not fit, or there is only one value for each channel in training.

    Numerics: float32 throughout (float64 for float64), per-split mean and sum of squared deviations merged in fixed
    order, no atomics on values: the same input gives the same bits.
    Cost: passes over the map: forward 3 (2 persistent) and 1 for a residual, backward 5 (3 persistent).
    Source: Ioffe and Szegedy, https://arxiv.org/abs/1502.03167; Chan et al. (1983) for the merge; Rota Bulo et al.,
    https://arxiv.org/abs/1712.02616 for `save="output"`.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"batch_norm_act needs a floating [N, C, H, W], got {x.dtype} {tuple(x.shape)}")
    check_norm(tuple(x.shape), norm)
    check_residual(residual, x.dtype, tuple(x.shape))
    if save not in get_args(Save):
        raise ValueError(f"save is '{save}'; expected input, output or byte")
    act = norm.act
    invertible = act == "none" or (act == "leaky_relu" and norm.negative_slope > 0)
    if save == "output" and (residual is not None or not invertible):
        raise ValueError(f"save='output' cannot invert {act}{' + residual' * (residual is not None)}; use save='byte'")
    given = norm._replace(running_mean=None, running_var=None) if norm.training else norm
    y, mean, var, _ = torch.ops.wallclock.batch_norm_act(x, *given, residual, save, persistent)
    if norm.training:
        move_running(norm, mean, var, x)
    return y


def check_norm(shape: tuple[int, ...], norm: BatchNorm) -> None:
    """Checks a norm of a map of the shape [N, C, H, W].

    Raises:
        ValueError: if a vector is not [C] in dense memory, one of a pair is missing, a name is unknown, or there is
            only one value for each channel in training.
    """
    check_vectors(shape[1], weight=norm.weight, bias=norm.bias)
    check_vectors(shape[1], running_mean=norm.running_mean, running_var=norm.running_var)
    if not norm.training and norm.running_mean is None:
        raise ValueError("evaluation needs running statistics; pass training=True to normalise by the batch's")
    if not isinstance(norm.momentum, float | int):
        raise ValueError(f"momentum is {norm.momentum}; for a cumulative average pass 1 / (batches seen so far + 1)")
    check_act(norm.act, ACTS)
    if norm.training and shape[0] * shape[2] * shape[3] == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {shape}")
