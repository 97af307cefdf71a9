"""Every switch of an implementation computes what eager does, in every network, and keeps as little as it promises."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from models.darknet import Darknet
from models.layers import BatchNormAct, Chain, ConvBNAct, Residual, choose
from models.recipes.recipe import Implementations
from models.sprint import Sprint
from models.wide_resnet import WideResNet

SWITCHES = {
    "norm": Implementations(batch_norm_act="triton"),
    "residual": Implementations(residual="triton"),
    "both": Implementations(batch_norm_act="triton", residual="triton"),
    "all": Implementations(conv_bn_act="triton", batch_norm_act="triton", residual="triton"),
}
NETWORKS = {
    "darknet": lambda: Darknet(10, num_blocks=(1, 1), base_channels=4),
    "wide_resnet": lambda: WideResNet(10, blocks=1, widen=1, base_channels=4),
    "sprint": lambda: Sprint(10, widths=(8, 8, 8)),
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
def test_every_switch_computes_what_eager_does(network, switch, device):
    torch.manual_seed(0)
    eager = NETWORKS[network]().to(device, torch.float64)
    other = copy.deepcopy(eager)
    choose(other, SWITCHES[switch])
    images = torch.randn(4, 3, 20, 20, dtype=torch.float64, device=device)
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
def test_activation_memory_of_a_darknet_block(switch, save, share, device):
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
