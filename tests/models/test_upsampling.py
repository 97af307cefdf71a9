"""The five upsamplings against what defines them: values, gradients, cost, autocast, and the initialisation of one."""

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from wallclock.models.layers import choose
from wallclock.models.recipes.recipe import Implementations
from wallclock.models.upsampling import UPSAMPLINGS, icnr_, upsample2x

SHAPES = [(2, 3, 5, 4, 6), (1, 5, 1, 1, 1), (3, 24, 7, 3, 2)]  # N, I, O, H, W
WEIGHTS = {"deconv": 16, "nearest": 9, "bilinear": 9, "collapsed": 9, "pixelshuffle": 36}
MULTIPLY_ADDS = {"deconv": 4, "nearest": 9, "bilinear": 9, "collapsed": 4, "pixelshuffle": 9}


def results(layer, x, dy):
    """Value and gradients of input and weight."""
    x = x.clone().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, layer.weight], dy)]


def layers(*kinds, shape, device="cpu", dtype=torch.float64):
    """Layers of one weight, with an input and an output's gradient."""
    n, i, o, h, w = shape
    torch.manual_seed(0)
    made = [upsample2x(kind, i, o).to(device, dtype) for kind in kinds]
    for other in made[1:]:
        other.load_state_dict(made[0].state_dict())
    x = torch.randn(n, i, h, w, dtype=dtype, device=device)
    return made, x, torch.randn(n, o, 2 * h, 2 * w, dtype=dtype, device=device)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("implementation", ["eager", "triton"])
def test_collapsed_equals_nearest(implementation, shape, device):
    (nearest, collapsed), x, dy = layers("nearest", "collapsed", shape=shape, device=device)
    choose(collapsed, Implementations(upsample_conv=implementation))
    for found, exact in zip(results(collapsed, x, dy), results(nearest, x, dy), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", UPSAMPLINGS)
def test_weights_and_multiply_adds_are_those_of_the_table(kind):
    layer = upsample2x(kind, 6, 5)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert layer.weight.numel() == WEIGHTS[kind] * 6 * 5
    with FlopCounterMode(display=False) as counter:
        y = layer(torch.randn(2, 6, 4, 3))
    assert y.shape == (2, 5, 8, 6)
    assert counter.get_total_flops() == 2 * MULTIPLY_ADDS[kind] * 6 * 5 * 2 * 8 * 6


@pytest.mark.parametrize("shape", SHAPES)
def test_pixelshuffle_begins_as_a_convolution_resized_to_nearest_neighbours(shape):
    (layer,), x, _ = layers("pixelshuffle", shape=shape)
    for _ in range(2):
        expected = F.interpolate(F.conv2d(x, layer.weight[::4], padding=1), scale_factor=2)
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
        torch.nn.init.normal_(layer.weight, 0, 0.02)
        assert not torch.allclose(layer(x), F.interpolate(F.conv2d(x, layer.weight[::4], padding=1), scale_factor=2))
        first = layer.weight[::4].clone()
        icnr_(layer.weight)
        assert torch.equal(layer.weight[::4], first)


def test_icnr_wants_four_filters_a_channel():
    with pytest.raises(ValueError, match=r"weight is \(6, 3, 3, 3\); expected four filters"):
        icnr_(torch.zeros(6, 3, 3, 3))


@pytest.mark.parametrize("implementation", ["eager", "triton"])
def test_collapsed_under_autocast_errs_no_more_than_nearest_does(implementation, device):
    (nearest, collapsed), x, dy = layers("nearest", "collapsed", shape=(2, 24, 7, 3, 2), device=device)
    exact = results(nearest, x, dy)
    errors = {}
    for name, layer in (("nearest", nearest), ("collapsed", collapsed)):
        layer = copy.deepcopy(layer).float()
        choose(layer, Implementations(upsample_conv=implementation))
        with torch.autocast(device.type, torch.bfloat16):
            found = results(layer, x.float(), dy.bfloat16())
        assert [t.dtype for t in found] == [torch.bfloat16, torch.float32, torch.float32]
        errors[name] = [((f.double() - e).norm() / e.norm()).item() for f, e in zip(found, exact, strict=True)]
    for ours, theirs in zip(errors["collapsed"], errors["nearest"], strict=True):
        assert ours <= 1.5 * theirs  # Triton's interpreter cuts bf16 off
        assert ours > 1e-4  # it did run in bf16


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(ValueError, match="no upsampling 'biliner'; did you mean 'bilinear'[?] upsamplings: deconv, "):
        upsample2x("biliner", 3, 3)
