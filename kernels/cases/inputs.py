"""What the cases of several operations share: random inputs, compiled variants, the slope of their leaky ReLU."""

import functools
from collections.abc import Callable
from typing import Any

import torch

SLOPE = 0.1


def compiled_variant(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Returns the function through `torch.compile`, which is set up when it is first called."""

    @functools.cache
    def compiled() -> Callable[..., torch.Tensor]:
        return torch.compile(function, dynamic=False, fullgraph=True)

    def call(**arguments: Any) -> torch.Tensor:
        return compiled()(**arguments)

    return call


def in_place(function: Callable[..., None], *names: str) -> Callable[..., torch.Tensor]:
    """Returns a function of lists of tensors as one of tensors called "param_0", "param_1" and so on.

    Args:
        function: takes a list for each of the names, and overwrites those of the first.
        names: of one tensor each, in the order of the arguments.
    """

    def call(**arguments: Any) -> torch.Tensor:
        lists = [[arguments.pop(key) for key in list(arguments) if key.startswith(f"{name}_")] for name in names]
        function(*lists, **arguments)
        return lists[0][0]

    return call


def normal(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> torch.Tensor:
    """Returns normal numbers, those of a map or a filter bank in channels-last memory; the same ones for a seed."""
    random = torch.Generator(device).manual_seed(seed)
    x = torch.randn(shape, device=device, generator=random)
    return x.to(dtype, memory_format=torch.channels_last) if len(shape) == 4 else x
