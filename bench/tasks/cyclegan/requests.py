"""Requests of the CycleGAN task: one for a run, one for an ablation. No torch here."""

from dataclasses import dataclass, replace
from typing import ClassVar

from wallclock.bench.ablation.request import AblationRequest
from wallclock.bench.runs.request import IterationRequest, by_device, option
from wallclock.models.recipes.cyclegan import CycleGanRecipe


@dataclass(frozen=True, kw_only=True)
class CycleGanRequest(IterationRequest):
    """A request to train a CycleGAN."""

    BENCHMARK: ClassVar = "cyclegan"

    recipe: CycleGanRecipe
    data: str = option(
        "synthetic", "Folder with trainA, trainB, testA and testB, or 'synthetic' for the embedded domains."
    )
    iterations: int = option(0, "Stop after so many; 0 for the recipe's whole budget.")
    look_every: int = option(1000, "Iterations between looks: cycles' errors, pictures, checkpoint.")
    seed: int = option(0, "Seed of weights, batches and pools.")
    window_iterations: int = by_device(cpu=1, cuda=20)  # some seconds on a CPU, and a second on a GPU


@dataclass(frozen=True, kw_only=True)
class CycleGanAblationRequest(AblationRequest):
    """A request for an ablation, in which a turn is `turn_length` iterations."""

    BENCHMARK: ClassVar = "cyclegan ablation"

    recipe: CycleGanRecipe

    @staticmethod
    def steady(recipe: CycleGanRecipe) -> CycleGanRecipe:
        """Returns the recipe with a constant learning rate."""
        return replace(recipe, epochs_constant=10**6)
