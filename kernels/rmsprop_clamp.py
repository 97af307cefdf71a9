"""RMSprop with the weight clamp of a WGAN's critic, over all parameters in one launch."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch

from wallclock.kernels.multi_tensor import aligned, lying_as, memory_order, table

BLOCK = (
    1024  # elements of a program: four accesses of 16 bytes a thread would be 2048, and leave small tensors half empty
)


def rmsprop_clamp_ref(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    square_avgs: Sequence[torch.Tensor],
    *,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    clamp: float | None = None,
) -> None:
    """Defines the operation, tensor by tensor and in place: torch's RMSprop, then the clamp.

    Args:
        params: floating tensors of any shape; overwritten.
        grads: their gradients.
        square_avgs: averages of the squared gradients; overwritten.
        lr: learning rate.
        alpha: of the average.
        eps: added to its root.
        clamp: parameters end in [-clamp, clamp]; None for no clamp.
    """
    for p, g, v in zip(params, grads, square_avgs, strict=True):
        v.copy_(alpha * v + (1 - alpha) * g * g)
        p.sub_(lr * g / (v.sqrt() + eps))
        if clamp is not None:
            p.copy_(torch.where(p > clamp, clamp, torch.where(p < -clamp, -clamp, p)))


def rmsprop_clamp_foreach_(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    square_avgs: list[torch.Tensor],
    *,
    lr: float | torch.Tensor,
    alpha: float = 0.99,
    eps: float = 1e-8,
    clamp: float | None = None,
) -> None:
    """The same by torch's foreach operations, in the order of `torch.optim.RMSprop(foreach=True)`; any device.

    Args:
        params: as `rmsprop_clamp_ref`; any floating dtype.
        grads: the same.
        square_avgs: the same.
        lr: a number, or a tensor of one element on the device.
        alpha: as `rmsprop_clamp_ref`.
        eps: the same.
        clamp: the same.

    Cost: 52 bytes a float32 parameter, and 16 for the clamp.
    """
    torch._foreach_mul_(square_avgs, alpha)
    torch._foreach_addcmul_(square_avgs, grads, grads, value=1 - alpha)
    average = torch._foreach_sqrt(square_avgs)
    torch._foreach_add_(average, eps)
    if isinstance(lr, torch.Tensor):
        torch._foreach_div_(average, -lr)
        torch._foreach_addcdiv_(params, grads, average)
    else:
        torch._foreach_addcdiv_(params, grads, average, value=-lr)
    if clamp is not None:
        torch._foreach_clamp_min_(params, -clamp)
        torch._foreach_clamp_max_(params, clamp)


@torch.no_grad()
def rmsprop_clamp_(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    square_avgs: Sequence[torch.Tensor],
    *,
    lr: float | torch.Tensor,
    alpha: float = 0.99,
    eps: float = 1e-8,
    clamp: float | None = None,
) -> None:
    """The same by one Triton launch over all tensors, which a CUDA graph can capture.

    A table on the device holds where the tensors lie. It is looked up by their addresses in every call, and copied to
    the device when they are new: gradients that are dropped and made again are found wherever they are. A capture
    needs the table beforehand, and its replays read the gradients where they were: take a step before it and keep
    their memory with `zero_grad(set_to_none=False)`.

    Args:
        params: float32, each dense in memory (contiguous, channels-last, any order); overwritten.
        grads: their gradients, float32; one that lies otherwise than its parameter is copied.
        square_avgs: float32, each lying as its parameter; overwritten.
        lr: a number, which a capture keeps, or a tensor of one element on the device, which each replay reads.
        alpha: of the average.
        eps: added to its root.
        clamp: parameters end in [-clamp, clamp], NaN stays; None for no clamp.

    Raises:
        ValueError: if a tensor is not float32, not dense, or does not fit the others; or if a graph is being captured
            and a tensor has moved since the last step.

    Numerics: float32, rounded as torch's CUDA kernels round: a square root and a quotient without approximation.
    Cost: reads three tensors and writes two: 20 bytes a parameter, and 64 a chunk of 1024; about 30 operations.
    Source: the update of `torch.optim.RMSprop`; the clamp, https://arxiv.org/abs/1701.07875
    """
    if not len(params) == len(grads) == len(square_avgs):
        raise ValueError(
            f"got {len(params)} params, {len(grads)} grads, {len(square_avgs)} square_avgs; expected equally many"
        )
    for p, g, v in zip(params, grads, square_avgs, strict=True):
        for name, t in (("param", p), ("grad", g), ("square_avg", v)):
            if t.dtype != torch.float32:
                raise ValueError(
                    f"a {name} is {t.dtype}; expected torch.float32: keep float32 weights and compute under autocast, "
                    'or use implementation="eager"'
                )
            if t.shape != p.shape or t.device != params[0].device:
                raise ValueError(
                    f"a {name} is {tuple(t.shape)} on {t.device}; expected {tuple(p.shape)} on {params[0].device}"
                )
        if memory_order(v) != memory_order(p) and p.numel():
            raise ValueError(
                f"a square_avg has strides {v.stride()}; expected {p.stride()} as its parameter: make it by zeros_like"
            )
    grads = [lying_as(g, p) for p, g in zip(params, grads, strict=True)]
    by_tensor = isinstance(lr, torch.Tensor)
    torch.ops.wallclock.rmsprop_clamp_(
        list(params), grads, list(square_avgs), 0.0 if by_tensor else lr, lr if by_tensor else None, alpha, eps, clamp
    )


@torch.library.custom_op("wallclock::rmsprop_clamp_", mutates_args=("params", "square_avgs"))
def _in_place(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    square_avgs: Sequence[torch.Tensor],
    lr: float,
    lr_tensor: torch.Tensor | None,
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


@_in_place.register_fake
def _(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    square_avgs: Sequence[torch.Tensor],
    lr: float,
    lr_tensor: torch.Tensor | None,
    alpha: float,
    eps: float,
    clamp: float | None,
) -> None:
    return None


class RMSpropClamp(torch.optim.Optimizer):
    """RMSprop whose step ends with the critic's weight clamp.

    The paper clamps before each critic step, over every parameter of the critic (a norm's gamma too), and so takes the
    critic that a generator step sees before its last clamp. The same sequence here: `clamp_()` once before the first
    step; `step()` where another critic step follows; `step(clamp=False)` before a generator step, and `clamp_()` after
    it. With `step()` alone the generator sees a clamped critic, which differs by less than 10 lr in any weight.

    It keeps nothing on the host, so that a CUDA graph may hold a step; see `rmsprop_clamp_` for what a capture needs.
    A state of `torch.optim.RMSprop` without momentum, centering and decay can be loaded.

    Args:
        params: any; float32 for "triton".
        lr: a number, or a tensor of one element on the device.
        alpha: of the average of squares.
        eps: added to its root.
        clamp: parameters end in [-clamp, clamp]; None for no clamp.
        implementation: "eager" by foreach operations, "triton" in one launch.

    Raises:
        ValueError: if a number cannot be, or there is no such implementation.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float | torch.Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        clamp: float | None = None,
        implementation: Literal["eager", "triton"] = "eager",
    ) -> None:
        if isinstance(lr, torch.Tensor) and lr.numel() != 1:
            raise ValueError(f"lr has {lr.numel()} elements; expected one")
        if not isinstance(lr, torch.Tensor) and lr < 0 or not 0 <= alpha < 1 or eps < 0:
            raise ValueError(f"lr is {lr}, alpha {alpha}, eps {eps}; expected lr >= 0, 0 <= alpha < 1, eps >= 0")
        if clamp is not None and not clamp > 0:
            raise ValueError(f"clamp is {clamp}; expected a positive number, or None for no clamp")
        if implementation not in ("eager", "triton"):
            raise ValueError(f"implementation is '{implementation}'; expected eager or triton")
        self.implementation = implementation
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "clamp": clamp})

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"implementation": self.implementation}

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
                    self.state[p] = {"square_avg": lying_as(self.state[p]["square_avg"], p)}

    @torch.no_grad()
    def clamp_(self) -> None:
        """Clamps every parameter of the groups that have a clamp: what precedes the first step."""
        for group in self.param_groups:
            if group["clamp"] is not None:
                torch._foreach_clamp_min_(group["params"], -group["clamp"])
                torch._foreach_clamp_max_(group["params"], group["clamp"])

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, *, clamp: bool = True
    ) -> float | None:
        """Takes one step on every parameter that has a gradient.

        Args:
            closure: evaluates the loss again, or None.
            clamp: whether the clamp follows.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        update = rmsprop_clamp_ if self.implementation == "triton" else rmsprop_clamp_foreach_
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p]["square_avg"] = torch.zeros_like(p)
            if params:
                update(
                    params,
                    [p.grad for p in params],
                    [self.state[p]["square_avg"] for p in params],
                    lr=group["lr"],
                    alpha=group["alpha"],
                    eps=group["eps"],
                    clamp=group["clamp"] if clamp else None,
                )
        return loss
