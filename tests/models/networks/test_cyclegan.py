"""CycleGAN's networks: the published sizes, and what each layer leaves to the next."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wallclock.models.layers import choose
from wallclock.models.networks.cyclegan import PatchDiscriminator, ResnetGenerator
from wallclock.models.recipes.cyclegan import CycleGanImplementations


def published_generator(net):
    """The published layers with a generator's weights, each padding where the published code has it."""
    convs = iter([layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)])

    def norm(z):
        var, mean = torch.var_mean(z, (2, 3), correction=0, keepdim=True)
        return (z - mean) / (var + 1e-5).sqrt()

    def reflected(x, pad):
        return F.pad(x, (pad,) * 4, mode="reflect")

    def forward(x):
        x = F.relu(norm(next(convs)(reflected(x, 3))))
        for _ in range(2):
            x = F.relu(norm(next(convs)(x)))
        for _ in range(sum("conv1" in name for name, _ in net.named_modules())):
            y = F.relu(norm(next(convs)(reflected(x, 1))))
            x = x + norm(next(convs)(reflected(y, 1)))
        for _ in range(2):
            x = F.relu(norm(next(convs)(x)))
        return torch.tanh(next(convs)(reflected(x, 3)))

    return forward


@pytest.mark.parametrize(("blocks", "count"), [(9, 11_378_179), (6, 7_837_699)])
def test_the_generator_has_the_published_parameters(blocks, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in ResnetGenerator(blocks=blocks).parameters()) == count


def test_the_discriminator_has_the_published_parameters_and_sees_70_pixels():
    with torch.device("meta"):
        assert sum(p.numel() for p in PatchDiscriminator().parameters()) == 2_764_737
        assert PatchDiscriminator()(torch.empty(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    net = PatchDiscriminator(channels=2)
    for layer in net.modules():  # instance norm sees the whole map
        if type(layer).__name__ == "InstanceNormAct":
            layer.forward = lambda x: x
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    scores = net(images)
    scores[0, 0, 7, 7].backward()
    rows, columns = images.grad.abs().sum((0, 1)).nonzero(as_tuple=True)
    assert (rows.max() - rows.min() + 1).item() == (columns.max() - columns.min() + 1).item() == 70


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("n", [1, 2])
def test_folded_paddings_compute_what_the_published_layers_do(n, memory_format):
    torch.manual_seed(0)
    net = ResnetGenerator(blocks=2, channels=4).double()
    images = torch.randn(n, 3, 16, 12, dtype=torch.float64)
    exact = torch.autograd.grad(published_generator(net)(images).square().sum(), list(net.parameters()))
    net.to(memory_format=memory_format)
    y = net(images.contiguous(memory_format=memory_format))
    torch.testing.assert_close(y, published_generator(net)(images), rtol=1e-10, atol=1e-10)
    for found, expected in zip(torch.autograd.grad(y.square().sum(), list(net.parameters())), exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def test_kernels_compute_the_same(device):
    torch.manual_seed(0)
    for net in (ResnetGenerator(blocks=1, channels=2), PatchDiscriminator(channels=2)):
        net = net.to(device)
        images = torch.randn(1, 3, 24, 24, device=device).contiguous(memory_format=torch.channels_last)
        results = []
        for implementation in ("eager", "triton"):
            choose(net, CycleGanImplementations(instance_norm_act=implementation))
            net.zero_grad()
            y = net(images)
            y.square().sum().backward()
            results.append([y.detach(), *(p.grad.clone() for p in net.parameters() if p.ndim == 4)])
        for eager, fused in zip(*results, strict=True):
            assert (fused - eager).norm() <= 1e-3 * eager.norm()


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="expected at least 1 of each"):
        ResnetGenerator(blocks=0)
    with pytest.raises(ValueError, match="channels is 0"):
        PatchDiscriminator(channels=0)
