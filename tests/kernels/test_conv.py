"""Convolutions as products: against PyTorch's in float64, at shapes that fill no tile."""

import pytest
import torch
from comparison import CONVOLUTIONS
from torch.nn import functional as F

from wallclock.kernels import conv
from wallclock.kernels.batch_norm_act import dense


def made(shape, device, dtype=torch.float64):
    """A map, filters, the output and a gradient of it, and PyTorch's gradients."""
    n, c, h, w, k, r, s, stride, padding = shape
    random = torch.Generator().manual_seed(0)
    x, filters = (torch.randn(size, dtype=dtype, generator=random) for size in ((n, c, h, w), (k, c, r, s)))
    x, filters = (dense(t.to(device)).requires_grad_() for t in (x, filters))
    y = F.conv2d(x, filters, stride=stride, padding=padding)
    dy = torch.randn(y.shape, dtype=dtype, generator=random).to(device)
    return x.detach(), filters.detach(), y.detach(), dense(dy), torch.autograd.grad(y, (x, filters), dy)


@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_output_and_gradients_equal_pytorchs(shape, device):
    x, filters, y, dy, (dx, dfilters) = made(shape, device)
    *_, r, s, stride, padding = shape
    where = {"stride": stride, "padding": padding}
    found, _, _ = conv.conv(x, filters, **where)
    torch.testing.assert_close(found, y, rtol=1e-13, atol=1e-13)
    found, _ = conv.conv_transposed(dy, filters, height=x.shape[2], width=x.shape[3], **where)
    torch.testing.assert_close(found, dx, rtol=1e-13, atol=1e-13)
    found = conv.filter_gradient(dy, x, filter_size=(r, s), dtype=x.dtype, **where)
    torch.testing.assert_close(found, dfilters, rtol=1e-13, atol=1e-13)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_filters_gradient_is_the_same_sum_in_any_number_of_splits(device, monkeypatch):
    x, _, _, dy, (_, dfilters) = made((5, 5, 7, 6, 9, 3, 3, 1, 1), device)
    launched = []
    wrapped = conv.jit.filter_gradient_kernel

    class Launch:
        def __getitem__(self, grid):
            launched.append(grid)
            return wrapped[grid]

    monkeypatch.setattr(conv.jit, "filter_gradient_kernel", Launch())
    for programs in (1, 1000):
        monkeypatch.setattr(conv, "PROGRAMS", programs)
        found = conv.filter_gradient(dy, x, filter_size=(3, 3), stride=1, padding=1, dtype=x.dtype)
        torch.testing.assert_close(found, dfilters, rtol=1e-13, atol=1e-13)
        again = conv.filter_gradient(dy, x, filter_size=(3, 3), stride=1, padding=1, dtype=x.dtype)
        assert torch.equal(found, again)
    assert launched[0][1] == 1 and launched[-1][1] > 1


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_statistics_are_those_of_the_output(mean, device):
    n, c, h, w, k = 4, 3, 9, 9, 5
    random = torch.Generator().manual_seed(0)
    x = dense(torch.randn(n, c, h, w, generator=random).to(device))
    filters = dense(torch.randn(k, c, 1, 1, generator=random).to(device))
    filters[:, 0] = 1  # a channel that is `mean` nearly everywhere shifts every output
    x[:, 0] = mean
    y, (means, m2), rows = conv.conv(x, filters, stride=1, padding=0, stats=True)
    counts = torch.full((len(means), 1), float(rows), dtype=torch.float64, device=device)
    counts[-1] = n * h * w - rows * (len(means) - 1)
    assert len(means) > 1
    total = (counts * means.double()).sum(0) / counts.sum()
    var = (m2.double() + counts * (means.double() - total) ** 2).sum(0) / counts.sum()
    exact = y.double().var((0, 2, 3), unbiased=False)
    # A tile's mean is rounded to float32; plain sums of squares would be off by 6% at a mean of 1000 deviations.
    torch.testing.assert_close(var, exact, rtol=1e-4 if mean else 1e-6, atol=0)
    torch.testing.assert_close(total, y.double().mean((0, 2, 3)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_sums_in_float32(dtype, device):
    x, filters, *_ = made((2, 40, 5, 5, 24, 3, 3, 1, 1), device)
    x, filters = (t.to(dtype) for t in (x, filters))
    exact = F.conv2d(x.double(), filters.double(), padding=1)
    found, _, _ = conv.conv(x, filters, stride=1, padding=1)
    torch.testing.assert_close(found.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=2e-5)


def test_tiles_fill_the_machine_and_suit_tensor_cores():
    for rows, columns, inner in [(262144, 64, 32), (1024, 1024, 512), (4, 5, 3), (65536, 128, 64)]:
        for element_bytes in (2, 4):
            cut = conv.tiles(rows, columns, inner, element_bytes)
            assert min(cut.BLOCK_M, cut.BLOCK_N, cut.BLOCK_K) >= 16
            assert cut.BLOCK_M % 64 == 0  # the least that a warp group of sm_90 multiplies
    assert conv.tiles(262144, 128, 64, 2).BLOCK_M == 128
    assert conv.tiles(1024, 1024, 512, 2)[:2] == (64, 64)
