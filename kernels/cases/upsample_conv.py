"""`upsample_conv` at the stages of DCGAN's generator."""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from wallclock.kernels.cases.inputs import by_direction, compiled_variant, in_both_layouts, normal
from wallclock.kernels.spec import Case, Direction, Inputs, KernelSpec
from wallclock.kernels.upsample_conv import upsample_conv, upsample_conv_ref

OUT_CHANNELS = {1024: 512, 512: 256, 256: 128, 128: 64, 64: 3}  # output channels by a stage's input channels, ngf = 64
STAGES_OF_64 = ((512, 4), (256, 8), (128, 16), (64, 32))
STAGES_OF_128 = ((1024, 4), (512, 8), (256, 16), (128, 32), (64, 64))

UPSAMPLE_CONV_CASES = tuple(
    Case(network=network, shape=(64, channels, edge, edge))
    for network, stages in (("dcgan64", STAGES_OF_64), ("dcgan128", STAGES_OF_128))
    for channels, edge in stages
)


def _upsample_conv_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    channels = case.shape[1]
    out = OUT_CHANNELS.get(channels, channels)
    weight = normal((out, channels, 3, 3), torch.float32, device, 1) * (9 * channels) ** -0.5
    return {"x": normal(case.shape, dtype, device, 0), "weight": weight.to(dtype)}


def _upsample_conv_eager(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)


def _elements(case: Case) -> tuple[int, int, int]:
    """Returns the number of elements of the input, of the output, and input times output channels."""
    n, channels, height, width = case.shape
    out = OUT_CHANNELS.get(channels, channels)
    return case.elements, n * out * 4 * height * width, out * channels


def _upsample_conv_bytes(case: Case, variant: str, direction: Direction, element_bytes: int) -> int:
    """Counts each operand and result of a convolution once; backward is two convolutions."""
    x, y, pairs = _elements(case)
    if variant in ("collapsed", "triton"):
        rows, columns = (2 * 9, 2 * 12), (2 * 12, 2 * 16)  # two sums of a third and a quarter; the four stacked
        sums = (9 + 9) + sum(rows) + sum(columns)  # the channels are swapped first
        adjoint = (3 * 12 + 2 * 12) + (3 * 9 + 2 * 9)  # three sums, the three stacked; columns first
        forward = sums * pairs + x + 16 * pairs + y
        backward = (y + 16 * pairs + x) + (y + x + 16 * pairs) + adjoint * pairs
    else:
        forward = x + 4 * x + 4 * x + 9 * pairs + y
        backward = (y + 9 * pairs + 4 * x) + (y + 4 * x + 9 * pairs) + (4 * x + x)
    return element_bytes * by_direction(direction, forward, backward)


def _upsample_conv_operations(case: Case, direction: Direction) -> int:
    """Counts operations of the collapsed form, the fewest: 4 multiply-adds an output pixel and pair of channels."""
    n, _, height, width = case.shape
    forward = 2 * 4 * _elements(case)[2] * n * 4 * height * width
    return forward * by_direction(direction, 1, 2)


UPSAMPLE_CONV = KernelSpec(
    name="upsample_conv",
    reference=upsample_conv_ref,
    variants={
        **in_both_layouts(_upsample_conv_eager),
        "compile": compiled_variant(_upsample_conv_eager),
        "collapsed": upsample_conv,
        "triton": functools.partial(upsample_conv, implementation="triton"),
    },
    cases=UPSAMPLE_CONV_CASES,
    static_cases=UPSAMPLE_CONV_CASES[1:4],
    inputs=_upsample_conv_inputs,
    differentiated=("x", "weight"),
    bytes_moved=_upsample_conv_bytes,
    operations=_upsample_conv_operations,
)
