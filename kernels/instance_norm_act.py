"""Instance norm, activation and an optional residual in one operation, written into a reflection-padded map.

Shape legend: N batch, C channels, H, W height and width; an image of channels-last memory is a matrix [M, C] with
M = H*W; S row splits, each reduced by one program.
"""

from typing import Any, Literal, NamedTuple, get_args

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from wallclock.kernels import batch_norm_act as base
from wallclock.kernels.checks import check_act, check_residual, check_vectors
from wallclock.kernels.instance_norm import instance_norm
from wallclock.kernels.jit import batch_norm_act as of_map
from wallclock.kernels.jit import instance_norm_act as jit
from wallclock.kernels.operator import Gradients, operator

Act = Literal["none", "relu", "leaky_relu"]
ACTS: tuple[Act, ...] = get_args(Act)
MOST_IMAGES = 65_535  # the limit of a grid's third axis


class InstanceNorm(NamedTuple):
    """An instance norm, the activation after it, and the padding for the next convolution.

    Attributes:
        weight, bias, negative_slope: as in `kernels.batch_norm_act.BatchNorm`.
        eps: number added to the biased variance of each image's channel.
        act: name of the activation in `ACTS`.
        pad: padding of the output by reflection on each side in pixels, less than its edges.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    act: Act = "none"
    negative_slope: float = 0.01
    pad: int = 0


def instance_norm_act_ref(
    x: Tensor, norm: InstanceNorm, *, residual: Tensor | None = None, residual_pad: int = 0
) -> Tensor:
    """Defines `instance_norm_act`: `reflect_pad(act(instance_norm(x)) + residual, pad)`, in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    vectors = (None if t is None else t.to(wide) for t in norm[:2])
    y = base.activate_ref(instance_norm(x.to(wide), *vectors, eps=norm.eps), norm.act, norm.negative_slope)
    if residual is not None:
        y = y + interior(residual, residual_pad).to(wide)
    return (F.pad(y, (norm.pad,) * 4, mode="reflect") if norm.pad else y).to(x.dtype)


def interior(padded: Tensor, pad: int) -> Tensor:
    """Returns a view of a map [N, C, H + 2*pad, W + 2*pad] without its padding."""
    return padded[:, :, pad:-pad, pad:-pad] if pad else padded


def plan(n: int, m: int, c: int, *, resident_programs: int | None) -> base.Plan:
    """Returns the plan by which each of n images, matrices [m, c], is divided among programs.

    The persistent form takes the smallest tiles that let all programs run at once: with one image of 256x64x64, 128
    programs of 32 KiB (bfloat16: 16), where tiles of 64 KiB would leave half of the GPU idle.

    The numbers are those of `kernels.batch_norm_act.plan`.
    """
    if resident_programs is not None:
        block_c = min(triton.next_power_of_2(c), 64)
        tile = base.TILE
        while tile <= base.PERSISTENT_TILE:
            block_m = tile // block_c
            splits = triton.cdiv(m, block_m)
            if splits == 1 or splits * triton.cdiv(c, block_c) * n <= resident_programs:
                return base.Plan(True, block_m, block_c, splits, block_m)
            tile *= 2
    return base.plan(m, c, resident_programs=None, images=n)


def _plan_for(n: int, c: int, h: int, w: int, device: torch.device, persistent: bool | None) -> base.Plan:
    return plan(n, h * w, c, resident_programs=None if persistent is False else base.resident_programs(device))


def _places(pad: int, h: int, w: int) -> int:
    """Returns the number of positions that a row or column may have in the padded map."""
    if pad == 0:
        return 1
    return 3 if 2 * pad >= min(h, w) - 1 else 2


def _pixels_strided(x: Tensor) -> Tensor:
    """Returns a map whose channels are adjacent in memory, whatever its other strides; copied if they are not."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else base.dense(x)


def _map_strides(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(2), x.stride(3)


def _padded_like(x: Tensor, pad: int) -> Tensor:
    n, c, h, w = x.shape
    shape = (n, c, h + 2 * pad, w + 2 * pad)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _forward_outputs(x: Tensor, norm: InstanceNorm) -> tuple[Tensor, Tensor, Tensor]:
    wide, _ = base.accumulator(x.dtype)
    return _padded_like(x, norm.pad), x.new_empty(x.shape[:2], dtype=wide), x.new_empty(x.shape[:2], dtype=wide)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, *ctx.options, residual, ctx.residual_pad, ctx.persistent = inputs
    _, mean, var = output
    ctx.has_residual = residual is not None
    ctx.save_for_backward(x, mean, var, weight, bias)


def _gradients(ctx: Any, dy: Tensor) -> Gradients:
    *_, weight, bias = ctx.saved_tensors
    wanted = ctx.has_residual and ctx.needs_input_grad[7]
    written = wanted and (ctx.options[-1] > 0 or ctx.residual_pad > 0)  # unpadded on both sides it is dy itself
    dx, dweight, dbias, dresidual = torch.ops.wallclock.instance_norm_act_backward(
        dy, *ctx.saved_tensors, *ctx.options, written, ctx.residual_pad, ctx.persistent
    )
    return {
        "x": dx,
        "weight": None if weight is None else dweight.sum(0).to(weight.dtype),
        "bias": None if bias is None else dbias.sum(0).to(bias.dtype),
        "residual": dresidual if written else dy if wanted else None,
    }


@operator("instance_norm_act", outputs=_forward_outputs, keep=_keep, gradients=_gradients)
def _forward(
    x: Tensor, norm: InstanceNorm, residual: Tensor | None, residual_pad: int, persistent: bool | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y, and the mean and biased variance of each image's channels, [N, C]."""
    weight, bias, eps, act, negative_slope, pad = norm
    y, mean, var = _forward_outputs(x, norm)
    n, c, h, w = x.shape
    if x.numel() == 0:
        return y, mean.zero_(), var.zero_()
    x, m = base.dense(x), h * w
    inner = None if residual is None else interior(_pixels_strided(residual), residual_pad)
    strides = (0, 0, 0) if inner is None else _map_strides(inner)
    cut = _plan_for(n, c, h, w, x.device, persistent)
    columns, partial, arrived, tile = base.workspace(x, cut, n)
    options = {
        "AFFINE": weight is not None, "ACT": act, "RESIDUAL": inner is not None,
        "PAD": pad, "PLACES": _places(pad, h, w), **tile,
    }  # fmt: skip
    if cut.persistent:
        jit.image_forward_kernel[(columns, cut.splits, n)](
            x, y, inner, partial[0], partial[1], mean, var, weight, bias, arrived,
            h, w, c, cut.splits, cut.split_rows, *strides, eps, negative_slope,
            **options, num_warps=_warps(cut), **cut.merge_options(),
        )  # fmt: skip
        return y, mean, var
    of_map.stats_kernel[(columns, cut.splits, n)](x, partial[0], partial[1], m, c, cut.split_rows, **tile, IMAGES=True)
    (programs,), blocks = base.merge_grid(c, cut)
    of_map.merge_stats_kernel[(programs, 1, n)](
        partial[0], partial[1], mean, var, m, c, cut.splits, cut.split_rows, **blocks, ACC=tile["ACC"], IMAGES=True
    )
    jit.image_apply_kernel[(triton.cdiv(m, cut.block_m), columns, n)](
        x, y, inner, mean, var, weight, bias, h, w, c, *strides, eps, negative_slope, **options
    )
    return y, mean, var


def _warps(cut: base.Plan) -> int:
    """Returns the number of warps of a persistent program: at most 32 elements per thread and tensor."""
    return max(4, min(16, cut.block_m * cut.block_c // 1024))


def _backward_outputs(x: Tensor, with_residual: bool, residual_pad: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide, _ = base.accumulator(x.dtype)
    dresidual = _padded_like(x, residual_pad) if with_residual else x.new_empty(0)
    dweight, dbias = (x.new_empty(x.shape[:2], dtype=wide) for _ in range(2))
    return torch.empty_like(x, memory_format=torch.channels_last), dweight, dbias, dresidual


@operator("instance_norm_act_backward", outputs=_backward_outputs)
def _backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    norm: InstanceNorm,
    with_residual: bool,
    residual_pad: int,
    persistent: bool | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of x, of gamma and beta as each image's share [N, C], and of the residual (or empty)."""
    weight, bias, eps, act, negative_slope, pad = norm
    dx, dweight, dbias, dresidual = _backward_outputs(x, with_residual, residual_pad)
    n, c, h, w = x.shape
    if x.numel() == 0:
        return dx, dweight.zero_(), dbias.zero_(), dresidual
    x, dy, m = base.dense(x), _pixels_strided(dy), h * w
    cut = _plan_for(n, c, h, w, x.device, persistent)
    columns, partial, arrived, tile = base.workspace(x, cut, n)
    options = {"AFFINE": weight is not None, "ACT": act, "PAD": pad, "PLACES": _places(pad, h, w), **tile}
    of_residual = {
        "DRESIDUAL": with_residual, "RESIDUAL_PAD": residual_pad, "RESIDUAL_PLACES": _places(residual_pad, h, w)
    }  # fmt: skip
    if cut.persistent:
        jit.image_backward_kernel[(columns, cut.splits, n)](
            x, dy, dx, dresidual, mean, var, weight, bias, partial[0], partial[1], dbias, dweight, arrived,
            h, w, c, cut.splits, cut.split_rows, *_map_strides(dy), eps, negative_slope,
            **options, **of_residual, num_warps=2 * _warps(cut), **cut.merge_options(),
        )  # fmt: skip
        return dx, dweight, dbias, dresidual
    jit.image_backward_sums_kernel[(columns, cut.splits, n)](
        x, dy, mean, var, weight, bias, partial[0], partial[1],
        h, w, c, cut.splits, cut.split_rows, *_map_strides(dy), eps, negative_slope, **options,
    )  # fmt: skip
    (programs,), blocks = base.merge_grid(c, cut)
    of_map.merge_sums_kernel[(programs, 1, n)](
        partial[0], partial[1], dbias, dweight, c, cut.splits, **blocks, ACC=tile["ACC"], IMAGES=True
    )
    jit.image_backward_apply_kernel[(triton.cdiv(m, cut.block_m), columns, n)](
        x, dy, dx, dresidual, mean, var, weight, bias, dbias, dweight,
        h, w, c, *_map_strides(dy), eps, negative_slope, **options, **of_residual,
    )  # fmt: skip
    return dx, dweight, dbias, dresidual


def instance_norm_act(
    x: Tensor,
    norm: InstanceNorm,
    *,
    residual: Tensor | None = None,
    residual_pad: int = 0,
    persistent: bool | None = None,
) -> Tensor:
    """Returns `reflect_pad(act(instance_norm(x)) + residual, pad)`, computed in one operation, with its gradients.

    The output and its reflection are written where the next convolution reads them, and the gradient of the padded map
    is folded while it is read: padding takes no pass of its own. A block's input is already padded when the block adds
    it: given as `residual` with its `residual_pad`, its interior is read in place, and its gradient is written in its
    shape, with zeros around it. A view of an interior works as well, but autograd then writes that gradient twice more.

    Args:
        x: map [N, C, H, W], floating, at most 65,535 images; copied if it is not in channels-last memory.
        norm: the norm, its activation and the output's padding `pad`.
        residual: map [N, C, H + 2*residual_pad, W + 2*residual_pad] of x's dtype, whose interior is added; copied
            unless the stride of its channels is one; or None.
        residual_pad: padding of the residual on each side in pixels.
        persistent: False forbids the form that reads its input once; None chooses the form by size.

    Returns:
        [N, C, H + 2*pad, W + 2*pad] of x's dtype, in channels-last memory.

    Raises:
        ValueError: if shapes, dtypes or paddings do not fit, or there is only one value for each channel of an image.

    Numerics: those of `batch_norm_act`. There are no running statistics: training and evaluation are the same.
    Cost: passes over the map: forward 3 (2 persistent) and 1 for a residual, backward 5 (3 persistent) and 1 for a
    padded residual's gradient; a padded map counts with its padding. Keeps x.
    Source: Ulyanov et al., https://arxiv.org/abs/1607.08022; Chan et al. (1983) for the merge.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"instance_norm_act needs a floating [N, C, H, W], got {x.dtype} {tuple(x.shape)}")
    n, c, h, w = x.shape
    if n > MOST_IMAGES:
        raise ValueError(f"x has {n} images; expected at most {MOST_IMAGES}")
    check_vectors(c, weight=norm.weight, bias=norm.bias)
    if h * w == 1:
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {tuple(x.shape)}")
    check_act(norm.act, ACTS)
    for name, pixels in (("pad", norm.pad), ("residual_pad", residual_pad)):
        if pixels and not 0 < pixels < min(h, w):
            raise ValueError(f"{name} is {pixels}; expected from 0 to below the shorter edge of {h}x{w}")
    if residual is None and residual_pad:
        raise ValueError(f"residual_pad is {residual_pad} without a residual; expected 0")
    check_residual(residual, x.dtype, (n, c, h + 2 * residual_pad, w + 2 * residual_pad))
    return torch.ops.wallclock.instance_norm_act(x, *norm, residual, residual_pad, persistent)[0]
