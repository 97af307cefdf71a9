"""`conv_bn_act` at the convolutions of the networks, alone and as Darknet's residual block.

Shape legend: the shape of a case is the input's; K output channels, R edge of the filter.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wallclock.kernels.batch_norm_act import BatchNorm
from wallclock.kernels.cases.batch_norm_act import eager_norm, norm_plan
from wallclock.kernels.cases.inputs import (
    SLOPE,
    by_direction,
    compiled_variant,
    convolution_form,
    in_both_layouts,
    normal,
)
from wallclock.kernels.conv import output_size
from wallclock.kernels.conv_bn_act import Deferred, conv_bn_act, conv_bn_act_ref
from wallclock.kernels.spec import Case, Direction, Inputs, KernelSpec


def _case(network: str, n: int, c: int, edge: int, form: str, act: str) -> Case:
    return Case(network=network, shape=(n, c, edge, edge), options={"form": form, "act": act})


def _form(form: str, c: int) -> list[tuple[int, int, int]]:
    """Returns output channels, filter edge and stride of each convolution in a form such as "64k3s2" or "block"."""
    return [(c // 2, 1, 1), (c, 3, 1)] if form == "block" else [convolution_form(form)]


CASES = (
    *(
        _case("darknet", 256, c, edge, form, "leaky_relu")
        for c, edge, form in [
            (3, 32, "32k3s1"), (32, 32, "64k3s2"), (64, 16, "128k3s1"), (128, 16, "256k3s2"), (256, 8, "512k3s2"),
            (512, 4, "1024k3s2"), (64, 16, "32k1s1"), (32, 16, "64k3s1"), (128, 16, "64k1s1"), (256, 8, "128k1s1"),
            (128, 8, "256k3s1"), (512, 4, "256k1s1"), (256, 4, "512k3s1"), (1024, 2, "512k1s1"), (512, 2, "1024k3s1"),
            (64, 16, "block"), (128, 16, "block"), (256, 8, "block"), (512, 4, "block"), (1024, 2, "block"),
        ]
    ),
    *(
        _case("sprint", 500, c, edge, f"{c}k3s1", "gelu")
        for c, edge in [(64, 15), (256, 7), (256, 3), (64, 11), (256, 5), (256, 2)]
    ),
    *(
        _case("wrn22", 512, c, edge, form, "relu")
        for c, edge, form in [
            (16, 32, "96k3s1"), (96, 32, "96k3s1"), (96, 32, "192k3s2"), (192, 16, "192k3s1"), (192, 16, "384k3s2"),
            (384, 8, "384k3s1"),
        ]
    ),
)  # fmt: skip
# Cases that the static gate compiles: each form once, at the widths of other cases.
STATIC = (
    "darknet 256x3x32x32 32k3s1 leaky_relu",
    "darknet 256x64x16x16 128k3s1 leaky_relu",
    "darknet 256x128x16x16 256k3s2 leaky_relu",
    "darknet 256x128x16x16 block leaky_relu",
    "darknet 256x1024x2x2 block leaky_relu",
    "sprint 500x256x7x7 256k3s1 gelu",
)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Makes filters and norms of one or two convolutions, with names ending in 1 and 2."""
    found: Inputs = {"x": normal(case.shape, dtype, device, 0)}
    c = case.shape[1]
    for place in (1, 2):
        forms = _form(case.options["form"], case.shape[1])
        k, r, _ = forms[place - 1] if place <= len(forms) else (0, 0, 0)
        filters = (normal((k, c, r, r), torch.float32, device, 10 * place) / (c * r * r) ** 0.5).to(
            memory_format=torch.channels_last
        )
        weight, bias = (normal((k,), torch.float32, device, 10 * place + i) for i in (1, 2))
        norm = {"filters": filters, "weight": 1 + 0.1 * weight, "bias": 0.1 * bias}
        found |= {f"{name}{place}": tensor if k else None for name, tensor in norm.items()}
        c = k
    return found


def _variant(layer: Callable[..., Tensor | Deferred]) -> Callable[..., Tensor]:
    """Returns a case's computation, built of a function for one convolution with its norm and activation."""

    def call(x: Tensor, *, form: str, act: Any, **tensors: Tensor | None) -> Tensor:
        forms = _form(form, x.shape[1])
        y: Tensor | Deferred = x
        for place, (_, r, stride) in enumerate(forms, 1):
            filters, weight, bias = (tensors[f"{name}{place}"] for name in ("filters", "weight", "bias"))
            norm = BatchNorm(weight, bias, act=act, negative_slope=SLOPE)
            last = place == len(forms)
            residual = x if last and form == "block" else None
            y = layer(y, filters, norm, stride=stride, padding=r // 2, residual=residual, defer=not last)
        assert isinstance(y, Tensor)
        return y

    return call


def _reference(x: Tensor, filters: Tensor, norm: BatchNorm, *, defer: bool, **options: Any) -> Tensor:
    return conv_bn_act_ref(x, filters, norm, **options)


def _eager(
    x: Tensor, filters: Tensor, norm: BatchNorm, *, residual: Tensor | None, in_place: bool = True, **options: Any
) -> Tensor:
    y = F.conv2d(x, filters.to(x.dtype), None, options["stride"], options["padding"])
    return eager_norm(y, norm, residual, in_place=in_place)


def maps_of(case: Case) -> list[tuple[int, int, int]]:
    """Returns numbers of input elements, output elements and multiply-adds of each convolution."""
    n, c, h, w = case.shape
    found = []
    for k, r, stride in _form(case.options["form"], c):
        p, q = output_size(h, r, stride, r // 2), output_size(w, r, stride, r // 2)
        found.append((n * c * h * w, n * k * p * q, n * k * p * q * c * r * r))
        c, h, w = k, p, q
    return found


def norm_passes(case: Case, variant: str) -> list[tuple[float, float]]:
    """Returns passes over each convolution's output, forward and backward, besides the convolutions' own traffic.

    A convolution's own traffic is the maps that it must read and write: x and y forward, dy and dx for the input's
    gradient, dy and x for the filters'. A residual costs another read.
    """
    block = case.options["form"] == "block"
    forward, backward = {"eager": (5, 8), "compile": (3, 5)}.get(variant.removesuffix("_nchw"), (2, 5))
    (_, elements, _), (k, _, _) = maps_of(case)[-1], _form(case.options["form"], case.shape[1])[-1]
    if variant.startswith("triton") and norm_plan((elements // k, k, 1, 1)).persistent:
        backward = 3
    last = (forward + block * (3 if variant.startswith("eager") else 1), backward)
    inner = (0, 4) if variant.startswith("triton") else (forward, backward)
    return [inner] * block + [last]


def _bytes(case: Case, variant: str, direction: Direction, element_bytes: int) -> int:
    total = 0.0
    for (before, after, _), (forward, backward) in zip(maps_of(case), norm_passes(case, variant), strict=True):
        total += by_direction(direction, before + after * (1 + forward), 2 * before + after * (2 + backward))
    return int(total * element_bytes)


def convolution_operations(case: Case, direction: Direction) -> int:
    """Counts multiplications and additions of the convolutions: one product forward, two backward."""
    return sum(2 * products for *_, products in maps_of(case)) * by_direction(direction, 1, 2)


CONV_BN_ACT = KernelSpec(
    name="conv_bn_act",
    reference=_variant(_reference),
    variants={
        **in_both_layouts(_variant(_eager)),
        "compile": compiled_variant(_variant(functools.partial(_eager, in_place=False))),
        "triton": _variant(conv_bn_act),
    },
    cases=CASES,
    static_cases=tuple(case for case in CASES if case.name in STATIC),
    inputs=_inputs,
    differentiated=("x", *(f"{name}{place}" for place in (1, 2) for name in ("filters", "weight", "bias"))),
    bytes_moved=_bytes,
    operations=convolution_operations,
)
