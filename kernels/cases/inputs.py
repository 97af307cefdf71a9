"""Parts that several operations' cases share: random inputs, compiled variants, activations, convolution forms."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from wallclock.kernels.batch_norm_act import activate_ref
from wallclock.kernels.spec import Direction, KernelSpec

Number = TypeVar("Number", int, float)

SLOPE = 0.1  # slope below zero of Darknet's leaky_relu
MULTIPROCESSORS = 132  # number in an H100, by which costs are predicted on a machine without a GPU


def resident_programs() -> int:
    """Returns the number of multiprocessors of this machine's GPU, or `MULTIPROCESSORS` without one."""
    return torch.cuda.get_device_properties(0).multi_processor_count if torch.cuda.is_available() else MULTIPROCESSORS


def by_direction(direction: Direction, forward: Number, backward: Number) -> Number:
    """Returns the cost of a direction, or of both, from the costs of forward and backward."""
    return {"forward": forward, "backward": backward, "both": forward + backward}[direction]


def activate(z: Tensor, act: str, slope: float, *, in_place: bool) -> Tensor:
    """Returns an activation as ordinary PyTorch code, in the map's memory if `in_place` and PyTorch allow."""
    if in_place and act == "leaky_relu":
        return F.leaky_relu_(z, slope)
    return F.relu_(z) if in_place and act == "relu" else activate_ref(z, act, slope)


def convolution_form(form: str) -> tuple[int, int, int]:
    """Returns output channels, filter edge and stride of a form such as "64k3s2".

    Raises:
        ValueError: if the text is no such form.
    """
    found = re.fullmatch(r"(\d+)k(\d)s(\d)", form)
    if found is None:
        raise ValueError(f"the form of a convolution is '{form}'; expected one such as 64k3s2")
    k, r, stride = map(int, found.groups())
    return k, r, stride


def compiled_variant(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns a function that `torch.compile` compiles at its first call."""

    @functools.cache
    def compiled() -> Callable[..., Tensor]:
        return torch.compile(function, dynamic=False, fullgraph=True)

    def call(**arguments: Any) -> Tensor:
        return compiled()(**arguments)

    return call


def in_both_layouts(function: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
    """Returns the variants of ordinary PyTorch code, which gets its maps in contiguous or in channels-last memory."""
    return {"eager_nchw": function, "eager": function}


def optimizer_spec(
    state: str, reference: Callable[..., None], eager: Callable[..., None], triton: Callable[..., None], **fields: Any
) -> KernelSpec:
    """Returns the spec of an optimiser's step over lists of parameters, gradients and a state.

    The functions overwrite the lists of parameters and states; the spec's take tensors by the names of `float32_lists`.
    """

    def of_tensors(function: Callable[..., None]) -> Callable[..., Tensor]:
        def call(**arguments: Any) -> Tensor:
            names = ("param_", "grad_", f"{state}_")
            lists = [[arguments.pop(key) for key in list(arguments) if key.startswith(name)] for name in names]
            function(*lists, **arguments)
            return lists[0][0]

        return call

    listed = of_tensors(eager)
    variants = {"eager": listed, "compile": compiled_variant(listed), "triton": of_tensors(triton)}
    overwritten = ("param_", f"{state}_")
    return KernelSpec(
        reference=of_tensors(reference), variants=variants, differentiated=(), overwritten=overwritten, **fields
    )


def float32_lists(state: str, shapes: Sequence[tuple[int, ...]], device: torch.device) -> dict[str, Tensor]:
    """Returns normal numbers, "param_0", "grad_0" and so on, in float32, as weights are, whatever the case's type."""
    return {
        f"{name}_{place}": normal(shape, torch.float32, device, 100 * seed + place)
        for seed, name in enumerate(("param", "grad", state))
        for place, shape in enumerate(shapes)
    }


def normal(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    """Returns normal numbers, determined by the seed; maps and filter banks in channels-last memory."""
    random = torch.Generator(device).manual_seed(seed)
    x = torch.randn(shape, device=device, generator=random)
    return x.to(dtype, memory_format=torch.channels_last) if len(shape) == 4 else x
