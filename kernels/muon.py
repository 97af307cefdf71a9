"""Muon: momentum whose update is orthogonalised by a Newton-Schulz iteration.

Shape legend: O output channels, I input channels, H, W kernel height and width; a filter OIHW counts as a matrix
[O, I*H*W].
"""

from collections.abc import Callable, Iterable

import torch

# Quintic coefficients chosen for the steepest slope at zero: singular values land in about [0.7, 1.2], not at one,
# which costs no accuracy (Keller Jordan, https://kellerjordan.github.io/posts/muon/).
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz_ref(matrix: torch.Tensor, steps: int = 3, eps: float = 1e-7) -> torch.Tensor:
    """Replaces the singular values of a matrix by values near one, keeping its singular vectors.

    Args:
        matrix: [M, N], any floating dtype, any device.
        steps: iterations; three suffice for training.
        eps: added to the Frobenius norm, so that a zero matrix stays zero.

    Returns:
        [M, N] in the dtype the iteration ran in: bfloat16 for float32 and bfloat16 input, float64 for float64.

    Raises:
        ValueError: if `matrix` is not two-dimensional.

    Numerics: bfloat16 throughout, as the published recipe; the error is far below the spread the coefficients allow.
    Cost: per step 2*M*M*N + 2*M*M*M + 2*M*M*N operations for M <= N.
    Source: https://kellerjordan.github.io/posts/muon/
    """
    if matrix.ndim != 2:
        raise ValueError(
            f"newton_schulz needs a matrix [M, N], got shape {tuple(matrix.shape)}; flatten a filter to [O, I*H*W]"
        )
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    x = matrix if matrix.dtype == torch.float64 else matrix.bfloat16()
    x = x / (x.norm() + eps)
    tall = x.size(0) > x.size(1)
    if tall:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for convolution filters, with each filter bank rescaled to the norm sqrt(O) before its step.

    Args:
        params: filters OIHW (or matrices), float32.
        lr: step size relative to a bank of norm sqrt(O).
        momentum: of the gradient average, Nesterov form.
        steps: Newton-Schulz iterations.

    Raises:
        ValueError: if a parameter has fewer than two dimensions; biases belong to another optimiser.
    """

    def __init__(self, params: Iterable[torch.Tensor], *, lr: float, momentum: float = 0.6, steps: int = 3) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "steps": steps})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim < 2:
                    raise ValueError(
                        f"Muon orthogonalises matrices, got a parameter of shape {tuple(p.shape)}; give it to SGD"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step on every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                average = state["momentum_buffer"].mul_(group["momentum"]).add_(p.grad)
                direction = p.grad.add(average, alpha=group["momentum"])
                p.mul_(len(p) ** 0.5 / p.norm())
                update = newton_schulz_ref(direction.reshape(len(p), -1), group["steps"])
                p.sub_(group["lr"] * update.view(p.shape).to(p.dtype))
        return loss
