"""`batch_norm_act` at the shapes of the networks."""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wallclock.kernels.batch_norm_act import BatchNorm, Plan, Save, batch_norm_act, batch_norm_act_ref, plan
from wallclock.kernels.cases.inputs import (
    SLOPE,
    activate,
    by_direction,
    compiled_variant,
    in_both_layouts,
    normal,
    resident_programs,
)
from wallclock.kernels.spec import Case, Direction, Inputs, KernelSpec


def _case(network: str, n: int, c: int, edge: int, act: str, *flags: str, **options: float) -> Case:
    return Case(network=network, shape=(n, c, edge, edge), options={"act": act, **options}, flags=frozenset(flags))


_DARKNET = [(32, 32), (64, 16), (32, 16), (128, 16), (256, 8), (128, 8), (512, 4), (256, 4), (1024, 2), (512, 2)]
DARKNET_SUMS = [(64, 16), (128, 16), (256, 8), (512, 4), (1024, 2)]
_SPRINT = [(64, 15), (256, 7), (256, 3), (64, 11), (256, 5), (256, 2)]
_WRN22 = [(16, 32), (96, 32), (96, 16), (192, 16), (192, 8), (384, 8)]
_DCGAN = [(512, 4), (256, 8), (128, 16), (64, 32)]
NORM_CASES = (
    *(_case("darknet", 256, c, edge, "leaky_relu") for c, edge in _DARKNET),
    *(_case("darknet", 256, c, edge, "leaky_relu", "residual") for c, edge in DARKNET_SUMS),
    *(_case("sprint", 500, c, edge, "gelu") for c, edge in _SPRINT),
    *(_case("wrn22", 512, c, edge, "relu") for c, edge in _WRN22),
    *(_case("dcgan", 64, c, edge, "relu") for c, edge in _DCGAN),
    *(_case("dcgan", 64, c, edge, "leaky_relu", negative_slope=0.2) for c, edge in reversed(_DCGAN)),  # the critic
)
# Cases: one in two phases with a residual, and one that programs keep in registers.
MAIN = ("darknet 256x64x16x16 leaky_relu residual", "darknet 256x512x2x2 leaky_relu")


def _norm_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    channels = (case.shape[1],)
    return {
        "x": normal(case.shape, dtype, device, 0),
        "weight": 1 + 0.1 * normal(channels, torch.float32, device, 1),
        "bias": 0.1 * normal(channels, torch.float32, device, 2),
        "residual": normal(case.shape, dtype, device, 3) if "residual" in case.flags else None,
    }


def _norm(weight: Tensor, bias: Tensor, **options: Any) -> BatchNorm:
    return BatchNorm(weight, bias)._replace(**{"negative_slope": SLOPE} | options)


def _norm_reference(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, **options: Any) -> Tensor:
    return batch_norm_act_ref(x, _norm(weight, bias, **options), residual=residual)


def eager_norm(x: Tensor, norm: BatchNorm, residual: Tensor | None, *, in_place: bool) -> Tensor:
    """Computes norm, activation (in place where PyTorch can, if wanted) and sum like ordinary PyTorch code.

    The compiler gets the form out of place, which it fuses anyway: 6.7 ms on a CPU, against 58 ms in place.
    """
    z = F.batch_norm(x, None, None, norm.weight, norm.bias, True)
    y = activate(z, norm.act, norm.negative_slope, in_place=in_place)
    return y if residual is None else residual + y


def _norm_eager(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, *, in_place: bool = True, **options: Any
) -> Tensor:
    return eager_norm(x, _norm(weight, bias, **options), residual, in_place=in_place)


def _norm_triton(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, *, save: Save = "input", **options: Any
) -> Tensor:
    return batch_norm_act(x, _norm(weight, bias, **options), residual=residual, save=save)


def _norm_running(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, **options: Any) -> Tensor:
    """Calls the kernels with running statistics, which training moves and evaluation reads."""
    statistics = {"running_mean": torch.zeros_like(weight), "running_var": torch.ones_like(weight)}
    return batch_norm_act(x, _norm(weight, bias, **statistics, **options), residual=residual)


def _invertible(case: Case) -> bool:
    """Returns whether the output can be inverted; otherwise `batch_norm_save=output` keeps a byte an element."""
    return case.options["act"] == "leaky_relu" and "residual" not in case.flags


def _norm_bytes(case: Case, variant: str, direction: Direction, element_bytes: int) -> int:
    """Counts passes over the map: eager writes norm, activation and sum separately, and each reads its input again."""
    residual = int("residual" in case.flags)
    if variant.startswith("eager"):
        forward, backward = 5 + 3 * residual, 8
    elif variant.startswith("triton") and norm_plan(case.shape).persistent:
        forward, backward = 2 + residual, 3
    else:
        forward, backward = 3 + residual, 5
    written, read = forward * element_bytes, backward * element_bytes
    if variant == "triton_byte":  # backward reads the byte that forward writes, instead of the input
        written, read = written + 1, read + (backward - 1) // 2 * (1 - element_bytes)
    return case.elements * by_direction(direction, written, read)


def norm_plan(shape: tuple[int, ...]) -> Plan:
    """Returns the plan of the Triton kernels for a map [N, C, H, W] on `resident_programs` multiprocessors."""
    n, c, height, width = shape
    return plan(n * height * width, c, resident_programs=resident_programs())


BATCH_NORM_ACT = KernelSpec(
    name="batch_norm_act",
    reference=_norm_reference,
    variants={
        **in_both_layouts(_norm_eager),
        "compile": compiled_variant(functools.partial(_norm_eager, in_place=False)),
        "triton": _norm_triton,
        "triton_byte": functools.partial(_norm_triton, save="byte"),
        "triton_output": functools.partial(_norm_triton, save="output"),
    },
    cases=NORM_CASES,
    main_cases=tuple(case for case in NORM_CASES if case.name in MAIN),
    static_variants={"training": _norm_running, "evaluation": functools.partial(_norm_running, training=False)},
    inputs=_norm_inputs,
    differentiated=("x", "weight", "bias", "residual"),
    loose={"triton_byte": 0.05},
    only_at={"triton_output": _invertible},
    bytes_moved=_norm_bytes,
    # An element takes statistics, scale and shift, activation, sum.
    operations=lambda case, direction: case.elements * by_direction(direction, 9, 15),
)
