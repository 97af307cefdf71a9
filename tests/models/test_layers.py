"""Every switch of an implementation computes what eager does, in every network, and keeps as little as it promises."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wallclock.models.layers import BatchNormAct, Chain, ConvBNAct, InstanceNormAct, Residual, choose
from wallclock.models.networks.darknet import Darknet
from wallclock.models.networks.sprint import Sprint
from wallclock.models.networks.wide_resnet import WideResNet
from wallclock.models.recipes.recipe import Implementations

SWITCHES = {
    "product": Implementations(product_conv=True),
    "norm": Implementations(batch_norm_act="triton"),
    "residual": Implementations(residual="triton"),
    "both": Implementations(batch_norm_act="triton", residual="triton"),
    "all": Implementations(conv_bn_act="triton", batch_norm_act="triton", residual="triton"),
}
NETWORKS = {  # with the edge of the images
    "darknet": (lambda: Darknet(10, num_blocks=(1, 1), base_channels=4), 10),
    "wide_resnet": (lambda: WideResNet(10, blocks=1, widen=1, base_channels=4), 10),
    "sprint": (lambda: Sprint(10, widths=(8, 8, 8)), 20),
}


def results(model, images, weights):
    """Output in training, gradients, running statistics, and the output in evaluation that follows."""
    images = images.clone().requires_grad_()
    y = model.train()(images)
    (y * weights).sum().backward()
    found = {"y": y.detach(), "images": images.grad, **{name: p.grad for name, p in model.named_parameters()}}
    found |= {name: buffer.clone().double() for name, buffer in model.named_buffers()}
    return found | {"evaluated": model.eval()(images).detach()}


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_switch_computes_what_eager_does(network, switch, device, large_tiles):
    torch.manual_seed(0)
    make, edge = NETWORKS[network]
    eager = make().to(device, torch.float64)
    other = copy.deepcopy(eager)
    choose(other, SWITCHES[switch])
    images = torch.randn(4, 3, edge, edge, dtype=torch.float64, device=device)
    weights = torch.randn(4, 10, dtype=torch.float64, device=device)
    expected, found = (results(model, images, weights) for model in (eager, other))
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        if values is None:
            assert found[name] is None, name
        else:
            torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-7, msg=name)


def test_a_residual_that_is_not_to_be_fused_is_added_apart(device):
    torch.manual_seed(0)
    eager = darknet_block(8, device).double()
    other = copy.deepcopy(eager)
    choose(other, Implementations(conv_bn_act="triton"))
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64, device=device)
    torch.testing.assert_close(other(x), eager(x))


def kept_bytes(block, x):
    """Bytes that autograd holds between forward and backward of a block, its parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in block.parameters()}
    own |= {b.untyped_storage().data_ptr() for b in block.buffers()}
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = block(x)
    storages[y.untyped_storage().data_ptr()] = y.untyped_storage()  # the next block's input, which it keeps
    storages.pop(x.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in own)


def darknet_block(channels, device):
    layers = (ConvBNAct(channels, channels // 2, 1, act="leaky_relu", momentum=0.01),)
    layers += (ConvBNAct(channels // 2, channels, 3, act="leaky_relu", momentum=0.01),)
    return Residual(Chain(*layers)).to(device, torch.bfloat16, memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("switch", "save", "share"),
    [("both", "input", 0.755), ("both", "output", 0.505), ("both", "byte", 0.63), ("all", "input", 0.63)],
)
def test_activation_memory_of_a_darknet_block(switch, save, share, device, large_tiles):
    torch.manual_seed(0)
    block = darknet_block(32, device)
    for layer in block.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.float()
    x = torch.randn(8, 32, 16, 16, device=device, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    eager = kept_bytes(block, x)
    choose(block, replace(SWITCHES[switch], batch_norm_save=save))
    assert kept_bytes(block, x) <= share * eager


def test_the_running_statistics_count_their_batches(device):
    layer = BatchNormAct(6, act="relu").to(device)
    choose(layer, SWITCHES["norm"])
    for _ in range(3):
        layer(torch.randn(2, 6, 4, 4, device=device))
    assert layer[0].num_batches_tracked == 3


class ResNetBlock(nn.Module):
    """CycleGAN's, from a padded map to a padded map: each norm writes what the next convolution reads."""

    def __init__(self, channels, affine):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3) for _ in range(2))
        self.first = InstanceNormAct(channels, "relu", pad=1, affine=affine)
        self.second = InstanceNormAct(channels, "none", pad=1, affine=affine)

    def forward(self, padded):
        y = self.first(self.convolutions[0](padded))
        return self.second(self.convolutions[1](y), padded, residual_pad=1)


class PlainBlock(ResNetBlock):
    """The same as CycleGAN's code writes it, from the map before its padding."""

    def forward(self, padded):
        x = padded[:, :, 1:-1, 1:-1]
        first, second = (nn.InstanceNorm2d(x.shape[1], affine=False).to(x.device, x.dtype) for _ in range(2))
        y = F.relu(first(self.convolutions[0](F.pad(x, (1,) * 4, mode="reflect"))))
        return F.pad(x + second(self.convolutions[1](F.pad(y, (1,) * 4, mode="reflect"))), (1,) * 4, mode="reflect")


def block_results(block, x, weights):
    """Output and gradients of two blocks in a row, the first of which takes a padded map."""
    x = x.clone().requires_grad_()
    y = block(block(F.pad(x, (1,) * 4, mode="reflect")))
    (y * weights).sum().backward()
    return {"y": y.detach(), "x": x.grad, **{name: p.grad for name, p in block.named_parameters()}}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("affine", [False, True])
def test_a_resnet_block_with_instance_norm_computes_what_eager_does(affine, memory_format, device):
    torch.manual_seed(0)
    eager = ResNetBlock(6, affine).to(device, torch.float64, memory_format=memory_format)
    fused = copy.deepcopy(eager)
    choose(fused, Implementations(instance_norm_act="triton"))
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64, device=device).contiguous(memory_format=memory_format)
    weights = torch.randn(2, 6, 9, 7, dtype=torch.float64, device=device)
    compared = [block_results(fused, x, weights)]
    if not affine:
        plain = PlainBlock(6, affine).to(device, torch.float64)
        plain.load_state_dict(eager.state_dict())
        compared.append(block_results(plain, x, weights))
    expected = block_results(eager, x, weights)
    for found in compared:
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            # A convolution's bias before a norm has no gradient but rounding.
            torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-6, msg=f"{name}")


def test_a_resnet_block_passes_gradcheck(device):
    torch.manual_seed(0)
    block = ResNetBlock(2, False).to(device, torch.float64)
    choose(block, Implementations(instance_norm_act="triton"))
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,), atol=1e-6, fast_mode=True)
