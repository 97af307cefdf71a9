"""Measures which convolution is fastest in each layer: PyTorch's followed by its norm, or ours with the norm inside."""

import copy
import itertools
import math
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, get_args

import pandas as pd
import torch
from torch import nn

from wallclock.bench.engine.compile import compile_network
from wallclock.bench.measure.sampling import Measurement, measure
from wallclock.kernels.spec import TOLERANCES, failures, in_a_line, relative_error
from wallclock.models.layers import Unit, choose, units
from wallclock.models.recipes.recipe import Implementation, Implementations
from wallclock.reports.store.schema import Sample, SampleStatus

ROUNDS = 2  # rounds through all choices, the second in reverse
BUDGET_S = 0.5  # seconds for each choice in each round
WORTH = 0.98  # another choice replaces PyTorch's if its median is below this share of it: the width of an interval

Choices = tuple[Implementation, ...]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One choice of convolutions, as measured for units that are alike.

    Attributes:
        units: names of the units in the network.
        shape: shape of their input, NCHW.
        choices: the implementation for each norm of a unit, in order.
        latencies_s: seconds of forward and backward, every sample of every round; empty if the choice failed.
        error: the largest error against float64, as a share of the largest value.
        why_not: reason why the choice cannot be taken; empty when it can.
    """

    units: tuple[str, ...]
    shape: tuple[int, ...]
    choices: Choices
    latencies_s: tuple[float, ...]
    error: float
    why_not: str
    chosen: bool = False

    @property
    def median_s(self) -> float:
        """The median latency in seconds; infinite if the choice failed."""
        return statistics.median(self.latencies_s or (math.inf,))

    def samples(self, parameters: Mapping[str, Any]) -> Iterator[Sample]:
        """Yields the samples for the records, with parameters such as the device: the error, and every latency."""
        status: SampleStatus = "failed" if self.why_not else "ok"
        told = {"units": " ".join(self.units), "shape": "x".join(map(str, self.shape)), "chosen": self.chosen}
        common: dict[str, Any] = {
            "benchmark": "choices", "case": f"{self.units[0]} {told['shape']}", "variant": ", ".join(self.choices),
            "parameters": {**parameters, **told}, "better": "lower",
        }  # fmt: skip
        why = self.why_not or None
        yield Sample(**common, metric="error", unit="fraction", value=self.error, status=status, error=why)
        for index, seconds in enumerate(self.latencies_s):
            yield Sample(**common, metric="latency", unit="s", value=seconds, index=index)


def recorded_choices(samples: pd.DataFrame) -> dict[str, Choices]:
    """Returns the chosen implementations by unit, from the samples of a run, as `reports.load` returns them."""
    if "chosen" not in samples:
        return {}
    chosen = samples[samples["chosen"].eq(True) & samples["metric"].eq("error")]
    return {
        unit: tuple(variant.split(", "))
        for units, variant in zip(chosen["units"], chosen["variant"], strict=True)
        for unit in units.split()
    }


def tried_choices(
    model: nn.Module,
    images: torch.Tensor,
    dtype: torch.dtype,
    implementations: Implementations,
    known: Collection[str] = (),
) -> Iterator[tuple[Tried, ...]]:
    """Measures every choice for every unit, and yields results unit by unit; units that are alike are measured once.

    The model is left unchanged. A choice with wrong results is not timed, and one that fails is not taken. A step is
    forward and backward in training, at the size of these images; the smaller images of early epochs use its choice.

    Args:
        model: the network, on its device.
        images: a training batch, [N, 3, H, W], as the model receives it.
        dtype: dtype of autocast; float32 turns it off.
        implementations: the recipe's other implementations; units are compiled if they ask for it.
        known: names of units that need no measurement.
    """
    for alike in _alike(model, images, dtype):
        if not all(name in known for name in alike.names):
            yield _tried(alike, dtype, implementations)


class _Alike(NamedTuple):
    """Units of one structure, with one shape of input."""

    names: tuple[str, ...]
    unit: Unit
    x: torch.Tensor


def _alike(model: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> list[_Alike]:
    model, inputs = copy.deepcopy(model).train(), {}

    def remember(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs[name] = arguments[0]

        return hook

    found = units(model)
    for name, unit in found.items():
        unit.register_forward_pre_hook(remember(name))
    with _autocast(images.device, dtype):
        model(images)
    grouped: dict[tuple[str, torch.Size, bool], list[str]] = {}
    for name, x in inputs.items():
        grouped.setdefault((repr(found[name]), x.shape, x.requires_grad), []).append(name)
    for unit in found.values():
        unit._forward_pre_hooks.clear()
    return [
        _Alike(tuple(names), found[names[0]], inputs[names[0]].detach().requires_grad_(wants))
        for (_, _, wants), names in grouped.items()
    ]


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _tried(alike: _Alike, dtype: torch.dtype, implementations: Implementations) -> tuple[Tried, ...]:
    eager: Choices = (get_args(Implementation)[0],) * len(alike.unit.chosen_norms())
    every: list[Choices] = list(itertools.product(get_args(Implementation), repeat=len(eager)))
    exact_unit = copy.deepcopy(alike.unit).double()
    choose(exact_unit, Implementations())
    exact = _step(exact_unit, alike.x.detach().double().requires_grad_(alike.x.requires_grad), dtype)()
    errors, whys, calls = dict.fromkeys(every, float("nan")), dict.fromkeys(every, ""), {}
    for choices in every:  # the first is "eager" everywhere
        unit: Any = copy.deepcopy(alike.unit)
        choose(unit, implementations)
        unit.choose(choices)
        if implementations.compile:
            unit = compile_network(unit)
        calls[choices] = _step(unit, alike.x, dtype)
        try:
            errors[choices] = relative_error(calls[choices](), exact)
        except failures() as failure:
            whys[choices] = in_a_line(failure)
            continue
        allowed = max(TOLERANCES[dtype], 2 * errors[eager])
        if not errors[choices] <= allowed:
            whys[choices] = f"wrong: off by {errors[choices]:.2e} of the largest value, {allowed:.2e} is allowed"
    times: dict[Choices, list[Measurement]] = {choices: [] for choices in every}
    for turn in range(ROUNDS):
        for choices in every if turn % 2 == 0 else reversed(every):
            if not whys[choices]:
                try:
                    times[choices].append(
                        measure(calls[choices], device=alike.x.device, budget_s=BUDGET_S, queued=True, min_count=5)
                    )
                except failures() as failure:
                    whys[choices] = in_a_line(failure)
    shape = tuple(alike.x.shape)
    seconds = {c: () if whys[c] else tuple(s for found in times[c] for s in found.samples_s) for c in every}
    tried = [
        Tried(units=alike.names, shape=shape, choices=c, latencies_s=seconds[c], error=errors[c], why_not=whys[c])
        for c in every
    ]
    best = min(tried, key=lambda one: one.median_s)
    chosen = best if best.median_s < WORTH * tried[0].median_s else tried[0]  # the first is PyTorch's
    return tuple(replace(one, chosen=one is chosen) for one in tried)


def _step(unit: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> Callable[[], list[torch.Tensor]]:
    """Returns a function that computes a unit's output and all gradients, from one output gradient in all calls."""
    wanted = [t for t in (x, *unit.parameters()) if t.requires_grad]

    def step() -> list[torch.Tensor]:
        with _autocast(x.device, torch.float32 if x.dtype == torch.float64 else dtype):
            y = unit(x)
        return [y.detach(), *torch.autograd.grad(y, wanted, dy(y))]

    made: list[torch.Tensor] = []

    def dy(y: torch.Tensor) -> torch.Tensor:
        if not made:
            random = torch.Generator(y.device).manual_seed(7)
            made.append(torch.empty_like(y).copy_(torch.randn(y.shape, device=y.device, generator=random).to(dtype)))
        return made[0]

    return step
