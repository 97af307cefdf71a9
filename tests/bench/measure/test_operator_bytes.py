"""Bytes that operators are given and give back, of calls whose traffic is known."""

import pytest
import torch
from torch.nn import functional as F

from wallclock.bench.measure.operator_bytes import Operands

SHAPE = (4, 8, 5, 5)
MAP = 4 * 4 * 8 * 5 * 5  # bytes
THIRD = torch.tensor([2])
FILTERS = torch.randn(8, 8, 1, 1)


@torch.library.custom_op("wallclock_tests::scaled_sum", mutates_args=("total",))
def scaled_sum(total: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Calls operators of its own, which do not count."""
    total.add_(x * 2)
    return total + 1


@pytest.mark.parametrize(
    ("call", "maps"),
    [
        (lambda x, y: x + y, 3),
        (lambda x, y: x + x, 2),  # read once
        (lambda x, y: x.add_(y), 3),
        (lambda x, y: x.copy_(y), 2),
        (lambda x, y: x.zero_(), 1),
        (lambda x, y: torch.add(x, x, out=y), 2),
        (lambda x, y: x.view(32, 25).t(), 0),
        (lambda x, y: torch.empty_like(x), 0),
        (lambda x, y: torch._foreach_add([x, y], [y, x]), 4),
        (lambda x, y: x[THIRD], 2 / 4),  # of four images one
        (lambda x, y: x.to(torch.bfloat16), 1.5),
        (lambda x, y: x.contiguous(memory_format=torch.channels_last), 2),  # a copy that nothing asked for
        (lambda x, y: scaled_sum(x, y), 4),
    ],
)
def test_known_traffic(call, maps):
    x, y = torch.randn(SHAPE), torch.randn(SHAPE)
    with Operands() as operands:
        call(x, y)
    assert operands.bytes == maps * MAP


@pytest.mark.parametrize(("wanted", "maps", "filters"), [("xw", 4, 2), ("w", 2, 2), ("x", 3, 1)])
def test_a_convolutions_backward_reads_dy_once_for_each_gradient(wanted, maps, filters):
    """And it is given the map and the filters whether it needs them or not."""
    x = torch.randn(SHAPE, requires_grad="x" in wanted)
    w = FILTERS.clone().requires_grad_("w" in wanted)
    y, dy = F.conv2d(x, w), torch.randn(SHAPE)
    with Operands() as operands:
        torch.autograd.grad(y, [t for t in (x, w) if t.requires_grad], dy)
    assert operands.bytes == maps * MAP + filters * FILTERS.nbytes
