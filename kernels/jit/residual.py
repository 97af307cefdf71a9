"""Triton code of `kernels.residual`, over tensors as they lie in memory."""

import triton
import triton.language as tl


@triton.jit
def residual_kernel(
    branch_ptr, x_ptr, out_ptr, bits_ptr, n, alpha: tl.constexpr, slope: tl.constexpr,
    ACT: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Writes x + alpha * act(branch) to `out_ptr`, which may be the branch, and a bit for each element above zero."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    branch = tl.load(branch_ptr + place, place < n, 0.0).to(ACC)
    x = tl.load(x_ptr + place, place < n, 0.0).to(ACC)
    if ACT:
        weights = tl.arange(0, 8)[None, :]
        bits = tl.sum(tl.reshape(branch > 0, [BLOCK // 8, 8]).to(tl.int32) << weights, 1)
        at = tl.program_id(0).to(tl.int64) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
        tl.store(bits_ptr + at, bits.to(tl.uint8), at * 8 < n)
        branch = tl.where(branch < 0, branch * slope, branch)
    tl.store(out_ptr + place, (x + alpha * branch).to(out_ptr.dtype.element_ty), place < n)


@triton.jit
def residual_backward_kernel(
    dy_ptr, bits_ptr, dbranch_ptr, n, alpha: tl.constexpr, slope: tl.constexpr,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of the branch before its activation, given the bits."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dy = tl.load(dy_ptr + place, place < n, 0.0).to(ACC)
    bit = (tl.load(bits_ptr + place // 8, place < n, 0).to(tl.int32) >> (place % 8).to(tl.int32)) & 1
    grad = alpha * tl.where(bit == 1, dy, dy * slope)
    tl.store(dbranch_ptr + place, grad.to(dbranch_ptr.dtype.element_ty), place < n)
