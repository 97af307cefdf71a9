"""`rmsprop_clamp` over all parameters of the DCGAN's critic and generator.

A case's shape is the channels along the network: the generator's begin with the noise, the critic's with the image.
"""

import functools
import math

import torch

from wallclock.kernels.cases.inputs import float32_lists, optimizer_spec
from wallclock.kernels.rmsprop_clamp import BLOCK, rmsprop_clamp_, rmsprop_clamp_foreach_, rmsprop_clamp_ref
from wallclock.kernels.spec import Case, Direction, Inputs

OPTIONS = {"lr": 5e-5, "alpha": 0.99, "eps": 1e-8, "clamp": 0.01}  # the paper's, and PyTorch's alpha and eps
ROW_BYTES = 32  # bytes that a program reads of its row of the table: three addresses and a count

RMSPROP_CLAMP_CASES = (
    Case(network="critic", shape=(3, 64, 128, 256, 512, 1), options=OPTIONS),
    Case(network="generator", shape=(100, 512, 256, 128, 64, 3), options=OPTIONS),
)


@functools.cache
def dcgan_shapes(channels: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes of all parameters: 4x4 filters, a 3x3 one at 64 channels, gamma and beta of the norms.

    No norm follows the critic's first convolution, or the last convolution of either network.
    """
    critic = channels[0] == 3
    extra = channels[1] if critic else channels[-2]
    filters = [(b, a, 4, 4) if critic else (a, b, 4, 4) for a, b in zip(channels, channels[1:], strict=False)]
    norms = [(c,) for c in channels[1 + critic : -1] for _ in range(2)]
    return (*filters, (extra, extra, 3, 3), *norms, (extra,), (extra,))


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Makes float32 tensors: at 0.01, values of bfloat16 are spaced wider than the learning rate."""
    made = float32_lists("square_avg", dcgan_shapes(case.shape), device)
    scaled = {name: 0.01 * tensor for name, tensor in made.items()}
    return {name: t.square() if name.startswith("square_avg") else t for name, t in scaled.items()}


def _sizes(case: Case) -> list[int]:
    return [math.prod(shape) for shape in dcgan_shapes(case.shape)]


def _bytes(case: Case, variant: str, direction: Direction, element_bytes: int) -> int:
    if variant == "triton":
        return sum(20 * n + ROW_BYTES * -(-n // BLOCK) for n in _sizes(case))
    return (20 if variant == "compile" else 68) * sum(_sizes(case))


RMSPROP_CLAMP = optimizer_spec(
    "square_avg",
    *(rmsprop_clamp_ref, rmsprop_clamp_foreach_, rmsprop_clamp_),
    name="rmsprop_clamp",
    cases=RMSPROP_CLAMP_CASES,
    inputs=_inputs,
    bytes_moved=_bytes,
    operations=lambda case, direction: 10 * sum(_sizes(case)),
)
