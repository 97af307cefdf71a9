import re

import pytest
import torch
from comparison import CONVOLUTIONS
from torch.nn import functional as F

from wallclock.kernels.cases import SPECS
from wallclock.kernels.product_conv import product_conv, unfolded, worth_it


def gradients(conv, x, filters, stride, padding, dy):
    x, filters = x.detach().requires_grad_(), filters.detach().requires_grad_()
    y = conv(x, filters, stride=stride, padding=padding)
    return y.detach(), *torch.autograd.grad(y, (x, filters), dy(y))


def plain(x, filters, *, stride, padding):
    return F.conv2d(x, filters, None, stride, padding)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous", "strided"])
@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_it_is_pytorchs_convolution_with_its_gradients(shape, layout, device):
    n, c, h, w, k, r, s, stride, padding = shape
    torch.manual_seed(0)
    wide = torch.randn(n, c, h, 2 * w, dtype=torch.float64, device=device)
    x = wide[..., ::2] if layout == "strided" else wide[..., :w].contiguous()
    x = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
    filters = torch.randn(k, c, r, s, dtype=torch.float64, device=device)
    random = torch.randn(4000, dtype=torch.float64, device=device)

    def dy(y):
        return random[: y.numel()].view(y.shape[1], y.shape[0], *y.shape[2:]).transpose(0, 1)

    found = gradients(product_conv, x, filters, stride, padding, dy)
    for ours, exact in zip(found, gradients(plain, x, filters, stride, padding, dy), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


def test_a_filters_place_is_a_row(device):
    x = torch.arange(2 * 2 * 3 * 3.0, device=device).view(2, 2, 3, 3)
    rows = unfolded(x, (2, 2), stride=1, padding=0)
    assert rows.shape == (8, 8)
    # The second image's last place: its four pixels in order, both channels of each.
    corner = x[1, :, 1:, 1:].permute(1, 2, 0).reshape(-1)
    assert torch.equal(rows[-1], corner)
    assert unfolded(x.contiguous(memory_format=torch.channels_last), (1, 1), stride=1, padding=0).shape == (18, 2)


def test_what_is_not_wanted_is_not_computed(device):
    filters = torch.randn(4, 3, 3, 3, device=device)
    x = torch.randn(2, 3, 4, 4, device=device)
    trained = filters.clone().requires_grad_()
    product_conv(x, trained, stride=1, padding=1).sum().backward()
    assert x.grad is None and trained.grad is not None
    read = x.clone().requires_grad_()
    product_conv(read, filters, stride=1, padding=1).sum().backward()
    assert read.grad is not None


def test_a_second_derivative_is_refused(device):
    filters = torch.randn(4, 3, 3, 3, device=device, requires_grad=True)
    y = product_conv(torch.randn(2, 3, 4, 4, device=device), filters, stride=1, padding=1)
    (gradient,) = torch.autograd.grad(y.square().sum(), filters, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_it_compiles_whole(device):
    if device.type == "cuda":
        pytest.skip("the backend that compiles nothing is enough to see that Dynamo takes it")
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    filters = torch.randn(4, 3, 3, 3)
    compiled = torch.compile(product_conv, backend="aot_eager", fullgraph=True)
    found = gradients(compiled, x, filters, 1, 1, torch.ones_like)
    for ours, exact in zip(found, gradients(plain, x, filters, 1, 1, torch.ones_like), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("edge", "stride", "trained", "worth"),
    [(8, 1, True, True), (9, 1, True, False), (16, 2, True, True), (8, 1, False, False)],
)
def test_it_is_for_small_maps_whose_filters_are_trained(edge, stride, trained, worth):
    filters = torch.empty(4, 3, 3, 3, device="meta", requires_grad=trained)
    x = torch.empty(2, 3, edge, edge, device="meta")
    assert worth_it(x, filters, stride, 1) is worth
    with torch.no_grad():
        assert not worth_it(x, filters, stride, 1)


@pytest.mark.parametrize("case", SPECS["product_conv"].cases, ids=lambda case: case.name)
def test_the_cases_are_small_maps(case):
    k, r, stride = map(int, re.findall(r"\d+", case.options["form"]))
    filters = torch.empty(k, case.shape[1], r, r, device="meta", requires_grad=True)
    assert worth_it(torch.empty(case.shape, device="meta"), filters, stride, r // 2)
