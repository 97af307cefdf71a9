"""Muon against its definition by singular value decomposition, and its step against the formula."""

import pytest
import torch
from torch import nn

from kernels.muon import NEWTON_SCHULZ_COEFFICIENTS, Muon, newton_schulz_ref


def by_svd(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """The same quintic, applied to the singular values alone, in float64."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(steps):
        values = a * values + b * values**3 + c * values**5
    return left @ values.diag() @ right


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
@pytest.mark.parametrize("shape", [(5, 123), (123, 5), (64, 64), (1, 7)])
def test_the_iteration_acts_on_the_singular_values_alone(shape, steps):
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(newton_schulz_ref(matrix, steps, eps=0.0), by_svd(matrix, steps), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "every other column"])
@pytest.mark.parametrize("shape", [(24, 576), (257, 31)])
def test_bfloat16_stays_near_the_exact_iteration(shape, layout):
    (rows, columns), random = shape, torch.Generator().manual_seed(0)
    made = {
        "contiguous": lambda: torch.randn(rows, columns, generator=random),
        "transposed": lambda: torch.randn(columns, rows, generator=random).T,
        "every other column": lambda: torch.randn(rows, 2 * columns, generator=random)[:, ::2],
    }
    matrix = made[layout]()
    result = newton_schulz_ref(matrix)
    assert result.shape == shape and result.dtype == torch.bfloat16
    error = (result.double() - by_svd(matrix, 3)).norm() / by_svd(matrix, 3).norm()
    assert error < 0.04  # 0.020 to 0.024 seen; the iteration's own spread of singular values is ten times that


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6, 1e30])
def test_the_scale_of_a_gradient_does_not_matter(scale):
    matrix = torch.randn(16, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(newton_schulz_ref(matrix * scale, eps=0.0), newton_schulz_ref(matrix, eps=0.0))
    assert newton_schulz_ref(torch.zeros(3, 4)).abs().max() == 0


def test_a_step_is_the_formula():
    torch.manual_seed(3)
    initial, gradients = torch.randn(6, 4, 3, 3), [torch.randn(6, 4, 3, 3) for _ in range(3)]
    bank = nn.Parameter(initial.clone().to(memory_format=torch.channels_last))
    optimizer = Muon([bank], lr=0.1, momentum=0.6)
    expected, average = initial.clone(), torch.zeros_like(initial)
    for gradient in gradients:
        bank.grad = gradient.to(memory_format=torch.channels_last)
        optimizer.step()
        average = 0.6 * average + gradient
        direction = newton_schulz_ref((gradient + 0.6 * average).flatten(1)).float().view_as(expected)
        expected = expected * 6**0.5 / expected.norm() - 0.1 * direction
        torch.testing.assert_close(bank.detach(), expected, rtol=1e-5, atol=1e-5)


def test_parameters_without_a_gradient_stay_and_a_closure_is_evaluated_with_gradients():
    moved, still = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.ones(3, 5))
    optimizer = Muon([moved, still], lr=0.1)

    def closure():
        loss = moved.square().sum()
        loss.backward()
        return loss

    before = moved.detach().clone()
    assert optimizer.step(closure).item() == pytest.approx(before.square().sum().item())
    assert not torch.equal(moved, before) and torch.equal(still, torch.ones(3, 5))


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="give it to SGD"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)
    with pytest.raises(ValueError, match="needs a matrix"):
        newton_schulz_ref(torch.zeros(2, 3, 4))
