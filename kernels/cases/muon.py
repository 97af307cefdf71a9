"""`muon` over the filters of the sprint network.

The case's shape is the channels along the network: after the whitening, and of each group.
"""

import itertools

import torch

from kernels.cases.inputs import compiled_variant, in_place, normal
from kernels.muon import BLOCK, gram_is_less, muon_eager_, muon_ref, muon_triton_
from kernels.spec import Case, Direction, Inputs, KernelSpec

STEPS = 3
LISTS = ("param", "grad", "momentum_buffer")
MUON_CASES = (Case(network="sprint", shape=(24, 64, 256, 256), options={"lr": 0.24, "momentum": 0.6, "steps": STEPS}),)


def sprint_filters(channels: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Returns the filters' shapes: in each group one from the channels before, and one from its own."""
    groups = zip(channels, channels[1:], strict=False)
    return [(b, i, 3, 3) for a, b in groups for i in (a, b)]


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Float32 whatever the dtype, as weights are."""
    return {
        f"{name}_{place}": normal(shape, torch.float32, device, 100 * seed + place)
        for seed, name in enumerate(LISTS)
        for place, shape in enumerate(sprint_filters(case.shape))
    }


def _stacks(case: Case) -> list[tuple[int, int, int]]:
    """[B, M, N] with M <= N of the matrices of equal shape."""
    matrices = sorted((o, i * h * w) for o, i, h, w in sprint_filters(case.shape))
    return [(len(list(same)), min(shape), max(shape)) for shape, same in itertools.groupby(matrices)]
