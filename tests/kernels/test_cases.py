"""The cases of DCGAN and CycleGAN are what their published layers give, worked out by PyTorch from those lists."""

import torch
from torch import nn
from torch.nn import functional as F

from wallclock.kernels.cases import SPECS
from wallclock.kernels.cases.rmsprop_clamp import dcgan_shapes

NGF, NOISE, BATCH = 64, 100, 64


def generator():
    """The paper's, for 64 pixels with one extra layer; no biases."""
    layers = []
    widths = (8 * NGF, 4 * NGF, 2 * NGF, NGF)
    for place, (before, after) in enumerate(zip((NOISE, *widths), widths, strict=False)):
        stride, padding = (1, 0) if place == 0 else (2, 1)
        layers += [nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    layers += [nn.Conv2d(NGF, NGF, 3, 1, 1, bias=False), nn.BatchNorm2d(NGF), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(NGF, 3, 4, 2, 1, bias=False), nn.Tanh())


def critic():
    """The paper's: no norm after the first convolution."""
    layers = [nn.Conv2d(3, NGF, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
    layers += [nn.Conv2d(NGF, NGF, 3, 1, 1, bias=False), nn.BatchNorm2d(NGF), nn.LeakyReLU(0.2)]
    for before, after in zip((NGF, 2 * NGF, 4 * NGF), (2 * NGF, 4 * NGF, 8 * NGF), strict=True):
        layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(8 * NGF, 1, 4, 1, 0, bias=False))


def act_of(layer):
    if isinstance(layer, nn.LeakyReLU):
        return "leaky_relu", layer.negative_slope
    return ("relu" if isinstance(layer, nn.ReLU) else "none"), None


def norms_of(network, x):
    """Shapes that norms take, each with the activation after it and its slope; and the network's output."""
    seen = set()
    for layer, following in zip(network, [*network[1:], None], strict=True):
        if isinstance(layer, nn.BatchNorm2d | nn.InstanceNorm2d):
            seen.add((tuple(x.shape), *act_of(following)))
        x = layer(x)
    return seen, x


def test_batch_norms_are_those_of_the_dcgan():
    with torch.device("meta"):
        made, images = norms_of(generator(), torch.empty(BATCH, NOISE, 1, 1))
        judged, scores = norms_of(critic(), images)
    assert images.shape == (BATCH, 3, 64, 64) and scores.shape == (BATCH, 1, 1, 1)
    cases = [case for case in SPECS["batch_norm_act"].cases if case.network == "dcgan"]
    assert {(c.shape, c.options["act"], c.options.get("negative_slope")) for c in cases} == made | judged


def test_the_optimizers_tensors_are_those_of_the_dcgan():
    cases = {case.network: dcgan_shapes(case.shape) for case in SPECS["rmsprop_clamp"].cases}
    counts = {"generator": 3_576_704 + 36_992, "critic": 2_765_568 + 36_992}  # published, and an extra layer
    for name, network in (("generator", generator()), ("critic", critic())):
        shapes = [tuple(p.shape) for p in network.parameters()]
        assert sorted(cases[name]) == sorted(shapes)
        assert sum(torch.Size(shape).numel() for shape in shapes) == counts[name]


def test_upsampling_stages_are_the_generators_strided_ones():
    stages = []
    with torch.device("meta"):
        x = torch.empty(BATCH, NOISE, 1, 1)
        for layer in generator():
            if isinstance(layer, nn.ConvTranspose2d) and layer.stride == (2, 2):
                stages.append((tuple(x.shape), layer.out_channels))
            x = layer(x)
    spec = SPECS["upsample_conv"]
    cases = [case for case in spec.cases if case.network == "dcgan64"]
    weights = [spec.inputs(case, torch.float32, torch.device("cpu"))["weight"] for case in cases]
    assert [(c.shape, w.shape[0]) for c, w in zip(cases, weights, strict=True)] == stages


def cyclegan_norms():
    """(shape, activation, padding for the next convolution, residual's padding or None) of both networks at 256 px."""
    seen = set()

    def norm(x, act, pad=0, residual_pad=None):
        seen.add((tuple(x.shape), act, pad, residual_pad))
        return F.pad(x, (pad,) * 4, mode="reflect") if pad else x

    x = nn.Conv2d(3, 64, 7)(F.pad(torch.empty(1, 3, 256, 256), (3,) * 4, mode="reflect"))
    x = norm(x, "relu")
    x = norm(nn.Conv2d(64, 128, 3, 2, 1)(x), "relu")
    x = norm(nn.Conv2d(128, 256, 3, 2, 1)(x), "relu", 1)
    for block in range(9):
        x = norm(nn.Conv2d(256, 256, 3)(x), "relu", 1)
        x = norm(nn.Conv2d(256, 256, 3)(x), "none", int(block < 8), 1)
    x = norm(nn.ConvTranspose2d(256, 128, 3, 2, 1, 1)(x), "relu")
    x = norm(nn.ConvTranspose2d(128, 64, 3, 2, 1, 1)(x), "relu", 3)
    x = nn.Conv2d(64, 3, 7)(x)
    assert x.shape == (1, 3, 256, 256)
    x = nn.Conv2d(3, 64, 4, 2, 1)(x)
    for before, after, stride in ((64, 128, 2), (128, 256, 2), (256, 512, 1)):
        x = norm(nn.Conv2d(before, after, 4, stride, 1)(x), "leaky_relu")
    assert nn.Conv2d(512, 1, 4, 1, 1)(x).shape == (1, 1, 30, 30)
    return seen


def test_instance_norms_and_sums_are_those_of_the_cyclegan():
    with torch.device("meta"):
        expected = cyclegan_norms()
    cases = SPECS["instance_norm_act"].cases
    assert {(c.shape, c.options["act"], c.options["pad"], c.options.get("residual_pad")) for c in cases} == expected
    sums = {shape for shape, *_, residual_pad in expected if residual_pad is not None}
    assert {case.shape for case in SPECS["residual"].cases if case.network == "cyclegan"} == sums
