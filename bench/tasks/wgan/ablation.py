"""A WGAN's levers in turns; see `bench.ablation.run`."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from wallclock.bench.ablation.kernel_share import Stand, kernels_alone
from wallclock.bench.ablation.run import Ablation, TurnDone, Turns, TurnsRequest
from wallclock.bench.ablation.task import AblatedTask
from wallclock.bench.measure.numerics import numerics
from wallclock.bench.measure.timing import cpu_s, now_s, synchronize
from wallclock.bench.runs.record import change_notes
from wallclock.bench.tasks.wgan.baseline import plain_loop
from wallclock.bench.tasks.wgan.networks import Step
from wallclock.bench.tasks.wgan.run import load_split, load_stored, new_sample
from wallclock.bench.tasks.wgan.trainer import DTYPES, WganTrainer, check_runnable
from wallclock.loaders.batches import Dataset, Split
from wallclock.models.recipes.wgan import CriticSteps, Stage, WganRecipe
from wallclock.reports.store.schema import Sample
from wallclock.reports.views.ablation import BASELINE

IMAGES = 4096  # that a turn's batches are drawn from; each process holds them


@dataclass(frozen=True, kw_only=True)
class AblationRequest(TurnsRequest):
    """As `TurnsRequest`; a turn is so many generator steps, with the usual critic steps before each.

    Attributes:
        only_class: as `WganRequest`.
    """

    BENCHMARK: ClassVar = "wgan ablation"

    only_class: str = ""

    @staticmethod
    def steady(recipe: WganRecipe) -> WganRecipe:
        """Returns the recipe with as many critic steps in every cycle, and no end."""
        return replace(
            recipe,
            critic_steps=CriticSteps(usual=recipe.critic_steps.usual, long_until=0, long_every=0),
            stages=(Stage(epochs=1e6, lr=recipe.stages[0].lr, long_start=False),),
        )


@dataclass(frozen=True)
class WganContender:
    """Trains one variant, a turn at a time; see `bench.measure.turns`.

    Attributes:
        recipe: of the variant.
        plain: by the plain loop.
        images_NHWC: uint8 [N, S, S, 3].
        device: "cpu" or "cuda".
        seed: as the other contenders'.
        cycles: of a turn.
    """

    recipe: WganRecipe
    plain: bool
    images_NHWC: npt.NDArray[np.uint8]
    device: str
    seed: int
    cycles: int

    def __call__(self, stack: ExitStack) -> Callable[[], TurnDone]:
        """Gets ready: networks on the device, nothing compiled."""
        device = torch.device(self.device)
        stack.enter_context(numerics(seed=self.seed, keep_heap=self.recipe.implementations.keep_heap))
        labels = torch.zeros(len(self.images_NHWC), dtype=torch.int64)
        dataset = Dataset("part", torch.from_numpy(self.images_NHWC), labels, ("all",), "")
        if self.plain:
            steps = plain_loop(self.recipe, dataset, device=device, seed=self.seed)
        else:
            steps = WganTrainer(self.recipe, dataset, device=device, seed=self.seed).train()
        return functools.partial(self._turn, steps, device)

    def _turn(self, steps: Iterator[Step], device: torch.device) -> TurnDone:
        critic_s, generator_s, begun_cpu_s = 0.0, 0.0, cpu_s()
        losses: list[torch.Tensor] = []
        for _ in range(self.cycles):
            synchronize(device)
            begun_s = now_s()
            losses += [next(steps).loss for _ in range(self.recipe.critic_steps.usual)]
            synchronize(device)
            between_s = now_s()
            assert next(steps).kind == "generator", "a cycle of an ablation is never cut short"
            synchronize(device)
            critic_s, generator_s = critic_s + between_s - begun_s, generator_s + now_s() - between_s
        count, seconds, took_cpu_s = len(losses), critic_s + generator_s, cpu_s() - begun_cpu_s
        figures = (
            ("critic_iterations_per_s", "it/s", count / seconds),
            ("images_per_s", "images/s", count * self.recipe.batch_size / seconds),
            ("critic_step_s", "s", critic_s / count),
            ("generator_step_s", "s", generator_s / self.cycles),
            ("cycle_cpu_s", "s", took_cpu_s / self.cycles),
        )
        return TurnDone(seconds, took_cpu_s, losses[0].item(), figures)


@dataclass(frozen=True)
class WganStand:
    """Sets up a recipe's training, a cycle a step; see `bench.ablation.kernel_share.Stand`."""

    images_NHWC: npt.NDArray[np.uint8]
    device: str
    seed: int

    def __call__(self, recipe: WganRecipe) -> Stand:
        """Returns it."""
        recipe = AblationRequest.steady(recipe)
        labels = torch.zeros(len(self.images_NHWC), dtype=torch.int64)
        dataset = Dataset("part", torch.from_numpy(self.images_NHWC), labels, ("all",), "")
        trainer = WganTrainer(recipe, dataset, device=torch.device(self.device), seed=self.seed)
        steps, usual = trainer.train(), recipe.critic_steps.usual

        def update() -> None:
            for _ in range(usual):
                trainer.critic_optimizer.step()
            trainer.generator_optimizer.step()

        return Stand(
            model=nn.ModuleList([trainer.critic, trainer.generator]),
            dtype=DTYPES[recipe.precision],
            step=lambda: [next(steps) for _ in range(usual + 1)],
            iterations=usual,
            parts={"optimizer": update},
        )


def turns(request: AblationRequest, split: Split | None = None) -> Turns:
    """Returns what takes the turns of any recipe, as a request says.

    Args:
        request: of data, device, seed, and the length of a turn.
        split: its data; None to load them.
    """
    images = _images(request, split or load_split(request.data, request.recipe.image_size, request.only_class))

    def contender(name: str, recipe: WganRecipe) -> WganContender:
        return WganContender(
            request.steady(recipe), name == BASELINE, images, request.device, request.seed, request.turn_length
        )

    return contender


def _ablation(request: AblationRequest, split: Split) -> Ablation:
    def sample(recipe: WganRecipe, metric: str, unit: str, value: float, **fields: Any) -> Sample:
        made = new_sample(recipe, split, request.device, metric, unit, value, **fields)
        return replace(made, benchmark=request.BENCHMARK)

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
            WganStand(_images(request, split), request.device, request.seed),
            device=request.device,
            seed=request.seed,
        ),
    )


def _images(request: AblationRequest, split: Split) -> npt.NDArray[np.uint8]:
    """The images of a turn's batches: whole cycles, so that no epoch ends within one."""
    cycle = request.recipe.critic_steps.usual * request.recipe.batch_size
    count = min(IMAGES, len(split.train)) // cycle * cycle
    if not count:
        raise ValueError(
            f"{min(IMAGES, len(split.train))} images do not fill the {request.recipe.critic_steps.usual} batches of "
            f"{request.recipe.batch_size} of one cycle; use --set batch_size=64 or less, or more data"
        )
    return split.train.images_NHWC[:count].numpy()


TASK = AblatedTask(
    request=AblationRequest,
    recipe=WganRecipe,
    load=load_stored,
    check=check_runnable,
    ablation=_ablation,
    metric="critic_step_s",
    notes=lambda recipe, _: change_notes(recipe),
)
