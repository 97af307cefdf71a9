"""`instance_norm_act` at the shapes of CycleGAN: its generator at 256x256 pixels, and its discriminator."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wallclock.kernels.cases.inputs import activate, by_direction, compiled_variant, normal, resident_programs
from wallclock.kernels.instance_norm import instance_norm
from wallclock.kernels.instance_norm_act import InstanceNorm, instance_norm_act, instance_norm_act_ref, interior, plan
from wallclock.kernels.spec import Case, Direction, Inputs, KernelSpec

DISCRIMINATOR_SLOPE = 0.2


def _case(c: int, edge: int, act: str, pad: int = 0, residual_pad: int | None = None) -> Case:
    """Returns a case of batch 1, with a residual if its padding is given."""
    flags = {f"pad{pad}"} if pad else set()
    options: dict[str, Any] = {"act": act, "pad": pad}
    if residual_pad is not None:
        flags |= {"residual"}
        options["residual_pad"] = residual_pad
    return Case(network="cyclegan", shape=(1, c, edge, edge), options=options, flags=frozenset(flags))


CASES = (
    _case(64, 256, "relu"),
    _case(128, 128, "relu"),
    _case(256, 64, "relu", 1),  # before each convolution of a block but the first block's first
    _case(256, 64, "none", 1, 1),  # a block's sum with its padded input, padded for the next block
    _case(256, 64, "none", 0, 1),  # the last block's sum, which a transposed convolution reads
    _case(64, 256, "relu", 3),  # before the last convolution, 7x7
    _case(128, 64, "leaky_relu"),
    _case(256, 32, "leaky_relu"),
    _case(512, 31, "leaky_relu"),
)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    residual = None
    if "residual" in case.flags:
        n, c, h, w = case.shape
        grown = 2 * case.options["residual_pad"]
        residual = normal((n, c, h + grown, w + grown), dtype, device, 1)
    return {"x": normal(case.shape, dtype, device, 0), "residual": residual}


def _of_norm(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns a function of a norm as one of its activation and padding."""

    def call(x: Tensor, residual: Tensor | None, *, act: Any, pad: int, residual_pad: int = 0) -> Tensor:
        norm = InstanceNorm(act=act, negative_slope=DISCRIMINATOR_SLOPE, pad=pad)
        return function(x, norm, residual=residual, residual_pad=residual_pad)

    return call


def _eager_nchw(
    x: Tensor, residual: Tensor | None, *, act: str, pad: int, residual_pad: int = 0, in_place: bool = True
) -> Tensor:
    """Computes norm, activation in place, sum and padding like ordinary PyTorch code."""
    y = activate(instance_norm(x), act, DISCRIMINATOR_SLOPE, in_place=in_place)
    if residual is not None:
        y = interior(residual, residual_pad) + y
    return F.pad(y, (pad,) * 4, mode="reflect") if pad else y


def _eager(x: Tensor, residual: Tensor | None, **options: Any) -> Tensor:
    """Computes `_eager_nchw` and copies the result to channels-last memory, which the next convolution needs."""
    return _eager_nchw(x, residual, **options).contiguous(memory_format=torch.channels_last)


def _share(case: Case, pad: int) -> float:
    """Returns the number of elements of the padded map relative to the map without padding."""
    h, w = case.shape[2:]
    return (h + 2 * pad) * (w + 2 * pad) / (h * w)


def _bytes(case: Case, variant: str, direction: Direction, element_bytes: int) -> int:
    """Counts passes over the map, where a padded map counts more by its larger size.

    In eager, each operation reads and writes by itself; the norm reads three times and copies channels-last maps first;
    the padding's backward clears the map that it adds to. The compiler is assumed to fold all of it into two kernels.
    The splits' partial results are left out: in two phases they add 4% (64x256x256) to 8% (128x128x128).
    """
    pad, residual_pad = case.options["pad"], case.options.get("residual_pad", 0)
    residual, act = int("residual" in case.flags), int(case.options["act"] != "none")
    padded = _share(case, pad)
    dresidual = _share(case, residual_pad) if residual and (pad or residual_pad) else 0.0
    if variant.startswith("eager"):
        forward = 3 + 2 * act + 3 * residual + (1 + padded if pad else 0)
        backward = 5 + 3 * act + (1 + 2 * padded if pad else 0)
        if residual_pad:  # two slices: each clears a map and copies into it
            rows = (case.shape[2] + 2 * residual_pad) / case.shape[2]
            backward += (1 + 2 * rows) + (rows + 2 * _share(case, residual_pad))
        if variant == "eager":
            forward += 2 + 2 * padded  # to contiguous memory for the norm, and back for the convolution
            backward += 2 * padded  # the gradient to contiguous memory
    else:
        n, c, height, width = case.shape
        persistent = plan(n, height * width, c, resident_programs=resident_programs()).persistent
        reads = 1 if variant.startswith("triton") and persistent else 2
        forward, backward = reads + residual + padded, reads * (1 + padded) + 1 + dresidual
    return round(case.elements * by_direction(direction, forward, backward) * element_bytes)


INSTANCE_NORM_ACT = KernelSpec(
    name="instance_norm_act",
    reference=_of_norm(instance_norm_act_ref),
    variants={
        "eager_nchw": _eager_nchw,
        "eager": _eager,
        "compile": compiled_variant(functools.partial(_eager, in_place=False)),
        "triton": _of_norm(instance_norm_act),
    },
    cases=CASES,
    main_cases=CASES[1:3],
    inputs=_inputs,
    differentiated=("x", "residual"),
    bytes_moved=_bytes,
    # An element takes statistics, normalising, activation, sum.
    operations=lambda case, direction: case.elements * by_direction(direction, 7, 13),
)
