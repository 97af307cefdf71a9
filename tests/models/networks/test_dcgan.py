"""DCGAN's networks: the sizes that the published code has, both orders, and what they compute."""

import pytest
import torch
from torch import nn

from wallclock.models.layers import ActBatchNorm, BatchNormAct, choose
from wallclock.models.networks.dcgan import Block, Critic, Generator, MapToScore, NoiseToMap
from wallclock.models.recipes.recipe import Implementations
from wallclock.models.upsampling import UPSAMPLINGS, icnr_


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def kinds(net):
    """The kinds of layers that a network applies, in order."""
    seen = []
    leaves = [m for m in net.modules() if not list(m.children())]
    hooks = [m.register_forward_hook(lambda m, i, o: seen.append(type(m).__name__)) for m in leaves]
    edge = net.layers[0].conv.weight.shape[0] if isinstance(net, Generator) else None
    net(torch.randn(2, edge, 1, 1) if edge else torch.randn(2, 3, 16, 16))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("order", ["paper", "lesson"])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_parameters_are_those_of_the_published_networks(order, extra):
    assert parameters(Generator(order=order, n_extra_layers=extra)) == 3_576_704 + 36_992 * extra
    assert parameters(Critic(order=order, n_extra_layers=extra)) == 2_765_568 + 36_992 * extra


@pytest.mark.parametrize("size", [16, 32, 128])
@pytest.mark.parametrize("order", ["paper", "lesson"])
def test_any_power_of_two_from_16_on(size, order):
    options = {"image_size": size, "base_channels": 4, "n_extra_layers": 1, "order": order}
    images = Generator(noise_channels=7, **options)(torch.randn(3, 7, 1, 1))
    assert images.shape == (3, 3, size, size) and images.abs().max() <= 1
    assert Critic(**options)(images).shape == (3,)


@pytest.mark.parametrize("size", [8, 24, 48, 80])
def test_other_sizes_are_refused(size):
    for network in (Generator, Critic):
        with pytest.raises(ValueError, match=f"image_size is {size}; expected 16, 32, 64"):
            network(image_size=size)


@pytest.mark.parametrize(
    "wrong", [{"order": "conv"}, {"n_extra_layers": -1}, {"base_channels": 0}, {"upsampling": "decon"}]
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="expected|did you mean 'deconv'"):
        Generator(**wrong)


def test_layers_are_in_the_order_of_the_published_code():
    shared = {"image_size": 16, "base_channels": 4, "n_extra_layers": 1}
    up, norm = ["ConvTranspose2d"], ["BatchNorm2d", "ReLU"]
    noise = ["NoiseToMap"]
    assert kinds(Generator(order="paper", **shared)) == [
        *noise, *norm, *up, *norm, "Conv2d", *norm, *up, "Tanh"
    ]  # fmt: skip
    assert kinds(Generator(order="lesson", **shared)) == [
        *noise, *norm[::-1], *up, *norm[::-1], *up, *norm[::-1], *up, "Tanh"
    ]  # fmt: skip
    first, rest = ["Conv2d", "LeakyReLU"], ["BatchNorm2d", "LeakyReLU"]
    assert kinds(Critic(order="paper", **shared)) == [*first, "Conv2d", *rest, "Conv2d", *rest, "MapToScore"]
    assert kinds(Critic(order="lesson", **shared)) == [
        *first, "Conv2d", *rest[::-1], "Conv2d", *rest[::-1], "MapToScore"
    ]  # fmt: skip
    assert kinds(Critic(norm="layer", **shared)) == [
        *first, "Conv2d", "GroupNorm", "LeakyReLU", "Conv2d", "GroupNorm", "LeakyReLU", "MapToScore"
    ]  # fmt: skip
    slopes = {m.negative_slope for m in Critic(**shared).modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.2}
    biased = [m for m in Critic(**shared).modules() if getattr(m, "bias", None) is not None and hasattr(m, "stride")]
    assert biased == []


def test_the_paper_draws_its_weights_and_the_lesson_takes_pytorchs():
    torch.manual_seed(0)
    paper, lesson = Generator(), Generator(order="lesson")
    for net, deviation in ((paper, 0.02), (lesson, (512 * 16) ** -0.5 / 3**0.5)):
        weight = net.layers[0].conv.weight
        assert weight.std().item() == pytest.approx(deviation, rel=0.02)
    gammas = torch.cat([m.weight for m in paper.modules() if isinstance(m, nn.BatchNorm2d)])
    assert gammas.mean().item() == pytest.approx(1, abs=0.005) and gammas.std().item() == pytest.approx(0.02, rel=0.1)
    assert all((m.weight == 1).all() for m in lesson.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("kind", UPSAMPLINGS)
def test_each_upsampling_doubles_and_keeps_its_initialisation(kind):
    torch.manual_seed(0)
    net = Generator(image_size=16, base_channels=4, upsampling=kind)
    assert net(torch.randn(2, 100, 1, 1)).shape == (2, 3, 16, 16)
    weight = net.layers[1].conv.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.25)
    if kind == "pixelshuffle":
        assert torch.equal(weight, icnr_(weight.detach().clone()))


def test_collapsed_trains_like_nearest():
    """The same losses step by step in float64, and the same weights at the end."""
    losses = {}
    for kind in ("nearest", "collapsed"):
        torch.manual_seed(0)
        net = Generator(image_size=16, base_channels=4, upsampling=kind).double()
        target, z = torch.rand(4, 3, 16, 16).double(), torch.randn(4, 100, 1, 1).double()
        optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-3)
        losses[kind] = []
        for _ in range(6):
            optimizer.zero_grad()
            loss = (net(z) - target).square().mean()
            loss.backward()
            optimizer.step()
            losses[kind].append(loss.item())
    assert losses["collapsed"] == pytest.approx(losses["nearest"], rel=1e-10)
    assert losses["nearest"][-1] < losses["nearest"][0]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_products_are_the_convolutions_that_they_replace(memory_format):
    torch.manual_seed(0)
    cases = ((NoiseToMap(5, 6), torch.randn(3, 5, 1, 1)), (MapToScore(6), torch.randn(3, 6, 4, 4)))
    for layer, x in cases:
        layer = layer.double().to(memory_format=memory_format)
        x = x.double().to(memory_format=memory_format).requires_grad_()
        results = []
        for as_product in (False, True):
            layer.as_product = as_product
            y = layer(x)
            weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
            results.append((y, *torch.autograd.grad((y * weights).sum(), (x, layer.weight))))
        for plain, product in zip(*results, strict=True):
            torch.testing.assert_close(product, plain, rtol=1e-12, atol=1e-12)


def test_a_score_depends_on_its_own_image_with_layer_norm_only():
    torch.manual_seed(0)
    images, others = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)
    changed = torch.cat([images[:1], others[1:]])
    for norm, alone in (("layer", True), ("batch", False)):
        critic = Critic(image_size=16, base_channels=4, norm=norm)
        same = torch.allclose(critic(images)[0], critic(changed)[0], rtol=1e-4)
        assert same == alone


@pytest.mark.parametrize("order", ["paper", "lesson"])
def test_kernels_give_the_same_scores_and_gradients(order, device, large_tiles):
    """Norms, activations and convolutions by Triton, in the networks, against PyTorch's."""
    torch.manual_seed(0)
    critic = Critic(image_size=16, base_channels=4, n_extra_layers=1, order=order).to(device)
    images = torch.randn(3, 3, 16, 16, device=device).contiguous(memory_format=torch.channels_last)
    results = []
    buffers = {name: buffer.clone() for name, buffer in critic.named_buffers()}
    for switches in ({}, {"batch_norm_act": "triton", "conv_bn_act": "triton"}):
        for name, buffer in critic.named_buffers():
            buffer.copy_(buffers[name])
        choose(critic, Implementations(**switches))
        critic.zero_grad()
        scores = critic(images)
        scores.square().sum().backward()
        moved = [buffer.clone().float() for buffer in critic.buffers()]
        results.append([scores.detach(), *(p.grad for p in critic.parameters()), *moved])
    for eager, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, eager, rtol=2e-3, atol=2e-4)


def test_the_slope_is_handed_to_the_layers():
    block = Block(nn.Conv2d(3, 4, 3), 4, act="leaky_relu", order="paper")
    assert isinstance(block.rest, BatchNormAct) and block.rest.negative_slope == 0.2
    assert isinstance(Block(nn.Conv2d(3, 4, 3), 4, act="relu", order="lesson").rest, ActBatchNorm)
