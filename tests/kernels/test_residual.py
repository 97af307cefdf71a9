"""The in-place residual sum: right where the lesson's fails, and never silently wrong."""

import pytest
import torch
from comparison import saved_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from wallclock.kernels.residual import residual_, residual_ref

ACTS = [("none", 1.0), ("none", 0.2), ("relu", 1.0), ("leaky_relu", 0.7)]


def made(shape, device, dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, generator=random).to(device, dtype) for _ in range(3)]


def run(function, source, x, dy, **options):
    """Value and gradients; the branch is made by an operation, as in a network."""
    source, x = source.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    y = function(source * 1.5, x, negative_slope=0.1, **options)
    y.backward(dy)
    return y.detach(), source.grad, x.grad


@pytest.mark.parametrize(("act", "alpha"), ACTS)
@pytest.mark.parametrize("shape", [(4, 5, 7, 3), (3, 123, 1, 1), (2, 24, 33, 31), (7,), (0, 3, 2, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_equals_its_reference(shape, act, alpha, memory_format, device):
    source, x, dy = made(shape, device)
    if len(shape) == 4:
        source = source.contiguous(memory_format=memory_format)
    ours, reference = (run(f, source, x, dy, act=act, alpha=alpha) for f in (residual_, residual_ref))
    for found, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(found, expected)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    scale=st.sampled_from((1, 7, 300)),  # 300: more than one program's block
    act=st.sampled_from(("none", "relu", "leaky_relu")),
    alpha=st.sampled_from((1.0, 0.2, -3.0, 0.0)),
    layouts=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_it_equals_its_reference_at_any_shape(shape, scale, act, alpha, layouts, device):
    shape = (shape[0] * scale, *shape[1:])
    tensors = [
        t.contiguous(memory_format=torch.channels_last) if last and len(shape) == 4 else t
        for t, last in zip(made(shape, device), layouts, strict=True)
    ]
    ours, reference = (run(f, *tensors, act=act, alpha=alpha) for f in (residual_, residual_ref))
    for found, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once(dtype, device):
    source, x, dy = made((4, 24, 9, 9), device, dtype)
    ours, reference = (run(f, source, x, dy, act="leaky_relu") for f in (residual_, residual_ref))
    for found, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_it_is_in_place_and_keeps_a_bit_an_element(device):
    branch, x, _ = made((4, 16, 8, 8), device, torch.bfloat16)
    branch = (branch.requires_grad_() * 1.0).contiguous(memory_format=torch.channels_last)
    kept, y = saved_bytes(lambda: residual_(branch, x, act="leaky_relu"))
    assert y.data_ptr() == branch.data_ptr()
    assert kept == branch.numel() // 8
    assert saved_bytes(lambda: residual_(branch * 1.0, x))[0] == 0


def block(channels, device):
    """A Darknet block's branch up to its last activation, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, channels // 2, 1, bias=False),
        nn.BatchNorm2d(channels // 2),
        nn.LeakyReLU(0.1),
        nn.Conv2d(channels // 2, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
    ).to(device, torch.float64)


def test_the_lessons_form_cannot_be_trained_and_ours_passes_gradcheck(device):
    branch = block(4, device)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, device=device, requires_grad=True)

    def lesson(x):
        x = x * 1.0
        return x.add_(F.leaky_relu(branch(x), 0.1))

    def ours(x):
        return residual_(branch(x * 1.0), x, act="leaky_relu", negative_slope=0.1)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        lesson(x).sum().backward()
    torch.testing.assert_close(ours(x), x + F.leaky_relu(branch(x), 0.1))
    assert torch.autograd.gradcheck(ours, (x,), nondet_tol=1e-12)  # cuDNN's sums of filters' gradients have no order


def test_a_branch_that_somebody_has_saved_is_noticed(device):
    branch, x, _ = made((2, 4, 3, 3), device)
    saved = F.leaky_relu_(branch.requires_grad_() * 1.0, 0.1)  # in place: it has saved its output
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        residual_(saved, x).sum().backward()


def test_nan_stays(device):
    branch, x = torch.tensor([float("nan"), 1.0], device=device), torch.tensor([1.0, float("nan")], device=device)
    assert residual_(branch, x, act="relu").isnan().all()


@pytest.mark.parametrize(
    ("branch", "x", "act", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), "none", r"expected torch.float32 \(2, 3\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64), "none", "expected torch.float32"),
        (torch.zeros(2, 3), torch.zeros(2, 3), "gelu", "expected one of none, relu, leaky_relu"),
        (torch.zeros(4, 3)[:, :2], torch.zeros(4, 2), "none", "not dense in memory"),
    ],
)
def test_what_does_not_fit_is_refused(branch, x, act, message):
    with pytest.raises(ValueError, match=message):
        residual_(branch, x, act=act)


def test_opcheck_finds_nothing_and_it_compiles_without_a_graph_break(device):
    branch, x, dy = made((2, 5, 4, 3), device)
    torch.library.opcheck(torch.ops.wallclock.residual_, (branch, x, 0.5, 0.1))
    leaves = [t.detach().clone().requires_grad_() for t in (branch, x)]
    torch.library.opcheck(torch.ops.wallclock.residual, (*leaves, 0.5, 0.1))
    bits = torch.zeros(15, dtype=torch.uint8, device=device)
    torch.library.opcheck(torch.ops.wallclock.residual_backward, (dy, bits, 0.5, 0.1))
    compiled = torch.compile(residual_, fullgraph=True, backend="aot_eager")
    ours, reference = (run(f, branch, x, dy, act="leaky_relu") for f in (compiled, residual_ref))
    for found, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(found, expected)
