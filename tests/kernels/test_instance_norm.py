import pytest
import torch
from torch.nn import functional as F

from wallclock.kernels.instance_norm import instance_norm


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(1, 5, 7, 3), (3, 4, 1, 9), (2, 6, 5, 4)])
def test_it_is_pytorchs(shape, affine, device):
    torch.manual_seed(0)
    x = 3 + torch.randn(shape, dtype=torch.float64, device=device)
    weight, bias = torch.randn(2, shape[1], dtype=torch.float64, device=device) if affine else (None, None)
    ours = instance_norm(x, weight, bias, eps=1e-3)
    torch.testing.assert_close(ours, F.instance_norm(x, weight=weight, bias=bias, eps=1e-3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_has_the_right_gradient_whatever_layout_the_incoming_one_has(n, memory_format, device):
    """`F.instance_norm` has not, for one image."""
    torch.manual_seed(0)
    x = torch.randn(n, 6, 5, 4, dtype=torch.float64, device=device).requires_grad_()
    dy = torch.randn(n, 6, 5, 4, dtype=torch.float64, device=device)
    (dx,) = torch.autograd.grad(instance_norm(x), x, dy.contiguous(memory_format=memory_format))
    var, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    (exact,) = torch.autograd.grad((x - mean) / (var + 1e-5).sqrt(), x, dy)
    torch.testing.assert_close(dx, exact, rtol=1e-12, atol=1e-12)
