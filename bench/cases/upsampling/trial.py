"""The five upsamplings at the stages of DCGAN's generator, as a `KernelSpec` that the kernels benchmark can time.

Shape legend: N batch, I and O input and output channels, H, W height and width of the input.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call

from wallclock.bench.cases.kernels.trial import DTYPES, Trial, contiguous, widened
from wallclock.bench.cases.upsampling.checkerboard import phase_spread
from wallclock.kernels.cases.inputs import normal
from wallclock.kernels.cases.upsample_conv import OUT_CHANNELS, UPSAMPLE_CONV, UPSAMPLE_CONV_CASES
from wallclock.kernels.spec import Case, Direction, Inputs, KernelSpec
from wallclock.models.layers import choose
from wallclock.models.recipes.recipe import Implementation, Implementations
from wallclock.models.upsampling import UPSAMPLINGS, upsample2x

# On a GPU PyTorch's backward of the bilinear resize accumulates in 16 bits: error 0.0139 on an H200 in bfloat16.
BILINEAR_16_BIT = 0.02


def kind_of(variant: str) -> str:
    """Returns the kind of upsampling in a variant's name, such as "deconv" in "deconv_nchw"."""
    return next(kind for kind in UPSAMPLINGS if kind in variant.split("_"))


def _channels(case: Case) -> tuple[int, int]:
    channels = case.shape[1]
    return channels, OUT_CHANNELS[channels]


def _on_meta(kind: str, channels_in: int, channels_out: int) -> nn.Module:
    with torch.device("meta"):
        return upsample2x(kind, channels_in, channels_out)


def _variant(kind: str, implementation: Implementation = "eager") -> Callable[..., torch.Tensor]:
    """Returns the layer as a function of its input and its weight; the weight is cast as autocast would cast it."""
    layer = _on_meta(kind, 1, 1)  # each call replaces its weight
    choose(layer, Implementations(upsample_conv=implementation))

    def call(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        cast = weight if kind == "collapsed" else weight.to(x.dtype)
        return functional_call(layer, {"weight": cast}, (x,))

    return call


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Returns the map x in `dtype`, and for each kind a weight in float32, the type in which a training keeps it."""
    channels = _channels(case)
    inputs: Inputs = {"x": normal(case.shape, dtype, device, 0)}
    for seed, kind in enumerate(UPSAMPLINGS, 1):
        (weight,) = _on_meta(kind, *channels).parameters()
        inputs[kind] = normal(tuple(weight.shape), torch.float32, device, seed) * (9 * channels[0]) ** -0.5
    return inputs


def _bytes(case: Case, variant: str, direction: Direction, element_bytes: int) -> int:
    """Returns the bytes moved if each operation reads operands and writes its result once, without weight casts."""
    kind = kind_of(variant)
    if kind in ("nearest", "bilinear", "collapsed"):
        same = "collapsed" if kind == "collapsed" else "eager"
        return UPSAMPLE_CONV.bytes_moved(case, same, direction, element_bytes)
    n, channels_in, height, width = case.shape
    channels_out = _channels(case)[1]
    x, y = case.elements, n * channels_out * 4 * height * width
    weight = (16 if kind == "deconv" else 36) * channels_in * channels_out
    shuffle = 0 if kind == "deconv" else 2 * y
    forward, backward = x + weight + y + shuffle, shuffle + 2 * (y + weight + x)
    return element_bytes * {"forward": forward, "backward": backward, "both": forward + backward}[direction]


VARIANTS = {kind: _variant(kind) for kind in UPSAMPLINGS}
VARIANTS |= {f"{kind}_nchw": _variant(kind) for kind in UPSAMPLINGS}

UPSAMPLING = KernelSpec(
    name="upsample2x",
    reference=_variant("nearest"),
    variants=VARIANTS | {"triton_collapsed": _variant("collapsed", "triton")},
    cases=tuple(case for case in UPSAMPLE_CONV_CASES if case.network == "dcgan64"),
    inputs=_inputs,
    differentiated=("x", "weight"),
    bytes_moved=_bytes,
    operations=UPSAMPLE_CONV.operations,  # the smallest number that any kind needs
    # A weight gradient sums up to 262,144 products, in longer chains in NCHW memory: error 1.7e-5 in float32.
    loose={variant: 4e-5 for variant in VARIANTS if variant.endswith("_nchw")},
    judge="nearest",
)


def spread_at_start(case: Case, kind: str) -> float:
    """Returns `checkerboard.phase_spread` of a kind at a stage with PyTorch's initial weights, float32 on the CPU."""
    torch.manual_seed(0)
    return phase_spread(upsample2x(kind, *_channels(case)), case.shape[1])


class UpsamplingTrial(Trial):
    """The five kinds at one stage, each with a weight of its own.

    Attributes:
        definitions: variant whose float64 results are the reference of each kind: its own, or nearest for collapsed.
    """

    definitions = {kind: VARIANTS["nearest" if kind == "collapsed" else kind] for kind in UPSAMPLINGS}
    benchmark = "upsampling"
    cold_or_not = (False,)  # in a network the map is still in the cache, since the previous layer wrote it

    def prepare(self) -> None:
        """Makes the inputs and computes the definitions' results in float64."""
        self.inputs = self.spec.inputs(self.case, DTYPES[self.dtype], self.device)
        own = self._with_weight
        self._exact_by_kind = {k: self._results(d, widened(own(k))) for k, d in self.definitions.items()}
        self.eager_error = self._error(self.spec.judge)

    def close(self) -> None:
        """Frees the memory."""
        self._exact_by_kind = {}
        super().close()

    def check(self, variant: str) -> tuple[float, float]:
        """Returns a variant's relative error against its definition in float64, and the largest allowed error."""
        error, allowed = super().check(variant)
        return error, max(allowed, BILINEAR_16_BIT if kind_of(variant) == "bilinear" and self.dtype != "fp32" else 0.0)

    def parameter_count(self, variant: str) -> int:
        """Returns the number of parameters of a variant's layer."""
        return sum(p.numel() for p in _on_meta(kind_of(variant), *_channels(self.case)).parameters())

    def _with_weight(self, kind: str) -> Inputs:
        return {"x": self.inputs["x"], "weight": self.inputs[kind]}

    def _of(self, variant: str) -> Inputs:
        inputs = self._with_weight(kind_of(variant))
        return contiguous(inputs) if variant.endswith("_nchw") else inputs

    def _exact(self, variant: str) -> list[torch.Tensor]:
        return self._exact_by_kind[kind_of(variant)]
