"""Turns of a task's variants: each trains in a process of its own, and returns the time that each turn took."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from wallclock.bench.ablation.kernel_share import Stand
from wallclock.bench.engine.trainer import DTYPES, StatefulTrainer, Step
from wallclock.bench.measure.numerics import numerics
from wallclock.bench.measure.timing import cpu_s, now_s, synchronize
from wallclock.bench.measure.turns import Contender
from wallclock.reports.views.ablation import BASELINE

Figures = tuple[tuple[str, str, float], ...]  # metric, unit, value
Counted = Sequence[tuple[str, str, Mapping[str, float]]]  # metric, unit, and the value of each variant
Cycle = tuple[tuple[str, int], ...]  # kinds of steps in order, and how many of each


@dataclass(frozen=True)
class TurnDone:
    """The result of one turn: its wall-clock seconds, CPU seconds of all threads, first loss and figures."""

    seconds: float
    cpu_s: float
    first_loss: float
    figures: Figures  # the first is the rate


@dataclass(frozen=True)
class Taken:
    """The times of one turn: the seconds and the number of its steps of each kind, and the CPU seconds of all."""

    seconds: Mapping[str, float]
    counts: Mapping[str, int]
    cpu_s: float

    @property
    def total_s(self) -> float:
        """Seconds of all steps."""
        return sum(self.seconds.values())


class Turns:
    """The turns of a task's variants, on the data that the task's `load` returned; an instance can be pickled.

    Attributes:
        TRAINER: the class of the task's trainers.
        PLAIN_LOOP: the plain loop, a generator of steps that levers are measured against.
        STEP_METRIC: a metric that each turn records once.
        CPU_METRIC: the metric of a turn's CPU seconds per iteration.
        IMAGES: number of images that an iteration trains on for each image of the batch size.
        OPTIMIZER: the lever that switches on the optimisers' kernel.
    """

    TRAINER: ClassVar[Callable[..., StatefulTrainer]]
    PLAIN_LOOP: ClassVar[Callable[..., Iterator[Step]]]
    STEP_METRIC: ClassVar[str] = "iteration_s"
    CPU_METRIC: ClassVar[str] = "turn_cpu_s"
    IMAGES: ClassVar[int] = 1
    OPTIMIZER: ClassVar[str] = "fused_adam"

    def __init__(self, request: Any, data: Any) -> None:
        self.request: Any = request
        self.data = self.part(data)

    def part(self, data: Any) -> Any:
        """Returns the part of the data that turns draw their batches from; each process holds it."""
        return data

    def cycle(self, recipe: Any) -> Cycle:
        """Returns the kinds of steps in one iteration, in order, and the number of each."""
        return (("iteration", 1),)

    def figures(self, recipe: Any, taken: Taken) -> Figures:
        """Returns the figures of a turn, the rate first; a task with several kinds of steps overrides this."""
        ((kind, count),) = taken.counts.items()
        return (
            (f"{kind}s_per_s", "it/s", count / taken.total_s),
            ("images_per_s", "images/s", self.IMAGES * count * recipe.batch_size / taken.total_s),
            (self.STEP_METRIC, "s", taken.total_s / count),
            (self.CPU_METRIC, "s", taken.cpu_s / count),
        )

    def counted(self, variants: Mapping[str, Any]) -> Counted:
        """Returns figures of each variant that are known without running it."""
        return ()

    @property
    def length(self) -> int:
        """Number of iterations in a turn."""
        return self.request.turn_length

    def steps(self, recipe: Any, device: torch.device, *, plain: bool) -> Iterator[Step]:
        """Sets up a training of a recipe, with the plain loop if `plain`, and returns its endless steps."""
        if plain:
            return type(self).PLAIN_LOOP(recipe, self.data, device=device, seed=self.request.seed)
        return self.trainer(recipe, device).train()

    def trainer(self, recipe: Any, device: torch.device) -> StatefulTrainer:
        """Returns a new trainer of a recipe."""
        return type(self).TRAINER(recipe, self.data, device=device, seed=self.request.seed)

    def stand(self, recipe: Any) -> Stand:
        """Sets up a recipe's training, with one iteration as a step; see `bench.ablation.kernel_share.Stand`."""
        recipe = self.request.steady(recipe)
        trainer, cycle = self.trainer(recipe, torch.device(self.request.device)), self.cycle(recipe)
        steps, count = trainer.train(), sum(count for _, count in cycle)
        return Stand(
            model=nn.ModuleList(trainer.networks.values()),
            dtype=DTYPES[recipe.precision],
            step=lambda: [next(steps) for _ in range(count)],
            iterations=cycle[0][1],
            parts={self.OPTIMIZER: lambda: self.update(trainer)},
        )

    def update(self, trainer: StatefulTrainer) -> None:
        """Takes the optimisers' steps of one iteration."""
        for optimizer in trainer.optimizers.values():
            optimizer.step()

    def contender(self, name: str, recipe: Any) -> Contender:
        """Returns the contender of a variant, whose turns return `TurnDone`; see `bench.measure.turns`.

        The one called `BASELINE` trains with the plain loop.
        """
        return functools.partial(self._get_ready, self.request.steady(recipe), name == BASELINE)

    def _get_ready(self, recipe: Any, plain: bool, stack: ExitStack) -> Callable[[], TurnDone]:
        device = torch.device(self.request.device)
        stack.enter_context(numerics(seed=self.request.seed, keep_heap=recipe.implementations.keep_heap))
        return functools.partial(self._turn, recipe, self.steps(recipe, device, plain=plain), device)

    def _turn(self, recipe: Any, steps: Iterator[Step], device: torch.device) -> TurnDone:
        cycle, length = self.cycle(recipe), self.length
        if len(cycle) == 1:  # steps of one kind are timed together
            cycle, length = ((cycle[0][0], length * cycle[0][1]),), 1
        seconds, counts = dict.fromkeys(dict(cycle), 0.0), dict.fromkeys(dict(cycle), 0)
        first: Step | None = None
        synchronize(device)
        begun_cpu_s = cpu_s()
        for kind, count in cycle * length:
            begun_s = now_s()
            for _ in range(count):
                step = next(steps)
                assert step.kind == kind, "no iteration of an ablation is cut short"
                first = first or step
            synchronize(device)
            seconds[kind], counts[kind] = seconds[kind] + now_s() - begun_s, counts[kind] + count
        taken = Taken(seconds, counts, cpu_s() - begun_cpu_s)
        assert first is not None, "a turn has steps"
        return TurnDone(taken.total_s, taken.cpu_s, first.losses.sum().item(), self.figures(recipe, taken))
