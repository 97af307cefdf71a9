"""Upsampling and convolution as one transposed convolution: the reference's values and gradients, and faster."""

import functools
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from wallclock.bench.measure.numerics import numerics
from wallclock.bench.measure.sampling import measure
from wallclock.kernels.upsample_conv import collapse, upsample_conv, upsample_conv_ref

SHAPES = [(2, 5, 3, 4, 7), (3, 24, 5, 1, 1), (1, 1, 1, 2, 1), (2, 123, 3, 3, 2), (1, 3, 123, 1, 5)]  # N, I, O, H, W
FORMATS = [torch.contiguous_format, torch.channels_last]


def made(n, i, o, h, w, device="cpu", dtype=torch.float64, scale=1.0):
    random = torch.Generator().manual_seed(0)
    shapes = (n, i, h, w), (o, i, 3, 3), (o,), (n, o, 2 * h, 2 * w)
    return [(scale * torch.randn(s, dtype=torch.float64, generator=random)).to(device, dtype) for s in shapes]


def run(function, x, weight, bias, dy):
    """Value and gradients."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    y = function(*leaves)
    wanted = [t for t in leaves if t is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, dy)]


def error(found, exact):
    exact = exact.double()
    return ((found.double() - exact).abs().max() / exact.abs().max()).item() if exact.numel() else 0.0


@pytest.fixture(params=["eager", "triton"])
def form(request):
    """One implementation after the other."""
    return functools.partial(upsample_conv, implementation=request.param)


def assert_exact(form, tensors, allowed=1e-13):
    for found, exact in zip(run(form, *tensors), run(upsample_conv_ref, *tensors), strict=True):
        assert found.shape == exact.shape and found.dtype == exact.dtype
        assert error(found, exact) < allowed


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_its_reference(shape, with_bias, memory_format, form, device):
    x, weight, bias, dy = made(*shape, device)
    x, weight = (t.contiguous(memory_format=memory_format) for t in (x, weight))
    assert_exact(form, (x, weight, bias if with_bias else None, dy))


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(1, 6)] * 5), st.sampled_from(FORMATS))
def test_any_small_shape(shape, memory_format):
    x, weight, bias, dy = made(*shape)
    assert_exact(upsample_conv, (x.contiguous(memory_format=memory_format), weight, bias, dy))


def test_strides_do_not_matter(form, device):
    x, weight, bias, dy = made(2, 6, 4, 5, 3, device)
    assert_exact(form, (x.mT.contiguous().mT, weight.flip(0)[::2], bias[::2], dy[:, ::2]))
    assert_exact(form, (x[:, ::2], weight[:, 1::2], bias, dy))
    assert_exact(
        form, (x, weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1), bias, dy[:, :1, :1, :1].expand_as(dy))
    )


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_huge_and_tiny_values(scale, form, device):
    assert_exact(form, made(2, 5, 3, 4, 4, device, scale=scale))


def test_an_empty_batch_stays_in_the_graph(form, device):
    y, *gradients = run(form, *made(0, 5, 3, 4, 2, device))
    assert y.shape == (0, 3, 8, 4)
    assert [tuple(g.shape) for g in gradients] == [(0, 5, 4, 2), (3, 5, 3, 3), (3,)]
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_type_errs_more_than_twice_as_much_as_eager_does(dtype, form, device):
    tensors = made(2, 24, 16, 6, 5, device, dtype, scale=0.5)
    exact = run(upsample_conv_ref, *(t.double() for t in tensors))
    eager = run(lambda x, w, b: F.conv2d(F.interpolate(x, scale_factor=2.0), w, b, padding=1), *tensors)
    for found, peer, value in zip(run(form, *tensors), eager, exact, strict=True):
        assert found.dtype == dtype
        assert error(found, value) <= max(2 * error(peer, value), 4 * torch.finfo(dtype).eps)


def test_gradients_of_first_and_second_order(device):
    x, weight, bias, _ = made(2, 3, 2, 2, 3, device)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(upsample_conv, leaves, nondet_tol=1e-12)
    assert torch.autograd.gradgradcheck(upsample_conv, leaves, nondet_tol=1e-12)
    fused = functools.partial(upsample_conv, implementation="triton")
    assert torch.autograd.gradcheck(fused, leaves, fast_mode=True)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_collapsed_weight_is_the_flipped_one_with_a_box_over_it(memory_format):
    _, weight, _, _ = made(1, 5, 7, 1, 1)
    found = collapse(weight.contiguous(memory_format=memory_format))
    box = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    expected = F.conv2d(weight.flip(2, 3).reshape(35, 1, 3, 3), box, padding=1).reshape(7, 5, 4, 4).transpose(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=1e-15)
    assert found.is_contiguous(memory_format=memory_format)


def test_nan_stays_in_its_neighbourhood(form, device):
    x, weight, bias, _ = made(2, 3, 2, 5, 5, device)
    x[1, 2, 2, 3] = float("nan")
    expected = upsample_conv_ref(x, weight, bias).isnan()
    assert expected.sum() == 2 * 16
    assert torch.equal(form(x, weight, bias).isnan(), expected)


def test_nothing_keeps_the_upsampled_map(form, device):
    x, weight, bias, _ = (t.requires_grad_() for t in made(2, 8, 4, 16, 16, device))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        form(x, weight, bias)
    assert sum(t.numel() for t in kept) <= x.numel() + 16 * 8 * 4


def test_it_repeats_bit_by_bit(form, device):
    tensors = made(4, 24, 16, 6, 5, device, torch.float32)
    for first, second in zip(run(form, *tensors), run(form, *tensors), strict=True):
        assert torch.equal(first, second)


def test_it_compiles_without_a_graph_break(form, device):
    tensors = made(2, 5, 3, 4, 3, device)
    compiled = torch.compile(form, fullgraph=True, backend="aot_eager")
    for found, exact in zip(run(compiled, *tensors), run(upsample_conv_ref, *tensors), strict=True):
        assert error(found, exact) < 1e-13


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        (torch.zeros(3, 4, 4), torch.zeros(2, 3, 3, 3), None, r"x is \(3, 4, 4\); expected \(batch, channels"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(2, 4, 3, 3), None, r"expected \(out_channels, 3, 3, 3\)"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4), None, r"expected \(out_channels, 3, 3, 3\)"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 3, 3), torch.zeros(3), r"expected \(2,\)"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 3, 3).half(), None, "expected torch.float32 as x"),
    ],
)
def test_what_does_not_fit_is_refused(x, weight, bias, message):
    with pytest.raises(ValueError, match=message):
        upsample_conv(x, weight, bias)


def test_an_unknown_implementation_and_another_kernel_size_are_refused():
    x, weight, _, _ = made(1, 3, 2, 2, 2)
    with pytest.raises(ValueError, match="implementation is 'cuda'; expected eager or triton"):
        upsample_conv(x, weight, implementation="cuda")
    with pytest.raises(ValueError, match=r"weight is \(2, 3, 5, 5\)"):
        collapse(torch.zeros(2, 3, 5, 5))


def test_opcheck_finds_nothing(device):
    x, weight, bias, dy = (t.requires_grad_() for t in made(2, 5, 3, 4, 3, device))
    taps = collapse(weight.detach()).requires_grad_()
    torch.library.opcheck(torch.ops.wallclock.upsample_conv, (x, taps, bias))
    torch.library.opcheck(torch.ops.wallclock.upsample_conv_backward, (dy.detach(), x.detach(), taps.detach()))


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", FORMATS)
def test_it_is_faster_than_its_reference_at_a_stage_of_dcgan(memory_format, device):
    """Forward and backward of 128 x 16 x 16 to 64 x 32 x 32, in turns."""
    x, weight, _, dy = (t.to(memory_format=memory_format) if t.ndim == 4 else t
                        for t in made(64, 128, 64, 16, 16, device, torch.float32))  # fmt: skip
    ratios = []
    with numerics(seed=0, keep_heap=True):
        for _ in range(10):
            ours, reference = (
                measure(
                    lambda f=f: run(f, x, weight, None, dy), device=device, budget_s=0.3, min_count=3, queued=True
                ).median_s
                for f in (upsample_conv, upsample_conv_ref)
            )
            ratios.append(ours / reference)
    assert statistics.median(ratios) < 0.9
