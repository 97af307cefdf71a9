"""Base class of the optimisers, which update lists of parameters, gradients and states at once."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from wallclock.kernels.multi_tensor import memory_order

Implementation = Literal["eager", "triton"]
Tensors = list[Tensor]
Rate = float | Tensor  # a number, or a tensor of one element on the device, which a CUDA graph reads in each replay


def check_lists(params: Tensors, grads: Tensors, state_name: str, states: Tensors) -> None:
    """Checks the tensors of a Triton update: float32, dense, each state in the memory order of its parameter.

    Raises:
        ValueError: if a tensor does not fit, or the lists differ in length.
    """
    if not len(params) == len(grads) == len(states):
        raise ValueError(
            f"got {len(params)} params, {len(grads)} grads, {len(states)} {state_name}s; expected equally many"
        )
    for p, g, state in zip(params, grads, states, strict=True):
        for name, t in (("param", p), ("grad", g), (state_name, state)):
            if t.dtype != torch.float32:
                raise ValueError(
                    f"a {name} is {t.dtype}; expected torch.float32: keep float32 weights and compute under autocast, "
                    'or use implementation="eager"'
                )
            if t.shape != p.shape or t.device != params[0].device:
                raise ValueError(
                    f"a {name} is {tuple(t.shape)} on {t.device}; expected {tuple(p.shape)} on {params[0].device}"
                )
        if memory_order(state) != memory_order(p) and p.numel():
            raise ValueError(
                f"a {state_name} has strides {state.stride()}; expected {p.stride()} as its parameter: "
                "make it by zeros_like"
            )


def number_and_tensor(lr: Rate) -> tuple[float, Tensor | None]:
    """Returns a learning rate as two arguments of an operator, a number and a tensor, of which one is in use."""
    return (0.0, lr) if isinstance(lr, Tensor) else (lr, None)


class OneStateOptimizer(torch.optim.Optimizer):
    """An optimiser with one state for each parameter, which updates all parameters of a group at once.

    Attributes:
        state_name: name of the state, which begins as zeros.
        option_names: names of a group's options that an update takes by keyword.
        updates: for each implementation, the function that updates lists of parameters, gradients and states.

    Args:
        params: parameters, or groups of them, as torch's optimisers take.
        defaults: default options of a group.
        implementation: "eager" takes foreach operations, "triton" few launches.

    Raises:
        ValueError: if no implementation has that name.
    """

    state_name: ClassVar[str]
    option_names: ClassVar[tuple[str, ...]]
    updates: ClassVar[Mapping[str, Callable[..., None]]]

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any], implementation: Implementation) -> None:
        if implementation not in get_args(Implementation):
            raise ValueError(f"implementation is '{implementation}'; expected eager or triton")
        self.implementation = implementation
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"implementation": self.implementation}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, **options: Any) -> float | None:  # type: ignore[override]
        """Takes one step on every parameter that has a gradient.

        Args:
            closure: function that evaluates the loss again; or None.
            options: values that replace the options of every group in this step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p][self.state_name] = torch.zeros_like(p)
            if params:
                states = [self.state[p][self.state_name] for p in params]
                chosen = {name: group[name] for name in self.option_names} | options
                self.updates[self.implementation](params, [p.grad for p in params], states, **chosen)
        return loss
