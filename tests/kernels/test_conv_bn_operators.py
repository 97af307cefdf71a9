"""The operators as the compiler sees them, and the table of a norm against its definition."""

import torch

from wallclock.kernels import conv_bn_operators  # noqa: F401  registers the operators

SLOPE = 0.1


def test_the_table_of_a_norm_is_that_of_its_definition(device):
    torch.manual_seed(0)
    x = 3 + torch.randn(4, 5, 6, 7, dtype=torch.float64, device=device)
    gamma, beta = torch.randn(2, 5, dtype=torch.float64, device=device).unbind()
    table = torch.ops.wallclock.norm_table(x, gamma, beta, 1e-5)
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    scale = gamma * (variance + 1e-5).rsqrt()
    torch.testing.assert_close(table[2], mean)
    torch.testing.assert_close(table[0], scale)
    applied = table[0][:, None, None] * x + table[1][:, None, None]
    torch.testing.assert_close(applied, scale[:, None, None] * (x - mean[:, None, None]) + beta[:, None, None])


def test_opcheck_finds_nothing(device):
    x, residual = (torch.randn(2, c, 4, 3, dtype=torch.float64, device=device) for c in (5, 6))
    filters = torch.randn(6, 5, 3, 3, dtype=torch.float64, device=device)
    weight, bias = torch.randn(2, 6, dtype=torch.float64, device=device).unbind()
    gamma, beta = (t[:5].clone().requires_grad_() for t in (weight, bias))
    x, filters = x.requires_grad_(), filters.requires_grad_()
    table = torch.ops.wallclock.norm_table(x.detach(), gamma.detach(), beta.detach(), 1e-5)
    torch.library.opcheck(torch.ops.wallclock.norm_table, (x.detach(), gamma.detach(), beta.detach(), 1e-5))
    norm = (table, gamma, beta, "leaky_relu", SLOPE)
    for given in (norm, (None, None, None, "none", 0.0)):
        arguments = (x, filters, *given, 1, 1, True, weight.detach(), bias.detach(), 1e-5)
        torch.library.opcheck(torch.ops.wallclock.conv_bn, arguments)
    dy = torch.randn(2, 6, 4, 3, dtype=x.dtype, device=device)
    arguments = (dy, x.detach(), filters.detach(), table, None, None, "leaky_relu", SLOPE, 1, 1, True, True)
    torch.library.opcheck(torch.ops.wallclock.conv_bn_backward, arguments)
    running = (torch.zeros(6, dtype=x.dtype, device=device), torch.ones(6, dtype=x.dtype, device=device))
    arguments = (x, filters, weight, bias, *running, False, 0.1, 1e-5, "leaky_relu", SLOPE, residual, 1, 1)
    detached = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments]
    torch.library.opcheck(torch.ops.wallclock.conv_bn_act_folded, tuple(detached))
