"""A residual sum that overwrites the branch, with the right gradients."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from wallclock.kernels.checks import check_act
from wallclock.kernels.operator import Gradients, operator

Act = Literal["none", "relu", "leaky_relu"]
BLOCK = 2048  # elements that a program handles


def residual_ref(
    branch: Tensor, x: Tensor, *, alpha: float = 1.0, act: Act = "none", negative_slope: float = 0.01
) -> Tensor:
    """Defines `residual_`: `x + alpha * act(branch)`, in new memory, computed in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    z = branch.to(wide)
    return (x.to(wide) + alpha * torch.where(z > 0, z, z * _slope(act, negative_slope))).to(x.dtype)


def _slope(act: Act, negative_slope: float) -> float:
    """Returns the activation's slope below zero."""
    return {"none": 1.0, "relu": 0.0, "leaky_relu": negative_slope}[act]


def residual_(
    branch: Tensor, x: Tensor, *, alpha: float = 1.0, act: Act = "none", negative_slope: float = 0.01
) -> Tensor:
    """Overwrites `branch` with `x + alpha * act(branch)`; with `act`, keeps one bit an element for backward.

    `x.add_(branch)` cannot be trained, because the branch's first convolution has saved `x`. Nothing saves the branch's
    last output if its norm keeps its input and its activation happens here; autograd raises in backward where an
    operation did save it.

    Args:
        branch: tensor of any floating type and shape, dense in memory (contiguous or channels-last); overwritten and
            returned.
        x: shortcut of the branch's shape and dtype; copied unless it has the branch's memory order.
        alpha: factor on the branch.
        act: activation of the branch: "none", "relu" or "leaky_relu".
        negative_slope: slope of leaky_relu below zero.

    Raises:
        ValueError: if shape or dtype do not fit, or the branch is not dense.

    Numerics: float32, rounded once.
    Cost: reads two maps, writes one and a 16th (bfloat16); eager writes a new map, and keeps another for leaky_relu.
    """
    if branch.shape != x.shape or branch.dtype != x.dtype:
        raise ValueError(
            f"x is {x.dtype} {tuple(x.shape)}; expected {branch.dtype} {tuple(branch.shape)} as the branch"
        )
    check_act(act, get_args(Act))
    slope = _slope(act, negative_slope)
    x = x.contiguous(memory_format=_memory_format(branch))
    if torch.compiler.is_compiling():  # the compiler reuses memory by itself, and Dynamo mishandles overwritten inputs
        return torch.ops.wallclock.residual(branch, x, alpha, slope)[0]
    return _Residual.apply(branch, x, alpha, slope)


def _memory_format(branch: Tensor) -> torch.memory_format:
    if branch.is_contiguous():
        return torch.contiguous_format
    if branch.ndim == 4 and branch.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    raise ValueError("branch is not dense in memory; call .contiguous() where it is made")


def _launch(branch: Tensor, x: Tensor, out: Tensor, alpha: float, slope: float) -> Tensor:
    """Writes the sum to `out`; returns a bit for each element above zero, in the branch's memory order, or no bits."""
    from wallclock.kernels.batch_norm_act import accumulator
    from wallclock.kernels.jit.residual import residual_kernel

    bits = _bits(branch, slope)
    if branch.numel():
        programs = -(-branch.numel() // BLOCK)
        options = {"ACT": slope != 1.0, "BLOCK": BLOCK, "ACC": accumulator(branch.dtype)[1]}
        residual_kernel[(programs,)](branch, x, out, bits, branch.numel(), alpha, slope, **options)
    return bits


def _bits(branch: Tensor, slope: float) -> Tensor:
    return branch.new_empty(0 if slope == 1.0 else -(-branch.numel() // 8), dtype=torch.uint8)


@operator("residual_", outputs=_bits, mutates=("branch",))
def _in_place(branch: Tensor, x: Tensor, alpha: float, slope: float) -> Tensor:
    return _launch(branch, x, branch, alpha, slope)


def _outputs(branch: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(branch), _bits(branch, slope)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, Tensor]) -> None:
    branch, _, ctx.alpha, ctx.slope = inputs
    ctx.memory_format = _memory_format(branch)
    ctx.save_for_backward(output[1])


def _gradients(ctx: Any, dy: Tensor) -> Gradients:
    if ctx.slope == 1.0:
        return {"branch": dy if ctx.alpha == 1.0 else ctx.alpha * dy, "x": dy}
    dense = dy.contiguous(memory_format=ctx.memory_format)  # the bits are in the order of the branch's memory
    return {"branch": torch.ops.wallclock.residual_backward(dense, *ctx.saved_tensors, ctx.alpha, ctx.slope), "x": dy}


@operator("residual", outputs=_outputs, keep=_keep, gradients=_gradients)
def _out_of_place(branch: Tensor, x: Tensor, alpha: float, slope: float) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(branch)
    return y, _launch(branch, x, y, alpha, slope)


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, branch: Tensor, x: Tensor, alpha: float, slope: float) -> Tensor:
        _keep(ctx, (branch, x, alpha, slope), (branch, torch.ops.wallclock.residual_(branch, x, alpha, slope)))
        ctx.mark_dirty(branch)
        return branch

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        found = _gradients(ctx, dy)
        return found["branch"], found["x"], None, None


@operator("residual_backward", outputs=lambda dy: torch.empty_like(dy))
def _backward(dy: Tensor, bits: Tensor, alpha: float, slope: float) -> Tensor:
    """Returns the gradient of the branch; dy has the branch's memory order."""
    from wallclock.kernels.batch_norm_act import accumulator
    from wallclock.kernels.jit.residual import residual_backward_kernel

    dbranch = torch.empty_like(dy)
    if dy.numel():
        programs = -(-dy.numel() // BLOCK)
        residual_backward_kernel[(programs,)](
            dy, bits, dbranch, dy.numel(), alpha, slope, BLOCK=BLOCK, ACC=accumulator(dy.dtype)[1]
        )
    return dbranch
