"""Registered operators: what the compiler and autograd see of a function, and arguments that are bundles of others."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import pytest
import torch
from torch import Tensor

from wallclock.kernels.operator import operator


class Line(NamedTuple):
    slope: float
    shift: Tensor | None


@dataclass(frozen=True)
class Rounding:
    direction: Literal["up", "down"]
    places: int


def _outputs(x, line):
    assert isinstance(line, Line)
    return torch.empty_like(x), x.new_empty(0)


def _keep(ctx, inputs, output):
    _, ctx.slope, ctx.has_shift, _, _ = inputs[0], inputs[1], inputs[2] is not None, *inputs[3:]


def _gradients(ctx, dy):
    return {"x": ctx.slope * dy, "shift": dy if ctx.has_shift else None}


@pytest.fixture(scope="module")
def rounded_line():
    @operator("test_rounded_line", outputs=_outputs, keep=_keep, gradients=_gradients)
    def function(x: Tensor, line: Line, rounding: Rounding) -> tuple[Tensor, Tensor]:
        assert isinstance(line, Line) and isinstance(rounding, Rounding)
        y = line.slope * x + (0 if line.shift is None else line.shift)
        scale = 10**rounding.places
        return {"up": torch.ceil, "down": torch.floor}[rounding.direction](y * scale) / scale, x.new_empty(0)

    return torch.ops.wallclock.test_rounded_line


def test_a_bundle_is_an_argument_for_each_of_its_fields(rounded_line):
    assert str(rounded_line.default._schema) == (
        "wallclock::test_rounded_line(Tensor x, float slope, Tensor? shift, str direction, SymInt places)"
        " -> (Tensor, Tensor)"
    )
    x, shift = torch.tensor([0.16, -0.16]), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(rounded_line(x, 1.0, shift, "up", 1)[0], torch.tensor([1.2, 1.9]))
    torch.testing.assert_close(rounded_line(x, 2.0, None, "down", 1)[0], torch.tensor([0.3, -0.4]))


def test_gradients_go_to_the_fields_of_their_names(rounded_line):
    x, shift = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y, rest = rounded_line(x, 3.0, shift, "up", 2)
    assert y.requires_grad and not rest.requires_grad
    y.backward(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    assert x.grad.tolist() == [3.0, 6.0, 12.0] and shift.grad.tolist() == [1.0, 2.0, 4.0]
    torch.library.opcheck(rounded_line, (x, 3.0, None, "up", 2), test_utils=("test_schema", "test_faketensor"))


def test_the_compiler_takes_shapes_from_the_outputs_alone(rounded_line):
    x = torch.empty(5, 7, device="meta")
    assert rounded_line(x, 1.0, None, "up", 0)[0].shape == (5, 7)


def test_an_operator_may_overwrite_an_argument_and_return_nothing():
    @operator("test_doubled_", mutates=("x",))
    def function(x: Tensor) -> None:
        x.mul_(2)

    x = torch.ones(3)
    assert torch.ops.wallclock.test_doubled_(x) is None and x.tolist() == [2, 2, 2]
    torch.library.opcheck(torch.ops.wallclock.test_doubled_, (x,))
