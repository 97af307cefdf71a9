"""The residual sum in the branch's own memory, with the right gradients."""

from typing import Any, Literal

import torch

Act = Literal["none", "relu", "leaky_relu"]
BLOCK = 2048


def residual_ref(
    branch: torch.Tensor, x: torch.Tensor, *, alpha: float = 1.0, act: Act = "none", negative_slope: float = 0.01
) -> torch.Tensor:
    """Defines the operation: `x + alpha * act(branch)`, in memory of its own.

    Args:
        branch: floating, any shape.
        x: the same shape and dtype.
        alpha: factor on the branch.
        act: of the branch: "none", "relu" or "leaky_relu".
        negative_slope: of leaky_relu.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    slope = {"none": 1.0, "relu": 0.0, "leaky_relu": negative_slope}[act]
    z = branch.to(wide)
    return (x.to(wide) + alpha * torch.where(z > 0, z, z * slope)).to(x.dtype)


def residual_(
    branch: torch.Tensor, x: torch.Tensor, *, alpha: float = 1.0, act: Act = "none", negative_slope: float = 0.01
) -> torch.Tensor:
    """Overwrites `branch` with `x + alpha * act(branch)`, and keeps one bit an element for backward, or nothing.

    The lesson wrote `x.add_(branch)`: autograd refuses to train that, because the branch's first convolution has saved
    `x`. The branch's last output is saved by nobody if its norm keeps its input and its activation happens here; where
    somebody did save it, autograd says so in backward.

    Args:
        branch: floating, any shape, dense in memory (contiguous or channels-last); overwritten and returned.
        x: the same shape and dtype; copied if it does not lie in memory as the branch does.
        alpha: factor on the branch.
        act: of the branch: "none", "relu" or "leaky_relu".
        negative_slope: of leaky_relu.

    Raises:
        ValueError: if the two do not fit, or the branch is not dense.

    Numerics: float32, rounded once.
    Cost: reads two maps, writes one and a 16th (bfloat16); eager writes a new one, and keeps one more for leaky_relu.
    """
    if branch.shape != x.shape or branch.dtype != x.dtype:
        raise ValueError(
            f"x is {x.dtype} {tuple(x.shape)}; expected {branch.dtype} {tuple(branch.shape)} as the branch"
        )
    if act not in ("none", "relu", "leaky_relu"):
        raise ValueError(f"act is '{act}'; expected none, relu or leaky_relu")
    slope = {"none": 1.0, "relu": 0.0, "leaky_relu": negative_slope}[act]
    x = x.contiguous(memory_format=_memory_format(branch))
    if (
        torch.compiler.is_compiling()
    ):  # the compiler writes in place by itself; Dynamo errs on one that overwrites an input
        return torch.ops.wallclock.residual(branch, x, alpha, slope)[0]
    return _Residual.apply(branch, x, alpha, slope)


def _memory_format(branch: torch.Tensor) -> torch.memory_format:
    if branch.is_contiguous():
        return torch.contiguous_format
    if branch.ndim == 4 and branch.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    raise ValueError("branch is not dense in memory; call .contiguous() where it is made")


def _launch(branch: torch.Tensor, x: torch.Tensor, out: torch.Tensor, alpha: float, slope: float) -> torch.Tensor:
    """Writes the sum to `out`; returns the bits of the branch's side of zero in the order of its memory, if needed."""
    from wallclock.kernels.jit.residual import residual_kernel

    bits = _bits(branch, slope)
    if branch.numel():
        programs = -(-branch.numel() // BLOCK)
        residual_kernel[(programs,)](
            branch, x, out, bits, branch.numel(), alpha, slope, ACT=slope != 1.0, BLOCK=BLOCK, ACC=_accumulator(branch)
        )
    return bits


@torch.library.custom_op("wallclock::residual_", mutates_args=("branch",))
def _in_place(branch: torch.Tensor, x: torch.Tensor, alpha: float, slope: float) -> torch.Tensor:
    return _launch(branch, x, branch, alpha, slope)


@_in_place.register_fake
def _(branch: torch.Tensor, x: torch.Tensor, alpha: float, slope: float) -> torch.Tensor:
    return _bits(branch, slope)


@torch.library.custom_op("wallclock::residual", mutates_args=())
def _out_of_place(
    branch: torch.Tensor, x: torch.Tensor, alpha: float, slope: float
) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.empty_like(branch)
    return y, _launch(branch, x, y, alpha, slope)


@_out_of_place.register_fake
def _(branch: torch.Tensor, x: torch.Tensor, alpha: float, slope: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(branch), _bits(branch, slope)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    branch, _, alpha, slope = inputs
    _keep(ctx, output[1], branch, alpha, slope)
    ctx.mark_non_differentiable(output[1])


def _keep(ctx: Any, bits: torch.Tensor, branch: torch.Tensor, alpha: float, slope: float) -> None:
    ctx.save_for_backward(bits)
    ctx.alpha, ctx.slope, ctx.memory_format = alpha, slope, _memory_format(branch)


def _gradients(ctx: Any, dy: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
    (bits,) = ctx.saved_tensors
    if ctx.slope == 1.0:
        return dy if ctx.alpha == 1.0 else ctx.alpha * dy, dy, None, None
    dense = dy.contiguous(memory_format=ctx.memory_format)  # as the bits, in the order of the branch's memory
    return torch.ops.wallclock.residual_backward(dense, bits, ctx.alpha, ctx.slope), dy, None, None


torch.library.register_autograd("wallclock::residual", _gradients, setup_context=_setup_context)


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, branch: torch.Tensor, x: torch.Tensor, alpha: float, slope: float) -> torch.Tensor:
        _keep(ctx, torch.ops.wallclock.residual_(branch, x, alpha, slope), branch, alpha, slope)
        ctx.mark_dirty(branch)
        return branch

    backward = staticmethod(_gradients)


def _bits(branch: torch.Tensor, slope: float) -> torch.Tensor:
    return branch.new_empty(0 if slope == 1.0 else -(-branch.numel() // 8), dtype=torch.uint8)


def _accumulator(x: torch.Tensor) -> Any:
    import triton.language as tl

    return tl.float64 if x.dtype == torch.float64 else tl.float32


@torch.library.custom_op("wallclock::residual_backward", mutates_args=())
def _backward(dy: torch.Tensor, bits: torch.Tensor, alpha: float, slope: float) -> torch.Tensor:
    """Returns the gradient of the branch; dy lies in memory as the branch did."""
    from wallclock.kernels.jit.residual import residual_backward_kernel

    dbranch = torch.empty_like(dy)
    if dy.numel():
        programs = -(-dy.numel() // BLOCK)
        residual_backward_kernel[(programs,)](
            dy, bits, dbranch, dy.numel(), alpha, slope, BLOCK=BLOCK, ACC=_accumulator(dy)
        )
    return dbranch


@_backward.register_fake
def _(dy: torch.Tensor, bits: torch.Tensor, alpha: float, slope: float) -> torch.Tensor:
    return torch.empty_like(dy)
