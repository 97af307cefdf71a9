"""`batch_norm_act` at the shapes of the networks."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from wallclock.kernels.batch_norm_act import Plan, batch_norm_act, batch_norm_act_ref, plan
from wallclock.kernels.cases.inputs import SLOPE, compiled_variant, normal
from wallclock.kernels.spec import Case, Direction, Inputs, KernelSpec


def _norm_case(network: str, n: int, c: int, edge: int, act: str, *flags: str) -> Case:
    return Case(network=network, shape=(n, c, edge, edge), options={"act": act}, flags=frozenset(flags))


_DARKNET = [(32, 32), (64, 16), (32, 16), (128, 16), (256, 8), (128, 8), (512, 4), (256, 4), (1024, 2), (512, 2)]
DARKNET_SUMS = [(64, 16), (128, 16), (256, 8), (512, 4), (1024, 2)]
NORM_CASES = (
    *(_norm_case("darknet", 256, c, edge, "leaky_relu") for c, edge in _DARKNET),
    *(_norm_case("darknet", 256, c, edge, "leaky_relu", "residual") for c, edge in DARKNET_SUMS),
    *(
        _norm_case("sprint", 500, c, edge, "gelu")
        for c, edge in [(64, 15), (256, 7), (256, 3), (64, 11), (256, 5), (256, 2)]
    ),
    *(_norm_case("wrn22", 512, c, edge, "relu") for c, edge in [(16, 32), (96, 32), (96, 16), (192, 16), (192, 8)]),
    _norm_case("wrn22", 512, 384, 8, "relu"),
    *(_norm_case("dcgan", 64, c, edge, "relu") for c, edge in [(512, 4), (256, 8), (128, 16), (64, 32)]),
    *(  # the critic's
        Case(network="dcgan", shape=(64, c, edge, edge), options={"act": "leaky_relu", "negative_slope": 0.2})
        for c, edge in [(64, 32), (128, 16), (256, 8), (512, 4)]
    ),
)
# One that takes two phases, with a sum, and one that programs keep.
MAIN = ("darknet 256x64x16x16 leaky_relu residual", "darknet 256x512x2x2 leaky_relu")


def _norm_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    channels = (case.shape[1],)
    return {
        "x": normal(case.shape, dtype, device, 0),
        "weight": 1 + 0.1 * normal(channels, torch.float32, device, 1),
        "bias": 0.1 * normal(channels, torch.float32, device, 2),
        "residual": normal(case.shape, dtype, device, 3) if "residual" in case.flags else None,
    }


def _norm_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    *,
    act: Any,
    negative_slope: float = SLOPE,
) -> torch.Tensor:
    return batch_norm_act_ref(
        x, weight, bias, None, None, training=True, act=act, negative_slope=negative_slope, residual=residual
    )


Activation = Callable[[torch.Tensor, float], torch.Tensor]  # of a map and the slope of leaky_relu
IN_PLACE: dict[str, Activation] = {
    "relu": lambda z, slope: F.relu_(z),
    "gelu": lambda z, slope: F.gelu(z),
    "leaky_relu": F.leaky_relu_,
}
OUT_OF_PLACE: dict[str, Activation] = {
    "relu": lambda z, slope: F.relu(z),
    "gelu": lambda z, slope: F.gelu(z),
    "leaky_relu": F.leaky_relu,
}


def _norm_eager(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    *,
    act: str,
    negative_slope: float = SLOPE,
) -> torch.Tensor:
    """What a user has today: norm, activation in place where PyTorch can, sum."""
    z = F.batch_norm(x, None, None, weight, bias, True)
    y = IN_PLACE[act](z, negative_slope)
    return y if residual is None else residual + y


def _norm_out_of_place(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    *,
    act: str,
    negative_slope: float = SLOPE,
) -> torch.Tensor:
    """The same for the compiler, which fuses it all anyway: 6.7 ms on a CPU where the form in place takes 58."""
    z = F.batch_norm(x, None, None, weight, bias, True)
    y = OUT_OF_PLACE[act](z, negative_slope)
    return y if residual is None else residual + y


def _norm_triton(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    *,
    act: Any,
    negative_slope: float = SLOPE,
    save: Any = "input",
    training: bool = True,
    running: bool = False,
) -> torch.Tensor:
    statistics = (torch.zeros_like(weight), torch.ones_like(weight)) if running else (None, None)
    return batch_norm_act(
        x,
        weight,
        bias,
        *statistics,
        training=training,
        act=act,
        negative_slope=negative_slope,
        residual=residual,
        save=save,
    )


def _invertible(case: Case) -> bool:
    """Whether an output can be inverted; where it cannot, `batch_norm_save=output` trains with a byte an element."""
    return case.options["act"] == "leaky_relu" and "residual" not in case.flags


def _norm_bytes(case: Case, variant: str, direction: Direction, element_bytes: int) -> int:
    """Passes over the map: eager writes norm, activation and sum apart, and each reads again what it needs."""
    residual = int("residual" in case.flags)
    if variant.startswith("eager"):
        forward, backward = 5 + 3 * residual, 8
    elif variant.startswith("triton") and norm_plan(case.shape).persistent:
        forward, backward = 2 + residual, 3
    else:
        forward, backward = 3 + residual, 5
    passes = {"forward": forward, "backward": backward, "both": forward + backward}[direction]
    saved = 0
    if variant == "triton_byte":  # a byte is written, and read where backward would read the input
        reads = (backward - 1) // 2
        saved = {"forward": 1, "backward": reads * (1 - element_bytes), "both": 1 + reads * (1 - element_bytes)}[
            direction
        ]
    return case.elements * (passes * element_bytes + saved)


MULTIPROCESSORS = 132  # of the GPU that costs are predicted for where there is none: an H100's


def norm_plan(shape: tuple[int, ...]) -> Plan:
    """How the Triton kernels cut up a map on this machine's GPU, or on one of `MULTIPROCESSORS` where it has none."""
    available = torch.cuda.is_available()
    resident = torch.cuda.get_device_properties(0).multi_processor_count if available else MULTIPROCESSORS
    n, c, height, width = shape
    return plan(n * height * width, c, resident_programs=resident)


def _norm_operations(case: Case, direction: Direction) -> int:
    """Statistics, scale and shift, activation, sum: about 9 forward and 15 backward for each element."""
    return case.elements * {"forward": 9, "backward": 15, "both": 24}[direction]


BATCH_NORM_ACT = KernelSpec(
    name="batch_norm_act",
    reference=_norm_reference,
    variants={
        "eager_nchw": _norm_eager,
        "eager": _norm_eager,
        "compile": compiled_variant(_norm_out_of_place),
        "triton": _norm_triton,
        "triton_byte": functools.partial(_norm_triton, save="byte"),
        "triton_output": functools.partial(_norm_triton, save="output"),
    },
    cases=NORM_CASES,
    main_cases=tuple(case for case in NORM_CASES if case.name in MAIN),
    static_variants={
        "training": functools.partial(_norm_triton, running=True),  # which moves the running statistics too
        "evaluation": functools.partial(_norm_triton, running=True, training=False),
    },
    inputs=_norm_inputs,
    differentiated=("x", "weight", "bias", "residual"),
    loose={"triton_byte": 0.05},
    only_at={"triton_output": _invertible},
    bytes_moved=_norm_bytes,
    operations=_norm_operations,
)
