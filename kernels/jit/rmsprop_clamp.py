"""Triton code of `kernels.rmsprop_clamp`: a program takes one row of a table of `kernels.multi_tensor`."""

import triton
import triton.language as tl

from wallclock.kernels.jit.multi_tensor import address


@triton.jit
def _step(p_ptr, g_ptr, v_ptr, place, mask, lr, ALPHA: tl.constexpr, EPS: tl.constexpr, CLAMP: tl.constexpr):
    p, g, v = tl.load(p_ptr + place, mask), tl.load(g_ptr + place, mask), tl.load(v_ptr + place, mask)
    # Rounded as torch's own kernels round: the product by alpha, then fused multiply-adds; exact root and quotient.
    v = tl.fma((1.0 - ALPHA) * g, g, v * ALPHA)
    p = tl.fma(-lr, tl.div_rn(g, tl.sqrt_rn(v) + EPS), p)
    if CLAMP is not None:  # comparisons leave NaN as it is
        p = tl.where(p > CLAMP, CLAMP, tl.where(p < -CLAMP, -CLAMP, p))
    tl.store(v_ptr + place, v, mask)
    tl.store(p_ptr + place, p, mask)


@triton.jit
def rmsprop_clamp_kernel(
    table_ptr, lr_ptr, lr, ALPHA: tl.constexpr, EPS: tl.constexpr, CLAMP: tl.constexpr,
    LR_TENSOR: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Updates and clamps a chunk; a full chunk needs no mask, which would make its accesses narrow."""
    row = tl.program_id(0)
    p_ptr = address(table_ptr, row, 0, 8, ALIGNED)
    g_ptr = address(table_ptr, row, 1, 8, ALIGNED)
    v_ptr = address(table_ptr, row, 2, 8, ALIGNED)
    count = tl.load(table_ptr + row.to(tl.int64) * 8 + 3)
    if LR_TENSOR:
        lr = tl.load(lr_ptr).to(tl.float32)
    place = tl.arange(0, BLOCK)
    if count == BLOCK:
        _step(p_ptr, g_ptr, v_ptr, place, None, lr, ALPHA, EPS, CLAMP)
    else:
        _step(p_ptr, g_ptr, v_ptr, place, place < count, lr, ALPHA, EPS, CLAMP)
