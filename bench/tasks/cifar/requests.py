"""Requests of the classifier task: one for a run, one for an ablation. No torch here."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from wallclock.bench.ablation.request import AblationRequest
from wallclock.bench.runs.request import Request, by_device, option
from wallclock.models.recipes.recipe import Recipe

PHASE_STEPS = 12


@dataclass(frozen=True, kw_only=True)
class CifarRequest(Request):
    """A request to train a classifier on a number of seeds.

    Attributes:
        target: the accuracy to reach, a fraction in (0, 1); by default the recipe's.
        seeds: number of seeds to train, which are 0, 1, ...; 0 measures the phases only.
        split: "test" scores on the test set; "tune" on a tenth of the training set, held out from training.
        phases: number of steps in the separate pass that times the phases; 0 skips it.

    Raises:
        ValueError: if a number is out of range.
    """

    BENCHMARK: ClassVar = "cifar"

    recipe: Recipe
    target: float = option(None, "Accuracy to reach, such as 0.94.")
    seeds: int = option(1, "How many seeds to train; 0 measures the phases only.")
    split: Literal["test", "tune"] = option("test", "tune: score on a tenth of the training set instead.")
    phases: int = PHASE_STEPS

    def __post_init__(self) -> None:
        if self.target is None:
            object.__setattr__(self, "target", self.recipe.target)
        if not 0 < self.target < 1:
            hint = f"; did you mean {self.target / 100:g}?" if 10 <= self.target < 100 else ""
            raise ValueError(f"target is {self.target:g}; expected an accuracy between 0 and 1, such as 0.94{hint}")
        if self.seeds < 0:
            raise ValueError(f"seeds is {self.seeds}; expected at least 1, or 0 to measure the phases only")


@dataclass(frozen=True, kw_only=True)
class CifarAblationRequest(AblationRequest):
    """A request for an ablation, in which a turn is `turn_length` optimiser steps at full resolution.

    In a study of the schedule, a turn has two steps for each epoch instead, spread over the schedule.
    """

    BENCHMARK: ClassVar = "cifar ablation"

    recipe: Recipe
    turn_length: int = by_device(cpu=3, cuda=20)

    @property
    def scheduled(self) -> bool:
        """Whether the steps of a turn are spread over the whole schedule."""
        return self.choice.grid == ("schedule",)

    @property
    def steps(self) -> int:
        """Number of optimiser steps in a turn."""
        return 2 * math.ceil(self.recipe.epochs) if self.scheduled else self.turn_length
