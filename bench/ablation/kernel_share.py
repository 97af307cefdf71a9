"""Times a kernel alone: the layers that it carries out in a step, forward and backward, with it and without, in turns.

The time saved there is what Amdahl's law predicts for a whole step, as all else takes as long as before.
"""

import copy
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from wallclock.bench.engine.compile import compile_network
from wallclock.bench.measure.numerics import numerics
from wallclock.bench.measure.sampling import measure
from wallclock.bench.measure.turns import Contender
from wallclock.models.layers import ActBatchNorm, BatchNormAct, Conv2d, InstanceNormAct, Unit, choose
from wallclock.models.recipes.recipe import Implementations
from wallclock.models.upsampling import CollapsedConv
from wallclock.reports.views.ablation import ALL, BASELINE

TURNS = 2  # with the kernel and without, then in reverse order
BUDGET_S = 0.1  # seconds for each; every round of an ablation times them again

# The smallest layers that contain all work of a kernel; a residual sum is computed within a unit.
LAYERS: Mapping[str, tuple[type[nn.Module], ...]] = {
    "product_conv": (Conv2d,),
    "batch_norm_act": (BatchNormAct, ActBatchNorm),
    "instance_norm_act": (InstanceNormAct,),
    "upsample_conv": (CollapsedConv,),
    "conv_bn_act": (Unit,),
    "residual": (Unit,),
}
PARTS = ("augment", "optimizer", "fused_adam")


@dataclass(frozen=True)
class Alone:
    """The seconds of a kernel's part of an iteration, with the kernel and without it (`plain_s`)."""

    seconds: float
    plain_s: float


@dataclass
class Call:
    """The calls of layers that are alike, counted in one step.

    Kept are a copy of the first layer as it was before its call, and this call's arguments, detached from its graph.
    """

    layer: nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Stand:
    """A training, set up so that its parts can be timed alone.

    Attributes:
        model: one module that holds all networks of the training.
        dtype: dtype of autocast; float32 turns it off.
        step: takes a step; the networks are called without compilation and CUDA graphs.
        iterations: number of iterations in a step, as the task's rate counts them.
        parts: functions of other parts that a kernel can carry out, by lever; each may be called repeatedly.
    """

    model: nn.Module
    dtype: torch.dtype
    step: Callable[[], object]
    iterations: int = 1
    parts: Mapping[str, Callable[[], object]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class KernelAlone:
    """A contender that times the part of a kernel in an iteration, with it and without; see `bench.measure.turns`.

    Attributes:
        lever: the kernel's field of `Implementations`, which `recipe` has and `plain` has not.
        stand: sets up the training of a recipe; can be pickled.
        seed: seed of weights and batches.
    """

    lever: str
    recipe: Any
    plain: Any
    stand: Callable[[Any], Stand]
    device: str
    seed: int

    def __call__(self, stack: ExitStack) -> Callable[[], Alone]:
        """Takes one step to keep the arguments of the layers, and returns the function that times them."""
        stack.enter_context(numerics(seed=self.seed, keep_heap=self.recipe.implementations.keep_heap))
        plain = self.stand(_uncompiled(self.plain))
        if self.lever in LAYERS:
            calls = calls_in(plain.step, plain.model, self.lever)
            chosen = (self.recipe.implementations, self.plain.implementations)
            return layers_alone(calls, chosen, plain.dtype, plain.iterations)
        with_it = self.stand(_uncompiled(self.recipe))
        for stand in (with_it, plain):
            stand.step()  # parts work on the state that a step leaves
        parts, device = [stand.parts[self.lever] for stand in (with_it, plain)], torch.device(self.device)
        return lambda: Alone(*(seconds / plain.iterations for seconds in in_turns(parts, device)))


def _uncompiled(recipe: Any) -> Any:
    return replace(recipe, implementations=replace(recipe.implementations, compile=False, cuda_graph=False))


def kernels_alone(
    recipe: Any, variants: Mapping[str, Any], stand: Callable[[Any], Stand], *, device: str, seed: int
) -> dict[str, Contender]:
    """Returns a contender for each lever that is a kernel, by the name of the variant that shows the kernel's gain.

    `recipe` has all levers, `variants` are the recipes of an ablation by name; for the others see `KernelAlone`.
    """
    found: dict[str, Contender] = {}
    common: dict[str, Any] = {"stand": stand, "device": device, "seed": seed}
    for lever in recipe.levers():
        owner, _, name = lever.rpartition(".")
        if owner != "implementations" or name not in (*LAYERS, *PARTS):
            continue
        pairs = ((f"without {name}", ALL, f"without {name}"), (f"only {name}", f"only {name}", BASELINE))
        for variant, with_it, without in pairs:
            if variant in variants:
                found[variant] = KernelAlone(lever=name, recipe=variants[with_it], plain=variants[without], **common)
    return found


def calls_in(step: Callable[[], object], model: nn.Module, lever: str) -> list[Call]:
    """Returns a step's calls of the outermost layers of a model whose work a lever in `LAYERS` changes.

    The network that `step` calls is not compiled, and its layers leave no work to each other.
    """
    found: dict[Any, Call] = {}

    def hook(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        trained = any(p.requires_grad for p in layer.parameters())
        key = repr(layer), trained, *map(_told, arguments), *((name, _told(a)) for name, a in keywords.items())
        if key in found:
            found[key].count += 1
        else:
            apart = {name: _apart(a) for name, a in keywords.items()}
            found[key] = Call(copy.deepcopy(layer), tuple(map(_apart, arguments)), apart)

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in _outermost(model, LAYERS[lever])]
    try:
        step()
    finally:
        for handle in handles:
            handle.remove()
    for call in found.values():
        for layer in call.layer.modules():
            layer._forward_pre_hooks.clear()
            layer._forward_pre_hooks_with_kwargs.clear()
    return list(found.values())


def _told(argument: Any) -> Any:
    return (tuple(argument.shape), argument.requires_grad) if isinstance(argument, torch.Tensor) else argument


def _apart(argument: Any) -> Any:
    if not isinstance(argument, torch.Tensor):
        return argument
    return argument.detach().clone().requires_grad_(argument.requires_grad)


def _outermost(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterable[nn.Module]:
    for child in model.children():
        if isinstance(child, kinds):
            yield child
        else:
            yield from _outermost(child, kinds)


def layers_alone(
    calls: Sequence[Call], chosen: Sequence[Implementations], dtype: torch.dtype, iterations: int
) -> Callable[[], Alone]:
    """Returns a function that times the layers of a step's calls forward and backward, with a kernel and without.

    `calls` are from `calls_in`, and `iterations` are those in the step; `chosen` are the implementations with the
    kernel and without it. `dtype` is that of autocast; float32 turns it off.
    """
    device = calls[0].arguments[0].device if calls else torch.device("cpu")
    pairs = [(call.count / iterations, [_step(call, each, dtype) for each in chosen]) for call in calls]

    def turn() -> Alone:
        seconds = [0.0, 0.0]
        for count, steps in pairs:
            for side, one_s in enumerate(in_turns(steps, device)):
                seconds[side] += count * one_s
        return Alone(*seconds)

    return turn


def in_turns(functions: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Returns the median seconds of each function, measured in turns on a device; each may be called repeatedly."""
    samples: list[list[float]] = [[] for _ in functions]
    for turn in range(TURNS):
        for place in range(len(functions))[:: 1 if turn % 2 == 0 else -1]:
            found = measure(functions[place], device=device, budget_s=BUDGET_S, queued=True, min_count=1)
            samples[place] += found.samples_s
    return [statistics.median(taken) for taken in samples]


def _step(call: Call, implementations: Implementations, dtype: torch.dtype) -> Callable[[], object]:
    """Returns a function that runs a layer forward and backward, for all gradients that the step needs."""
    layer: Any = copy.deepcopy(call.layer).train()
    choose(layer, implementations)
    tensors = [*call.arguments, *call.keywords.values(), *layer.parameters()]
    wanted = [t for t in tensors if isinstance(t, torch.Tensor) and t.requires_grad]
    overwrites = isinstance(layer, ActBatchNorm)  # its input, so that each call needs a clone
    if implementations.compile:
        layer = compile_network(layer)
    dy: list[torch.Tensor] = []

    def step() -> object:
        arguments = [a.clone() for a in call.arguments] if overwrites else call.arguments
        device = tensors[0].device
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            y = layer(*arguments, **call.keywords)
        if not wanted:
            return y
        if not dy:
            random = torch.Generator(device).manual_seed(7)
            dy.append(torch.empty_like(y).copy_(torch.randn(y.shape, device=device, generator=random)))
        return torch.autograd.grad(y, wanted, dy[0])

    return step
