"""`product_conv` at the small maps of the networks.

Shape legend: the shape of a case is the input's; K output channels, R edge of the filter.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from wallclock.kernels.cases.inputs import by_direction, convolution_form, normal
from wallclock.kernels.conv import output_size
from wallclock.kernels.product_conv import product_conv, product_conv_ref
from wallclock.kernels.spec import Case, Direction, Inputs, KernelSpec

CASES = tuple(
    Case(network=network, shape=(n, c, edge, edge), options={"form": form})
    for network, n, shapes in (
        ("sprint", 500, [(256, 7, "256k3s1"), (256, 3, "256k3s1"), (256, 5, "256k3s1"), (256, 2, "256k3s1")]),
        ("darknet", 256, [(128, 8, "256k3s1"), (256, 4, "512k3s1"), (1024, 2, "512k1s1"), (512, 4, "1024k3s2")]),
        ("wrn22", 512, [(384, 8, "384k3s1")]),
    )
    for c, edge, form in shapes
)  # fmt: skip


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    k, r, _ = convolution_form(case.options["form"])
    c = case.shape[1]
    filters = normal((k, c, r, r), torch.float32, device, 1) / (c * r * r) ** 0.5
    return {"x": normal(case.shape, dtype, device, 0), "filters": filters.to(dtype)}


def _variant(conv: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(x: Tensor, filters: Tensor, *, form: str) -> Tensor:
        _, r, stride = convolution_form(form)
        return conv(x, filters, stride=stride, padding=r // 2)

    return call


def _bytes(case: Case, variant: str, direction: Direction, element_bytes: int) -> int:
    """Counts maps and filters of each product once; unfolding reads and writes R*R times the map."""
    n, c, h, w = case.shape
    k, r, stride = convolution_form(case.options["form"])
    p, q = output_size(h, r, stride, r // 2), output_size(w, r, stride, r // 2)
    before, after, filters = n * c * h * w, n * k * p * q, k * c * r * r
    unfolding = 2 * n * p * q * c * r * r if variant == "product" and r > 1 else 0
    forward = before + after + filters
    return element_bytes * by_direction(direction, forward, 2 * forward + unfolding)


def _operations(case: Case, direction: Direction) -> int:
    n, c, h, w = case.shape
    k, r, stride = convolution_form(case.options["form"])
    products = n * k * output_size(h, r, stride, r // 2) * output_size(w, r, stride, r // 2) * c * r * r
    return 2 * products * by_direction(direction, 1, 2)


PRODUCT_CONV = KernelSpec(
    name="product_conv",
    reference=_variant(product_conv_ref),
    variants={
        "eager_nchw": _variant(product_conv_ref),
        "eager": _variant(product_conv_ref),
        "product": _variant(product_conv),
    },
    cases=CASES,
    inputs=_inputs,
    differentiated=("x", "filters"),
    bytes_moved=_bytes,
    operations=_operations,
)
