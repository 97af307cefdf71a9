"""Convolutions as matrix products over channels-last maps, which can take a norm of the input or output statistics.

This module launches `kernels.jit.conv`; the operations built on it are `conv_bn_act` and `upsample_conv`.

Shape legend: N images, H, W input map, C input channels, P, Q output map, K output channels, R, S filter. Maps are NCHW
tensors in channels-last memory, filters [K, C, R, S] in channels-last memory.
"""

import os
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from wallclock.kernels.batch_norm_act import accumulator
from wallclock.kernels.jit import conv as jit

PIXELS = 64  # pixels (of 16 bits) that the kernel of a filter's gradient sums at a time
PROGRAMS = 264  # programs of a filter's gradient: two on each multiprocessor of the largest GPUs; fixed


class Norm(NamedTuple):
    """A norm and an activation that a product applies to a map while reading it.

    Attributes:
        table: norm's table [5, C], float32 (float64 for a float64 map): scale, shift, mean, reciprocal deviation,
            biased variance; None for neither norm nor activation.
        weight: gamma [C] or None; it is in the table already, and an argument of operators for its gradient alone.
        bias: beta [C] or None, likewise.
        act, negative_slope: as in `kernels.batch_norm_act.BatchNorm`.
    """

    table: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    act: str = "none"
    negative_slope: float = 0.0


NO_NORM = Norm()


class Tiles(NamedTuple):
    """The tiles of a product as launch options: BLOCK_M rows by BLOCK_N columns, BLOCK_K of the inner dimension."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int


def tiles(rows: int, columns: int, inner: int, element_bytes: int) -> Tiles:
    """Returns the tiles of a product [rows, columns], with factors of `element_bytes` bytes an element.

    `inner` is the number of channels summed over at one place of the filter.
    """
    block_n = _block(columns, 128)
    block_m = 128 if triton.cdiv(rows, 128) * triton.cdiv(columns, block_n) >= PROGRAMS // 2 else 64
    if block_m == 64:
        block_n = min(block_n, 64)
    block_k = _block(inner, 64 if element_bytes <= 2 else 32)
    # Eight warps where a thread of four would run out of registers: large tiles, and the addresses of few channels.
    num_warps = 8 if block_m * block_n >= 128 * 128 or block_k == 16 else 4
    return Tiles(block_m, block_n, block_k, num_warps, 3)


def _block(size: int, most: int) -> int:
    return min(max(triton.next_power_of_2(size), 16), most)


def new_map(like: Tensor, n: int, channels: int, height: int, width: int) -> Tensor:
    """Returns an uninitialised map in channels-last memory."""
    return torch.empty(
        (n, channels, height, width), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def output_size(size: int, filter_size: int, stride: int, padding: int) -> int:
    """Returns an edge length of a convolution's output."""
    return (size + 2 * padding - filter_size) // stride + 1


def convolution_output(x: Tensor, filters: Tensor, stride: int, padding: int) -> Tensor:
    """Returns an uninitialised map [N, K, P, Q] for the convolution of x [N, C, H, W] by filters [K, C, R, S]."""
    p, q = (output_size(x.shape[i], filters.shape[i], stride, padding) for i in (2, 3))
    return new_map(x, len(x), len(filters), p, q)


def _precision(dtype: torch.dtype) -> str:
    """Returns how factors are multiplied: float32 as cuDNN does, in TensorFloat-32 if allowed, or in three products."""
    if dtype != torch.float32:
        return "widened" if dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1" else "ieee"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "tf32x3"


def _norm_options(norm: Norm) -> dict[str, object]:
    return {"ACT": norm.act, "slope": norm.negative_slope}


def conv(
    x: Tensor,
    filters: Tensor,
    *,
    stride: int,
    padding: int,
    norm: Norm = NO_NORM,
    stats: bool = False,
    after: Norm = NO_NORM,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Returns a convolution, `act(norm(conv(x))) + residual` if `after` is given, or statistics of it if asked for.

    Args:
        x: map [N, C, H, W], dense.
        filters: filters [K, C, R, S] of x's dtype, dense.
        stride: stride in both directions.
        padding: zeros around the normalised x, in pixels.
        norm: norm and activation applied to x while it is read; not together with `after`.
        stats: whether statistics are wanted; not together with `after`.
        after: norm and activation applied to the result before it is written.
        residual: map [N, K, P, Q] of x's dtype, dense, added after them; or None.

    Returns:
        Output y [N, K, P, Q]; mean and sum of squared deviations of each tile of pixels, [2, tiles, K], with 0 tiles
        unless `stats`; and a tile's number of pixels, of which the last tile may have fewer.
    """
    n, c, h, w = x.shape
    k, _, r, s = filters.shape
    y = convolution_output(x, filters, stride, padding)
    p, q = y.shape[2:]
    wide, acc = accumulator(x.dtype)
    rows = n * p * q
    cut = tiles(rows, k, c, x.element_size())
    tiles_m = triton.cdiv(rows, cut.BLOCK_M)
    partial = torch.empty((2, tiles_m if stats else 0, k), dtype=wide, device=x.device)
    scale, shift = (None, None) if after.table is None else after.table[:2]
    jit.conv_kernel[(tiles_m * triton.cdiv(k, cut.BLOCK_N),)](
        x, filters, y, norm.table, *((partial[0], partial[1]) if stats else (None, None)),
        scale, shift, residual, None, rows, h, w, p, q, p, q,
        A_C=c, OUT_C=k, R=r, S=s, STRIDE=stride, PAD=padding, TRANSPOSED=False, PROLOGUE=norm.table is not None,
        EPILOGUE="stats" if stats else "affine" if scale is not None else "",
        **_norm_options(norm if scale is None else after), **cut._asdict(), ACC=acc, PRECISION=_precision(x.dtype),
    )  # fmt: skip
    return y, partial, cut.BLOCK_M


def conv_transposed(
    dy: Tensor,
    filters: Tensor,
    *,
    height: int,
    width: int,
    stride: int,
    padding: int,
    of: tuple[Tensor, Norm] | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the gradient of a convolution's input: a transposed convolution.

    The gradient of the output is dy [N, K, P, Q], dense; filters, in dy's dtype, stride and padding are those of
    `conv`, and height and width those of its input.

    Where the convolution read its input through a norm, `of` is that map [N, C, H, W] and the norm: the gradient is
    then that of the norm's output before the activation. Elsewhere a vector `shift` [C] may be added to the result.

    Returns:
        The gradient [N, C, H, W]; and with `of` each tile's sums over pixels of the gradient, and of the gradient times
        the normalised map, [2, tiles, C].
    """
    n, k, p, q = dy.shape
    _, c, r, s = filters.shape
    out = new_map(dy, n, c, height, width)
    wide, acc = accumulator(dy.dtype)
    grid_height, grid_width = triton.cdiv(height, stride), triton.cdiv(width, stride)
    rows = n * grid_height * grid_width
    cut = tiles(rows * stride**2, c, k, dy.element_size())
    tiles_m = triton.cdiv(rows, cut.BLOCK_M)
    partial = torch.empty((2, tiles_m * stride**2 if of else 0, c), dtype=wide, device=dy.device)
    sums = (partial[0], partial[1]) if of else (None, None)
    read, norm = of or (None, NO_NORM)
    epilogue = "sums" if of else "affine" if shift is not None else ""
    jit.conv_kernel[(tiles_m * triton.cdiv(c, cut.BLOCK_N), stride**2)](
        dy, filters, out, None, *sums, None, shift, read, norm.table,
        rows, p, q, height, width, grid_height, grid_width,
        A_C=k, OUT_C=c, R=r, S=s, STRIDE=stride, PAD=padding, TRANSPOSED=True, PROLOGUE=False, EPILOGUE=epilogue,
        **_norm_options(norm), **cut._asdict(), ACC=acc, PRECISION=_precision(dy.dtype),
    )  # fmt: skip
    return out, partial


def filter_gradient(
    dy: Tensor,
    x: Tensor,
    *,
    filter_size: tuple[int, int],
    stride: int,
    padding: int,
    norm: Norm = NO_NORM,
    dtype: torch.dtype,
) -> Tensor:
    """Returns the gradient of a convolution's filters, [K, C, R, S] of the given dtype.

    The gradient of the output is dy [N, K, P, Q] of x's dtype, dense, and `filter_size` is R and S, in pixels; the
    other arguments are those of `conv`.
    """
    n, k, p, q = dy.shape
    _, c, h, w = x.shape
    r, s = filter_size
    rows = n * p * q
    wide, acc = accumulator(x.dtype)
    block_m, block_n = _block(k, 128), _block(c, 128 if k <= 64 else 64)
    programs = triton.cdiv(k, block_m) * triton.cdiv(c, block_n) * r * s
    block_k = max(16, PIXELS * 2 // max(2, x.element_size()))
    split_rows = triton.cdiv(triton.cdiv(rows, max(1, PROGRAMS // programs)), block_k) * block_k
    splits = triton.cdiv(rows, split_rows)
    out = torch.empty((k, c, r, s), dtype=dtype, device=x.device, memory_format=torch.channels_last)
    partial = out if splits == 1 else torch.empty((splits, out.numel()), dtype=wide, device=x.device)
    jit.filter_gradient_kernel[(programs, splits)](
        dy, x, partial, norm.table, rows, h, w, p, q, split_rows,
        C=c, K=k, R=r, S=s, STRIDE=stride, PAD=padding, PROLOGUE=norm.table is not None, **_norm_options(norm),
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, ACC=acc, PRECISION=_precision(x.dtype),
        num_warps=8 if block_m * block_n >= 128 * 64 else 4, num_stages=3,
    )  # fmt: skip
    if splits > 1:
        jit.sum_splits_kernel[(triton.cdiv(out.numel(), 1024),)](partial, out, out.numel(), splits, BLOCK=1024, ACC=acc)
    return out
