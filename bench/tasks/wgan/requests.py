"""Requests of the WGAN task: one for a run, one for an ablation. No torch here."""

from dataclasses import dataclass, replace
from typing import ClassVar

from wallclock.bench.ablation.request import AblationRequest
from wallclock.bench.runs.request import IterationRequest, by_device, option
from wallclock.models.recipes.wgan import CriticSteps, Stage, WganRecipe


@dataclass(frozen=True, kw_only=True)
class WganRequest(IterationRequest):
    """A request to train a WGAN, in which an iteration is a generator step with the critic steps before it.

    Attributes:
        only_class: the name of the one class to train on; empty for all.
        generator_iterations: number of generator steps to stop after; 0 for the recipe's whole budget.
        window_cycles: number of iterations that one rate is measured over.
    """

    BENCHMARK: ClassVar = "wgan"
    LIMIT: ClassVar = "generator_iterations"
    WINDOW: ClassVar = "window_cycles"

    recipe: WganRecipe
    data: str = option(
        "synthetic", "Images: a converted LSUN, CIFAR-10, a folder; or 'synthetic' for the embedded set."
    )
    only_class: str = option("", "Train on this class alone.", flag="--class")
    generator_iterations: int = option(0, "Stop after so many generator steps; 0 for the recipe's whole budget.")
    look_every: int = option(25, "Generator steps between looks: distance, samples, checkpoint.")
    seed: int = option(0, "Seed of weights, order and noise.")
    window_cycles: int = by_device(cpu=1, cuda=20)  # some seconds on a CPU, and a second on a GPU


@dataclass(frozen=True, kw_only=True)
class WganAblationRequest(AblationRequest):
    """A request for an ablation; a turn is `turn_length` generator steps, with the usual critic steps before each.

    Attributes:
        only_class: the name of the one class to train on; empty for all.
    """

    BENCHMARK: ClassVar = "wgan ablation"

    recipe: WganRecipe
    only_class: str = option("", "Name of the one class of images to train on; all by default.", flag="--class")

    @staticmethod
    def steady(recipe: WganRecipe) -> WganRecipe:
        """Returns the recipe with the usual number of critic steps in every cycle, and without an end."""
        return replace(
            recipe,
            critic_steps=CriticSteps(usual=recipe.critic_steps.usual, long_until=0, long_every=0),
            stages=(Stage(epochs=1e6, lr=recipe.stages[0].lr, long_start=False),),
        )
