"""`residual` at the shapes of the networks."""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wallclock.kernels.cases.batch_norm_act import DARKNET_SUMS
from wallclock.kernels.cases.inputs import SLOPE, by_direction, compiled_variant, in_both_layouts, normal
from wallclock.kernels.residual import residual_, residual_ref
from wallclock.kernels.spec import Case, Direction, Inputs, KernelSpec

RESIDUAL_CASES = (
    *(
        Case(network="darknet", shape=(256, c, edge, edge), options={"act": "leaky_relu", "alpha": 1.0})
        for c, edge in DARKNET_SUMS
    ),
    *(
        Case(network="wrn22", shape=(512, c, edge, edge), options={"act": "none", "alpha": 0.2})
        for c, edge in [(96, 32), (192, 16), (384, 8)]
    ),
    Case(network="cyclegan", shape=(1, 256, 64, 64), options={"act": "none", "alpha": 1.0}),
)


def _residual_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    return {"branch": normal(case.shape, dtype, device, 0), "x": normal(case.shape, dtype, device, 1)}


def _residual_eager(branch: Tensor, x: Tensor, *, alpha: float, act: str) -> Tensor:
    y = branch if act == "none" else F.leaky_relu(branch, SLOPE)
    return torch.add(x, y, alpha=alpha)


def _residual_triton(branch: Tensor, x: Tensor, *, alpha: float, act: Any) -> Tensor:
    """Calls the kernel out of place, like compiled code."""
    slope = {"none": 1.0, "leaky_relu": SLOPE}[act]
    return torch.ops.wallclock.residual(branch, x, alpha, slope)[0]


class _AsIfMade(torch.autograd.Function):
    """Returns a leaf's memory as an operation's result, because autograd forbids overwriting a leaf."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        return leaf.data

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return dy


def _residual_in_place(branch: Tensor, x: Tensor, *, alpha: float, act: Any) -> Tensor:
    """Calls the kernel in place, like the networks; a repeated call adds to the last sum, which takes as long."""
    return residual_(_AsIfMade.apply(branch), x, alpha=alpha, act=act, negative_slope=SLOPE)


def _residual_bytes(case: Case, variant: str, direction: Direction, element_bytes: int) -> int:
    act = case.options["act"] != "none"
    if variant.startswith("triton"):
        forward, backward = 3 * element_bytes + act / 8, act * (2 * element_bytes + 1 / 8)
    elif variant == "compile":
        forward, backward = 3 * element_bytes, act * 3 * element_bytes
    else:
        forward, backward = (3 + 2 * act) * element_bytes, act * 3 * element_bytes
    if case.options["alpha"] != 1.0 and not act:
        backward += 2 * element_bytes
    return int(case.elements * by_direction(direction, forward, backward))


RESIDUAL = KernelSpec(
    name="residual",
    reference=functools.partial(residual_ref, negative_slope=SLOPE),
    variants={
        **in_both_layouts(_residual_eager),
        "compile": compiled_variant(_residual_eager),
        "triton": _residual_triton,
        "triton_inplace": _residual_in_place,
    },
    cases=RESIDUAL_CASES,
    main_cases=RESIDUAL_CASES[:1],
    inputs=_residual_inputs,
    differentiated=("branch", "x"),
    in_place={"triton_inplace": ("branch",)},
    bytes_moved=_residual_bytes,
    operations=lambda case, direction: case.elements * by_direction(direction, 3, 2),
)
