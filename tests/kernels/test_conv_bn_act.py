"""Convolution, batch norm and activation in one: alone, deferred into the next convolution, and folded."""

import pytest
import torch
from comparison import split_off
from torch import nn
from torch.nn import functional as F

from wallclock.kernels import conv
from wallclock.kernels.batch_norm_act import BatchNorm
from wallclock.kernels.conv_bn_act import Deferred, conv_bn_act, conv_bn_act_ref, convolved, deferred

SLOPE = 0.1
NAMES = ("x", "filters", "weight", "bias", "residual")
# shape of x, K, R, stride
SHAPES = [((2, 5, 7, 6), 24, 3, 1), ((2, 24, 5, 3), 5, 1, 1), ((3, 3, 9, 8), 7, 3, 2), ((2, 4, 1, 1), 3, 3, 1)]


def made(shape, k, r, stride, device, dtype=torch.float64, seed=0):
    """Input, filters, gamma, beta and residual, as leaves of a graph."""
    random = torch.Generator().manual_seed(seed)
    n, c, h, w = shape
    p, q = (conv.output_size(edge, r, stride, r // 2) for edge in (h, w))
    found = [
        torch.randn(size, generator=random, dtype=torch.float64)
        for size in (shape, (k, c, r, r), (k,), (k,), (n, k, p, q))
    ]
    vectors = torch.float64 if dtype == torch.float64 else torch.float32
    return [t.to(device, vectors if t.ndim == 1 else dtype).requires_grad_() for t in found]


def run(function, x, filters, weight, bias, residual, *, r, stride, **options):
    """Output, gradients and running statistics."""
    k, wide = len(weight), torch.promote_types(x.dtype, torch.float32)
    running = [torch.full((k,), 0.5, dtype=wide, device=x.device), torch.full((k,), 2.0, dtype=wide, device=x.device)]
    fields, others = split_off(
        BatchNorm, {"act": "leaky_relu", "negative_slope": SLOPE, "residual": residual} | options
    )
    y = function(x, filters, BatchNorm(weight, bias, *running, **fields), stride=stride, padding=r // 2, **others)
    leaves = [t for t in (x, filters, weight, bias, residual) if t is not None]
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(y)
    return y.detach(), *torch.autograd.grad(y, leaves, dy), *running


def assert_same(ours, reference, running=False):
    """Equal in float64; the weights of running statistics are float32 numbers in any kernel."""
    for place, (found, expected) in enumerate(zip(ours, reference, strict=True)):
        allowed = 1e-7 if running and place >= len(reference) - 2 else 1e-11
        torch.testing.assert_close(found, expected, rtol=allowed, atol=allowed)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("shape", "act"),
    [
        pytest.param(shape, act, marks=() if place % 3 == at else pytest.mark.slow)
        for place, shape in enumerate(SHAPES)
        for at, act in enumerate(("leaky_relu", "gelu", "none"))
    ],
)
def test_it_equals_its_reference(shape, act, training, device):
    tensors = made(*shape, device)
    options = {"r": shape[2], "stride": shape[3], "act": act, "training": training}
    assert_same(run(conv_bn_act, *tensors, **options), run(conv_bn_act_ref, *tensors, **options), running=True)


@pytest.mark.parametrize("layout", ["nchw", "strided"])
def test_any_layout_of_the_input_is_right(layout, device):
    x, *others = made((2, 5, 7, 6), 8, 3, 1, device)
    given = x.detach().contiguous() if layout == "nchw" else x.detach().repeat(1, 1, 1, 2)[..., ::2]
    x_as_given = given.requires_grad_()
    reference = run(conv_bn_act_ref, x_as_given, *others, r=3, stride=1)
    assert_same(run(conv_bn_act, x_as_given, *others, r=3, stride=1), reference, running=True)


def block(function, x, tensors, **first):
    """Darknet's residual block; `first` is given to its first convolution."""
    norms = (BatchNorm(*vectors, act="leaky_relu", negative_slope=SLOPE) for vectors in (tensors[1:3], tensors[4:]))
    h = function(x, tensors[0], next(norms), **first)
    return function(h, tensors[3], next(norms), padding=1, residual=x)


def block_tensors(c, device, dtype=torch.float64):
    _, *first, _ = made((2, c, 5, 4), c // 2, 1, 1, device, dtype, seed=1)
    x, *_ = made((2, c, 5, 4), c, 1, 1, device, dtype, seed=2)
    _, *second, _ = made((2, c // 2, 5, 4), c, 3, 1, device, dtype, seed=3)
    return x, [*first, *second]


def test_a_whole_darknet_block_passes_gradcheck_with_the_norm_in_the_next_convolution(device):
    x, tensors = block_tensors(6, device)

    def ours(x, *tensors):
        return block(conv_bn_act, x, tensors, defer=True)

    y, expected = ours(x, *tensors), block(conv_bn_act_ref, x, tensors)
    dy = torch.randn_like(expected)
    gradients = (torch.autograd.grad(out, (x, *tensors), dy) for out in (y, expected))
    assert_same((y, *next(gradients)), (expected, *next(gradients)))
    assert torch.autograd.gradcheck(ours, (x, *tensors), fast_mode=True)


def test_padding_applies_after_the_activation(device):
    """Zeros around the map before norm and activation would be act(beta), which is not zero."""
    x, filters, weight, bias, _ = made((2, 4, 4, 4), 4, 3, 1, device)
    with torch.no_grad():
        y, _ = convolved(deferred(x, BatchNorm(weight, bias + 5, act="relu")), filters, padding=1)
        activated = F.relu(F.batch_norm(x, None, None, weight, bias + 5, True))
        torch.testing.assert_close(y, F.conv2d(activated, filters, padding=1), rtol=1e-11, atol=1e-11)
        before = F.relu(F.pad(F.batch_norm(x, None, None, weight, bias + 5, True), (1,) * 4, value=5))
        assert not torch.allclose(y, F.conv2d(before, filters))


@pytest.mark.parametrize("act", ["relu", "gelu", "silu"])
def test_a_norm_alone_can_be_left_to_the_convolution(act, device):
    x, filters, weight, bias, _ = made((2, 5, 6, 5), 8, 3, 1, device)
    running = [torch.zeros(5, dtype=x.dtype, device=device), torch.ones(5, dtype=x.dtype, device=device)]
    expected_running = [t.clone() for t in running]
    gamma, beta = (t[:5].detach().clone().requires_grad_() for t in (weight, bias))
    y, table = convolved(deferred(x, BatchNorm(gamma, beta, *running, act=act)), filters, padding=1)
    z = F.batch_norm(x, *expected_running, gamma, beta, True)
    expected = F.conv2d({"relu": F.relu, "gelu": F.gelu, "silu": F.silu}[act](z), filters, padding=1)
    dy = torch.randn_like(expected)
    found, wanted = (torch.autograd.grad(out, (x, filters, gamma, beta), dy) for out in (y, expected))
    assert_same((y, *found, *running), (expected, *wanted, *expected_running), running=True)
    assert table.numel() == 0


def test_what_is_deferred_can_be_applied_after_all(device):
    tensors = made((2, 5, 7, 6), 8, 3, 1, device)

    def in_two_steps(*arguments, residual, **options):
        waiting = conv_bn_act(*arguments, defer=True, **options)
        assert isinstance(waiting, Deferred)
        return waiting.applied(residual)

    assert_same(*(run(f, *tensors, r=3, stride=1) for f in (in_two_steps, conv_bn_act_ref)), running=True)


def test_without_gradients_evaluation_is_one_product(device, monkeypatch):
    tensors = [t.detach() for t in made((2, 5, 7, 6), 8, 3, 1, device)]
    x, filters, weight, bias, residual = tensors
    running = [torch.full((8,), 0.5, dtype=x.dtype, device=device), torch.full((8,), 2.0, dtype=x.dtype, device=device)]
    norm = BatchNorm(weight, bias, *running, training=False, act="leaky_relu", negative_slope=SLOPE)
    expected = conv_bn_act_ref(x, filters, norm, residual=residual, padding=1)
    monkeypatch.setattr("wallclock.kernels.conv_bn_act.batch_norm_act", None)  # what would follow the product otherwise
    with torch.no_grad():
        found = conv_bn_act(x, filters, norm, residual=residual, padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_statistics_hold_where_the_mean_is_a_thousand_deviations(device):
    x, filters, weight, bias, _ = made((8, 4, 6, 6), 5, 1, 1, device, torch.float32)
    with torch.no_grad():
        x[:, 0], filters[:, 0] = 1000, 1
        filters[:, 1:] *= 0.5
        exact = conv_bn_act_ref(x.double(), filters.double(), BatchNorm(weight.double(), bias.double()))
        rounded = F.batch_norm(F.conv2d(x, filters).double(), None, None, weight.double(), bias.double(), True)
        found = conv_bn_act(x, filters, BatchNorm(weight, bias))
    allowed = 2 * (rounded - exact).abs().max() + 2e-4  # a float32 sum near 1000 has steps of 6e-5
    assert (found.double() - exact).abs().max() <= allowed
    assert (found.double() - rounded).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_errs_no_more_than_pytorch_twice(dtype, device):
    tensors = made((4, 24, 6, 6), 16, 3, 1, device, dtype)
    exact = run(conv_bn_act_ref, *(t.detach().double().requires_grad_() for t in tensors), r=3, stride=1)

    def eager(x, filters, norm, *, stride, padding, residual):
        weight, bias, *running = norm[:4]
        z = F.batch_norm(F.conv2d(x, filters, None, stride, padding), *running, weight, bias, True)
        return F.leaky_relu(z, norm.negative_slope) + residual

    ours, theirs = (run(f, *tensors, r=3, stride=1) for f in (conv_bn_act, eager))
    for found, other, expected in zip(ours, theirs, exact, strict=True):
        size = expected.abs().max()
        error, allowed = ((t.double() - expected).abs().max() / size for t in (found, other))
        assert error <= 2 * allowed + 2 * torch.finfo(dtype).eps


def test_it_repeats_to_the_bit_and_nan_stays(device):
    tensors = made((4, 5, 7, 6), 8, 3, 1, device, torch.float32)
    first, second = (run(conv_bn_act, *tensors, r=3, stride=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with torch.no_grad():
        tensors[0][0, 0, 0, 0] = float("nan")
    y, *_ = run(conv_bn_act, *tensors, r=3, stride=1)
    assert y.isnan().all()  # the statistics of every channel have seen it


def test_an_empty_batch_stays_connected_and_leaves_statistics_alone(device):
    tensors = made((0, 5, 7, 6), 8, 3, 1, device)
    y, dx, dfilters, *_, mean, var = run(conv_bn_act, *tensors, r=3, stride=1)
    assert y.shape == (0, 8, 7, 6) and dx.shape == (0, 5, 7, 6)
    assert (dfilters == 0).all() and (mean == 0.5).all() and (var == 2).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 5, 4)}, r"needs a floating \[N, C, H, W\]"),
        ({"filters": torch.zeros(8, 4, 3, 3)}, r"expected \[K, 5, R, S\]"),
        ({"filters": torch.zeros(8, 5, 9, 9)}, "do not fit on a map"),
        ({"residual": torch.zeros(2, 8, 3, 4)}, "residual is"),
        ({"residual": torch.zeros(2, 8, 4, 4), "defer": True}, "takes no residual"),
        ({"training": False}, "needs running statistics"),
        ({"stride": 0}, "stride is 0"),
    ],
)
def test_what_does_not_fit_is_refused(change, message, device):
    fields, others = split_off(BatchNorm, change)
    given = {"x": torch.zeros(2, 5, 4, 4), "filters": torch.zeros(8, 5, 3, 3), "padding": 1} | others
    given = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in given.items()}
    with pytest.raises(ValueError, match=message):
        conv_bn_act(norm=BatchNorm(**fields), **given)


def test_one_value_a_channel_is_refused_in_training(device):
    x, filters = torch.zeros(1, 5, 1, 1, device=device), torch.zeros(8, 5, 1, 1, device=device)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        conv_bn_act(x, filters, BatchNorm())


def test_a_block_compiles_without_a_graph_break(device):
    x, tensors = block_tensors(4, device)

    def ours(x, *tensors):
        return block(conv_bn_act, x, tensors, defer=True)

    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, *tensors), ours(x, *tensors))


def test_a_frozen_gamma_and_an_input_without_gradient_cost_none(device):
    x, filters, weight, bias, _ = made((2, 5, 4, 4), 6, 3, 1, device)
    y = conv_bn_act(x.detach(), filters, BatchNorm(weight.detach(), bias), padding=1)
    (dfilters,) = torch.autograd.grad(y.square().sum(), (filters,))
    z = F.batch_norm(nn.functional.conv2d(x.detach(), filters, padding=1), None, None, weight.detach(), bias, True)
    torch.testing.assert_close(dfilters, torch.autograd.grad(z.square().sum(), (filters,))[0])
