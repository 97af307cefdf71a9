"""A CycleGAN's levers in turns; see `bench.ablation.run`."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from wallclock.bench.ablation.kernel_share import Stand, kernels_alone
from wallclock.bench.ablation.run import Ablation, TurnDone, Turns, TurnsRequest
from wallclock.bench.ablation.task import AblatedTask
from wallclock.bench.measure.numerics import numerics
from wallclock.bench.measure.timing import cpu_s, now_s, synchronize
from wallclock.bench.tasks.cyclegan.baseline import plain_loop
from wallclock.bench.tasks.cyclegan.networks import Losses
from wallclock.bench.tasks.cyclegan.run import load_data, load_stored, new_sample, run_notes
from wallclock.bench.tasks.cyclegan.trainer import DTYPES, CycleGanTrainer, check_runnable
from wallclock.loaders.data.unpaired import Unpaired
from wallclock.models.recipes.cyclegan import CycleGanRecipe
from wallclock.reports.store.schema import Sample
from wallclock.reports.views.ablation import BASELINE

IMAGES = 64  # of each domain; each process holds them


@dataclass(frozen=True, kw_only=True)
class AblationRequest(TurnsRequest):
    """As `TurnsRequest`; a turn is so many iterations."""

    BENCHMARK: ClassVar = "cyclegan ablation"

    @staticmethod
    def steady(recipe: CycleGanRecipe) -> CycleGanRecipe:
        """Returns the recipe at a learning rate that does not fall."""
        return replace(recipe, epochs_constant=10**6)


@dataclass(frozen=True)
class CycleGanContender:
    """Trains one variant, a turn at a time; see `bench.measure.turns`.

    Attributes:
        recipe: of the variant.
        plain: by the plain loop.
        data: images; `IMAGES` of each domain at most.
        device: "cpu" or "cuda".
        seed: as the other contenders'.
        iterations: of a turn.
    """

    recipe: CycleGanRecipe
    plain: bool
    data: Unpaired
    device: str
    seed: int
    iterations: int

    def __call__(self, stack: ExitStack) -> Callable[[], TurnDone]:
        """Gets ready: networks on the device, nothing compiled."""
        device = torch.device(self.device)
        stack.enter_context(numerics(seed=self.seed, keep_heap=self.recipe.implementations.keep_heap))
        if self.plain:
            steps = plain_loop(self.recipe, self.data.train, device=device, seed=self.seed)
        else:
            steps = CycleGanTrainer(self.recipe, self.data, device=device, seed=self.seed).train()
        return functools.partial(self._turn, steps, device)

    def _turn(self, steps: Iterator[Losses], device: torch.device) -> TurnDone:
        synchronize(device)
        begun_s, begun_cpu_s = now_s(), cpu_s()
        losses = [next(steps).values for _ in range(self.iterations)]
        synchronize(device)
        seconds, took_cpu_s = now_s() - begun_s, cpu_s() - begun_cpu_s
        figures = (
            ("iterations_per_s", "it/s", self.iterations / seconds),
            ("images_per_s", "images/s", 2 * self.iterations * self.recipe.batch_size / seconds),
            ("iteration_s", "s", seconds / self.iterations),
            ("turn_cpu_s", "s", took_cpu_s / self.iterations),
        )
        return TurnDone(seconds, took_cpu_s, losses[0].sum().item(), figures)


@dataclass(frozen=True)
class CycleGanStand:
    """Sets up a recipe's training; see `bench.ablation.kernel_share.Stand`."""

    data: Unpaired
    device: str
    seed: int

    def __call__(self, recipe: CycleGanRecipe) -> Stand:
        """Returns it."""
        recipe = AblationRequest.steady(recipe)
        trainer = CycleGanTrainer(recipe, self.data, device=torch.device(self.device), seed=self.seed)
        steps = trainer.train()

        def update() -> None:
            trainer.generator_optimizer.step()
            trainer.discriminator_optimizer.step()

        return Stand(
            model=nn.ModuleList(trainer.nets.named().values()),
            dtype=DTYPES[recipe.precision],
            step=lambda: next(steps),
            parts={"fused_adam": update},
        )


def turns(request: AblationRequest, data: Unpaired | None = None) -> Turns:
    """Returns what takes the turns of any recipe, as a request says.

    Args:
        request: of data, device, seed, and the length of a turn.
        data: its images; None to load them.
    """
    part = _part(data or load_data(request.data, request.recipe.load_size, request.recipe.image_size))

    def contender(name: str, recipe: CycleGanRecipe) -> CycleGanContender:
        return CycleGanContender(
            request.steady(recipe), name == BASELINE, part, request.device, request.seed, request.turn_length
        )

    return contender


def _part(data: Unpaired) -> Unpaired:
    a, b = (images[:IMAGES] for images in data.train)
    return replace(data, train=(a, b))


def _ablation(request: AblationRequest, data: Unpaired) -> Ablation:
    def sample(recipe: CycleGanRecipe, metric: str, unit: str, value: float, **fields: Any) -> Sample:
        return replace(
            new_sample(recipe, data, request.device, metric, unit, value, **fields), benchmark=request.BENCHMARK
        )

    return Ablation(
        variants=request.variants(),
        contender=turns(request, data),
        sample=sample,
        device=request.device,
        seed=request.seed,
        rounds=request.rounds,
        alone=kernels_alone(
            request.recipe,
            request.variants(),
            CycleGanStand(_part(data), request.device, request.seed),
            device=request.device,
            seed=request.seed,
        ),
    )


TASK = AblatedTask(
    request=AblationRequest,
    recipe=CycleGanRecipe,
    load=load_stored,
    check=check_runnable,
    ablation=_ablation,
    metric="iteration_s",
    notes=run_notes,
)
