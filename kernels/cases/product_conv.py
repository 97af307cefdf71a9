"""`product_conv` at the small maps of the networks.

Shape legend: the shape of a case is the input's; K output channels, R edge of the filter.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from wallclock.kernels.cases.conv_bn_act import convolution_operations, maps_of
from wallclock.kernels.cases.inputs import by_direction, convolution_form, in_both_layouts, normal
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
    ((before, after, products),) = maps_of(case)
    k, r, _ = convolution_form(case.options["form"])
    unfolding = 2 * products // k if variant == "product" and r > 1 else 0
    forward = before + after + k * case.shape[1] * r * r
    return element_bytes * by_direction(direction, forward, 2 * forward + unfolding)


PRODUCT_CONV = KernelSpec(
    name="product_conv",
    reference=_variant(product_conv_ref),
    variants=in_both_layouts(_variant(product_conv_ref)) | {"product": _variant(product_conv)},
    cases=CASES,
    inputs=_inputs,
    differentiated=("x", "filters"),
    bytes_moved=_bytes,
    operations=convolution_operations,
)
