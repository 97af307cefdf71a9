"""Checks of arguments: what passes, and the message of each mistake."""

import pytest
import torch

from wallclock.kernels.checks import check_act, check_residual, check_vectors

ONES = torch.ones(3)


def test_what_fits_passes():
    check_vectors(3, weight=ONES, bias=ONES)
    check_vectors(3, weight=None, bias=None)
    check_act("relu", ("none", "relu"))
    check_residual(None, torch.float32, (2, 3))
    check_residual(torch.ones(2, 3), torch.float32, (2, 3))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({"weight": torch.ones(4)}, r"^weight has shape \(4,\); expected \(3,\), one value a channel$"),
        ({"bias": torch.ones(3, 1)}, r"^bias has shape \(3, 1\); expected \(3,\)"),
        ({"weight": torch.ones(6)[::2]}, r"^weight has stride 2; expected a dense vector, call .contiguous\(\)$"),
        ({"weight": ONES, "bias": None}, "^weight and bias are given together or not at all$"),
        ({"weight": None, "bias": ONES}, "^weight and bias are given together or not at all$"),
    ],
)
def test_a_vector_that_does_not_fit_is_named(vectors, message):
    with pytest.raises(ValueError, match=message):
        check_vectors(3, **vectors)


def test_an_unknown_activation_is_told_the_known_ones():
    with pytest.raises(ValueError, match="^act is 'elu'; expected one of none, relu$"):
        check_act("elu", ("none", "relu"))


@pytest.mark.parametrize("residual", [torch.ones(2, 4), torch.ones(2, 3).half()])
def test_a_residual_of_another_shape_or_type_is_refused(residual):
    with pytest.raises(ValueError, match=r"^residual is torch.float.*; expected torch.float32 \(2, 3\)$"):
        check_residual(residual, torch.float32, (2, 3))
