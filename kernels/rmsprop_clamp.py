"""RMSprop with the weight clamp of a WGAN's critic, over all parameters in one launch."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from wallclock.kernels.multi_tensor import aligned, lying_as, table
from wallclock.kernels.operator import operator
from wallclock.kernels.optimizer import Implementation, OneStateOptimizer, Rate, Tensors, check_lists, number_and_tensor

# Elements that a program handles. Four accesses of 16 bytes a thread would be 2048, and leave small tensors half empty.
BLOCK = 1024


def rmsprop_clamp_ref(
    params: Tensors, grads: Tensors, square_avgs: Tensors, *, lr: Rate, alpha: float, eps: float, clamp: float | None
) -> None:
    """Defines a step, tensor by tensor and in place: torch's RMSprop, then the clamp.

    Args:
        params: floating tensors of any shape; overwritten.
        grads: gradients of the parameters.
        square_avgs: running averages of the squared gradients; overwritten.
        lr: learning rate; see `kernels.optimizer.Rate`.
        alpha: decay of the running average.
        eps: number added to the average's root.
        clamp: bound on the parameters, which end in [-clamp, clamp], while NaN stays; None for no clamp.
    """
    for p, g, v in zip(params, grads, square_avgs, strict=True):
        v.copy_(alpha * v + (1 - alpha) * g * g)
        p.sub_(lr * g / (v.sqrt() + eps))
        if clamp is not None:
            p.copy_(torch.where(p > clamp, clamp, torch.where(p < -clamp, -clamp, p)))


def rmsprop_clamp_foreach_(
    params: Tensors, grads: Tensors, square_avgs: Tensors, *, lr: Rate, alpha: float, eps: float, clamp: float | None
) -> None:
    """Takes the step of `rmsprop_clamp_ref` with the foreach operations of `torch.optim.RMSprop(foreach=True)`.

    Cost: 52 bytes a float32 parameter, and 16 for the clamp.
    """
    torch._foreach_mul_(square_avgs, alpha)
    torch._foreach_addcmul_(square_avgs, grads, grads, value=1 - alpha)
    average = torch._foreach_sqrt(square_avgs)
    torch._foreach_add_(average, eps)
    if isinstance(lr, Tensor):
        torch._foreach_div_(average, -lr)
        torch._foreach_addcdiv_(params, grads, average)
    else:
        torch._foreach_addcdiv_(params, grads, average, value=-lr)
    if clamp is not None:
        torch._foreach_clamp_min_(params, -clamp)
        torch._foreach_clamp_max_(params, clamp)


@torch.no_grad()
def rmsprop_clamp_(
    params: Tensors, grads: Tensors, square_avgs: Tensors, *, lr: Rate, alpha: float, eps: float, clamp: float | None
) -> None:
    """Takes the step of `rmsprop_clamp_ref` in one Triton launch over all tensors, which a CUDA graph can capture.

    A table on the device holds the tensors' addresses. Each call looks it up by these, and copies it to the device
    when they are new, so that gradients may be dropped and made again. A capture needs the table beforehand, and its
    replays read the gradients where they were: take a step before it and keep their memory with
    `zero_grad(set_to_none=False)`.

    The arguments are those of `rmsprop_clamp_ref` in float32. Each parameter is dense in memory (contiguous,
    channels-last, any order), each average lies in its parameter's order, and a gradient in another is copied. A graph
    replays a learning rate that is a number as it was at its capture.

    Raises:
        ValueError: if a tensor is not float32, not dense, or does not fit the others; or if a graph is being captured
            and a tensor has moved since the last step.

    Numerics: float32, rounded as torch's CUDA kernels round: a square root and a quotient without approximation.
    Cost: reads three tensors and writes two: 20 bytes a parameter, and 64 a chunk of 1024; about 30 operations.
    Source: the update of `torch.optim.RMSprop`; the clamp, https://arxiv.org/abs/1701.07875
    """
    check_lists(params, grads, "square_avg", square_avgs)
    grads = [lying_as(g, p) for p, g in zip(params, grads, strict=True)]
    torch.ops.wallclock.rmsprop_clamp_(
        list(params), grads, list(square_avgs), *number_and_tensor(lr), alpha, eps, clamp
    )


@operator("rmsprop_clamp_", mutates=("params", "square_avgs"))
def _in_place(
    params: Tensors,
    grads: Tensors,
    square_avgs: Tensors,
    lr: float,
    lr_tensor: Tensor | None,
    alpha: float,
    eps: float,
    clamp: float | None,
) -> None:
    from wallclock.kernels.jit.rmsprop_clamp import rmsprop_clamp_kernel

    if not sum(p.numel() for p in params):
        return
    lists = (params, grads, square_avgs)
    rows = table(lists, BLOCK)
    rmsprop_clamp_kernel[(len(rows),)](
        rows, rows if lr_tensor is None else lr_tensor, lr, ALPHA=alpha, EPS=eps, CLAMP=clamp,
        LR_TENSOR=lr_tensor is not None, ALIGNED=aligned(lists), BLOCK=BLOCK,
    )  # fmt: skip


class RMSpropClamp(OneStateOptimizer):
    """RMSprop whose step ends with the critic's weight clamp.

    The paper clamps before each critic step, over every parameter of the critic (a norm's gamma too), so that a
    generator step sees the critic before its last clamp. To reproduce this: `clamp_()` once before the first step;
    `step()` where another critic step follows; `step(clamp=False)` before a generator step, and `clamp_()` after it.
    With `step()` alone the generator sees a clamped critic, which differs by less than 10 lr in any weight.

    It keeps nothing on the host, so that a CUDA graph may hold a step; `rmsprop_clamp_` says what a capture needs.
    A state of `torch.optim.RMSprop` without momentum, centering and decay can be loaded.

    Args:
        params: parameters or groups of them; float32 for "triton".
        lr, alpha, eps, clamp: as in `rmsprop_clamp_ref`.
        implementation: "eager" takes foreach operations, "triton" one launch.

    Raises:
        ValueError: if a number is out of range, or no implementation has that name.
    """

    state_name = "square_avg"
    option_names = ("lr", "alpha", "eps", "clamp")
    updates = {"eager": rmsprop_clamp_foreach_, "triton": rmsprop_clamp_}

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: Rate = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        clamp: float | None = None,
        implementation: Implementation = "eager",
    ) -> None:
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError(f"lr has {lr.numel()} elements; expected one")
        if not isinstance(lr, Tensor) and lr < 0 or not 0 <= alpha < 1 or eps < 0:
            raise ValueError(f"lr is {lr}, alpha {alpha}, eps {eps}; expected lr >= 0, 0 <= alpha < 1, eps >= 0")
        if clamp is not None and not clamp > 0:
            raise ValueError(f"clamp is {clamp}; expected a positive number, or None for no clamp")
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "clamp": clamp}, implementation)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            foreign = [k for k in ("momentum", "weight_decay", "centered", "maximize") if group.pop(k, False)]
            if foreign:
                raise ValueError(f"the state is of an RMSprop with {', '.join(foreign)}; this one has none of them")
            for key in set(group) - {*self.defaults, "params", "param_names", "initial_lr"}:
                del group[key]
            group.setdefault("clamp", self.defaults["clamp"])
            for p in group["params"]:
                if p in self.state:
                    self.state[p] = {self.state_name: lying_as(self.state[p][self.state_name], p)}

    @torch.no_grad()
    def clamp_(self) -> None:
        """Clamps every parameter of the groups that have a clamp, as before the first step."""
        for group in self.param_groups:
            if group["clamp"] is not None:
                torch._foreach_clamp_min_(group["params"], -group["clamp"])
                torch._foreach_clamp_max_(group["params"], group["clamp"])

    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, *, clamp: bool = True
    ) -> float | None:
        """Takes the step of `OneStateOptimizer`, and then the clamp unless `clamp` is False."""
        return super().step(closure, **({} if clamp else {"clamp": None}))
