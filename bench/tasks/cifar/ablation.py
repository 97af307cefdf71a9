"""A CIFAR-10 recipe's levers in turns; see `bench.ablation.run`."""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from wallclock.bench.ablation.kernel_share import Stand, kernels_alone
from wallclock.bench.ablation.run import Ablation, Counted, TurnDone, Turns, TurnsRequest
from wallclock.bench.ablation.task import AblatedTask
from wallclock.bench.measure.numerics import numerics
from wallclock.bench.measure.timing import PhaseTimer, RunClocks, cpu_s, now_s, synchronize
from wallclock.bench.tasks.cifar.run import load_split
from wallclock.bench.tasks.cifar.trainer import Trainer, check_runnable
from wallclock.loaders.batches import Split
from wallclock.models.build import build_model
from wallclock.models.recipes.recipe import Recipe
from wallclock.reports.store.schema import Sample

IMAGES = 5000  # that a turn's batches are drawn from; each process holds them


@dataclass(frozen=True, kw_only=True)
class AblationRequest(TurnsRequest):
    """As `TurnsRequest`; a turn is so many optimiser steps at full resolution.

    In a study of the schedule it is two of each epoch instead, as they come in a run.
    """

    BENCHMARK: ClassVar = "cifar ablation"

    turn_length: int = 3

    @property
    def scheduled(self) -> bool:
        """Whether turns go through the schedule."""
        return self.choice.grid == ("schedule",)


@dataclass(frozen=True)
class CifarContender:
    """Trains one variant, a turn at a time; see `bench.measure.turns`.

    Attributes:
        recipe: of the variant.
        split: images; `IMAGES` for training at most.
        device: "cpu" or "cuda".
        seed: as the other contenders'.
        steps: of a turn.
        scheduled: whether they are spread over the recipe's schedule, and its sizes; else all are at its beginning, at
            full resolution.
    """

    recipe: Recipe
    split: Split
    device: str
    seed: int
    steps: int
    scheduled: bool = False

    def __call__(self, stack: ExitStack) -> Callable[[], TurnDone]:
        """Gets ready: the network on the device, compiled where it is."""
        device = torch.device(self.device)
        stack.enter_context(numerics(seed=self.seed, keep_heap=self.recipe.implementations.keep_heap))
        trainer = Trainer(self.recipe, self.split, device=device, seed=self.seed, clocks=RunClocks(device))
        trainer.model.train()
        steps: list[tuple[int | None, int]] = [(None, 0)] * self.steps  # size of the images, and which one of the run
        if self.scheduled:
            epochs = trainer.epoch_of_each_step()
            places = (int((place + 0.5) / self.steps * len(epochs)) for place in range(self.steps))
            steps = [(epochs[place].size, place) for place in places]
        batches = {size: trainer.endless_batches(size) for size, _ in steps}
        return functools.partial(self._turn, trainer, [(batches[size], step) for size, step in steps], device)

    def _turn(
        self,
        trainer: Trainer,
        steps: list[tuple[Iterator[tuple[torch.Tensor, torch.Tensor]], int]],
        device: torch.device,
    ) -> TurnDone:
        unmeasured, first_loss = PhaseTimer(device, enabled=False), 0.0
        synchronize(device)
        begun_s, begun_cpu_s = now_s(), cpu_s()
        for place, (batches, step) in enumerate(steps):
            trainer.step(batches, step, unmeasured)
            if place == 0:
                first_loss = trainer.taken_loss()
        synchronize(device)
        seconds, took_cpu_s = now_s() - begun_s, cpu_s() - begun_cpu_s
        trainer.taken_loss()
        figures = (
            ("steps_per_s", "it/s", self.steps / seconds),
            ("images_per_s", "images/s", self.steps * self.recipe.batch_size / seconds),
            ("step_s", "s", seconds / self.steps),
            ("step_cpu_s", "s", took_cpu_s / self.steps),
        )
        return TurnDone(seconds, took_cpu_s, first_loss, figures)


@dataclass(frozen=True)
class CifarStand:
    """Sets up a recipe's training; see `bench.ablation.kernel_share.Stand`."""

    split: Split
    device: str
    seed: int

    def __call__(self, recipe: Recipe) -> Stand:
        """Returns it, its network in training."""
        device = torch.device(self.device)
        trainer = Trainer(recipe, self.split, device=device, seed=self.seed, clocks=RunClocks(device))
        trainer.model.train()
        batches, unmeasured = trainer.endless_batches(), PhaseTimer(device, enabled=False)

        def update() -> None:
            for optimizer in trainer.optimizers.optimizers:
                optimizer.step()

        def step() -> None:
            trainer.step(batches, 0, unmeasured)
            for parameter in trainer.model.parameters():  # which `update` needs
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)

        parts = {"augment": lambda: next(batches), "optimizer": update}
        return Stand(model=trainer.model, dtype=trainer.dtype, step=step, parts=parts)


def turns(request: AblationRequest, split: Split | None = None) -> Turns:
    """Returns what takes the turns of any recipe, as a request says.

    Args:
        request: of data, device, seed, and the length of a turn.
        split: its data; None to load them.
    """
    part = _part(split or load_split(request.data, "test"))

    def contender(name: str, recipe: Recipe) -> CifarContender:
        steps = 2 * math.ceil(request.recipe.epochs) if request.scheduled else request.turn_length
        return CifarContender(recipe, part, request.device, request.seed, steps, request.scheduled)

    return contender


def _part(split: Split) -> Split:
    return Split(split.train.subset(slice(0, IMAGES)), split.test.subset(slice(0, 1)))


def _ablation(request: AblationRequest, split: Split) -> Ablation:
    def sample(recipe: Recipe, metric: str, unit: str, value: float, **fields: Any) -> Sample:
        parameters = {
            "dataset": split.train.name,
            "data_hash": split.content_hash[:12],
            "device": request.device,
            "precision": recipe.precision,
            "batch_size": recipe.batch_size,
        }
        return Sample(
            benchmark=request.BENCHMARK,
            case=recipe.name,
            parameters=parameters | fields.pop("parameters", {}),
            metric=metric,
            unit=unit,
            value=value,
            better="higher" if metric.endswith("_per_s") else "lower",
            **fields,
        )

    return Ablation(
        variants=request.variants(),
        contender=turns(request, split),
        sample=sample,
        device=request.device,
        seed=request.seed,
        rounds=request.rounds,
        alone=kernels_alone(
            request.recipe,
            request.variants(),
            CifarStand(_part(split), request.device, request.seed),
            device=request.device,
            seed=request.seed,
        ),
        counted=(_exchanged if request.choice.grid == ("devices",) else _operations)(request, split),
    )


def _operations(request: AblationRequest, split: Split) -> Counted:
    return (("step_flop", "FLOP", {name: step_flop(recipe, split) for name, recipe in request.variants().items()}),)


def _exchanged(request: AblationRequest, split: Split) -> Counted:
    """The gradients that devices would add up after each step."""
    model = build_model(request.recipe, len(split.train.classes), torch.device("meta"))
    size = float(sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad))
    return (("gradient_bytes", "B", dict.fromkeys(request.variants(), size)),)


def step_flop(recipe: Recipe, split: Split) -> float:
    """Returns the floating-point operations of a step's forward and backward at full resolution, without running it.

    Counted are matrix products and convolutions, two for a multiply-add, as `torch.utils.flop_counter` does.

    Args:
        recipe: its implementations change nothing: the same arithmetic is counted.
        split: gives size and classes.
    """
    model = build_model(recipe.without(*recipe.levers()), len(split.train.classes), torch.device("meta"))
    size = split.train.images_NHWC.shape[1]
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(recipe.batch_size, 3, size, size, device="meta")).sum().backward()
    return float(counter.get_total_flops())


TASK = AblatedTask(
    request=AblationRequest,
    recipe=Recipe,
    load=lambda _, stored: load_split(stored["data"], "test"),
    check=check_runnable,
    ablation=_ablation,
    metric="step_s",
    notes=lambda recipe, _: (),
)
