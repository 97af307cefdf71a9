"""`conv_bn_act` at the convolutions of the networks, alone and as Darknet's residual block.

Shape legend: the shape of a case is that of the input; K output channels, R edge of the filter.
"""

import functools
import re

import torch
from torch.nn import functional as F

from wallclock.kernels.cases.batch_norm_act import IN_PLACE, OUT_OF_PLACE, norm_plan
from wallclock.kernels.cases.inputs import SLOPE, compiled_variant, normal
from wallclock.kernels.conv import output_size
from wallclock.kernels.conv_bn_act import Deferred, conv_bn_act, conv_bn_act_ref
from wallclock.kernels.spec import Case, Direction, Inputs, KernelSpec


def _case(network: str, n: int, c: int, edge: int, form: str, act: str) -> Case:
    return Case(network=network, shape=(n, c, edge, edge), options={"form": form, "act": act})


def _form(form: str, c: int) -> list[tuple[int, int, int]]:
    """Output channels, filter edge and stride of the convolutions that "64k3s2" or "block" stand for."""
    if form == "block":
        return [(c // 2, 1, 1), (c, 3, 1)]
    k, r, stride = map(int, re.fullmatch(r"(\d+)k(\d)s(\d)", form).groups())  # type: ignore[union-attr]
    return [(k, r, stride)]


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
# What the static gate compiles: each form once, at widths that others share.
STATIC_CASES = tuple(
    case
    for case in CASES
    if case.name
    in (
        "darknet 256x3x32x32 32k3s1 leaky_relu",
        "darknet 256x64x16x16 128k3s1 leaky_relu",
        "darknet 256x128x16x16 256k3s2 leaky_relu",
        "darknet 256x128x16x16 block leaky_relu",
        "darknet 256x1024x2x2 block leaky_relu",
        "sprint 500x256x7x7 256k3s1 gelu",
    )
)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Filters and norms of up to two convolutions; the names of the second end in 2."""
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


def _layers(x: torch.Tensor, tensors: dict[str, torch.Tensor | None], form: str, act: str, one: object) -> torch.Tensor:
    """The case from a function of one convolution with its norm and activation."""
    forms = _form(form, x.shape[1])
    y: torch.Tensor | Deferred = x
    for place, (_, r, stride) in enumerate(forms, 1):
        filters, weight, bias = (tensors[f"{name}{place}"] for name in ("filters", "weight", "bias"))
        last = place == len(forms)
        residual = x if last and form == "block" else None
        y = one(y, filters, weight, bias, stride, r // 2, act, residual, not last)  # type: ignore[operator]
    assert isinstance(y, torch.Tensor)
    return y


def _variant(one: object) -> functools.partial[torch.Tensor]:
    def call(x: torch.Tensor, *, form: str, act: str, **tensors: torch.Tensor | None) -> torch.Tensor:
        return _layers(x, tensors, form, act, one)

    return functools.partial(call)


def _reference(x, filters, weight, bias, stride, padding, act, residual, defer):  # type: ignore[no-untyped-def]
    return conv_bn_act_ref(
        x, filters, weight, bias, None, None, stride=stride, padding=padding, training=True, act=act,
        negative_slope=SLOPE, residual=residual,
    )  # fmt: skip


def _today(x, filters, weight, bias, stride, padding, act, residual, activations):  # type: ignore[no-untyped-def]
    z = F.batch_norm(F.conv2d(x, filters.to(x.dtype), None, stride, padding), None, None, weight, bias, True)
    y = activations[act](z, SLOPE)
    return y if residual is None else residual + y


def _eager(x, filters, weight, bias, stride, padding, act, residual, defer):  # type: ignore[no-untyped-def]
    return _today(x, filters, weight, bias, stride, padding, act, residual, IN_PLACE)


def _out_of_place(x, filters, weight, bias, stride, padding, act, residual, defer):  # type: ignore[no-untyped-def]
    return _today(x, filters, weight, bias, stride, padding, act, residual, OUT_OF_PLACE)


def _triton(x, filters, weight, bias, stride, padding, act, residual, defer):  # type: ignore[no-untyped-def]
    return conv_bn_act(
        x, filters, weight, bias, None, None, stride=stride, padding=padding, training=True, act=act,
        negative_slope=SLOPE, residual=residual, defer=defer,
    )  # fmt: skip


def maps_of(case: Case) -> list[tuple[int, int, int]]:
    """Input elements, output elements and multiply-adds of each convolution."""
    n, c, h, w = case.shape
    found = []
    for k, r, stride in _form(case.options["form"], c):
        p, q = output_size(h, r, stride, r // 2), output_size(w, r, stride, r // 2)
        found.append((n * c * h * w, n * k * p * q, n * k * p * q * c * r * r))
        c, h, w = k, p, q
    return found


def _output_shape(case: Case) -> tuple[int, ...]:
    n, c, h, w = case.shape
    for k, r, stride in _form(case.options["form"], c):
        c, h, w = k, output_size(h, r, stride, r // 2), output_size(w, r, stride, r // 2)
    return n, c, h, w


def norm_passes(case: Case, variant: str) -> list[tuple[float, float]]:
    """Returns passes over each convolution's output beside the convolutions' own traffic: forward and backward.

    A convolution's own traffic is what it has to read and write: x and y forward, dy and dx for the input's gradient,
    dy and x for the filters'. A residual costs a read more.
    """
    block = case.options["form"] == "block"
    forward, backward = {"eager": (5, 8), "compile": (3, 5)}.get(variant.removesuffix("_nchw"), (2, 5))
    if variant.startswith("triton") and norm_plan(_output_shape(case)).persistent:
        backward = 3
    last = (forward + block * (3 if variant.startswith("eager") else 1), backward)
    inner = (0, 4) if variant.startswith("triton") else (forward, backward)
    return [inner] * block + [last]


def _bytes(case: Case, variant: str, direction: Direction, element_bytes: int) -> int:
    total = 0.0
    for (before, after, _), (forward, backward) in zip(maps_of(case), norm_passes(case, variant), strict=True):
        passes = {
            "forward": before + after * (1 + forward),
            "backward": 2 * before + after * (2 + backward),
            "both": 3 * before + after * (3 + forward + backward),
        }
        total += passes[direction]
    return int(total * element_bytes)


def _operations(case: Case, direction: Direction) -> int:
    """Multiplications and additions of the convolutions: one product forward, two backward."""
    return sum(2 * products for *_, products in maps_of(case)) * {"forward": 1, "backward": 2, "both": 3}[direction]


CONV_BN_ACT = KernelSpec(
    name="conv_bn_act",
    reference=_variant(_reference),
    variants={
        "eager_nchw": _variant(_eager),
        "eager": _variant(_eager),
        "compile": compiled_variant(_variant(_out_of_place)),
        "triton": _variant(_triton),
    },
    cases=CASES,
    static_cases=STATIC_CASES,
    inputs=_inputs,
    differentiated=("x", *(f"{name}{place}" for place in (1, 2) for name in ("filters", "weight", "bias"))),
    bytes_moved=_bytes,
    operations=_operations,
)
