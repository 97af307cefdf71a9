"""Learning-rate schedules as functions of training progress, so that a recipe means the same at any batch size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def demand(owner: object, names: str, accepted: Callable[[Any], bool], expected: str) -> None:
    """Refuses fields that are out of range.

    Args:
        owner: part of a recipe that has the fields.
        names: names of the fields, separated by spaces.
        accepted: returns whether a value is in range.
        expected: the range in words.

    Raises:
        ValueError: if a value is out of range.
    """
    for name in names.split():
        if not accepted(getattr(owner, name)):
            raise ValueError(f"{name} is {getattr(owner, name)}; expected {expected}")


@dataclass(frozen=True)
class Setting:
    """An optimiser's setting at one step: a factor on its peak learning rate, and its momentum where scheduled."""

    lr_factor: float
    momentum: float | None = None


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """fast.ai's 1cycle: up, down in the same time, then annealing to near zero, with momentum moving the other way.

    Attributes:
        start_ratio: peak learning rate divided by the first one.
        final_fraction: share of training that remains after the two ramps, for annealing.
        final_ratio: first learning rate divided by the last one.
        momentum_max: momentum at both ends of the cycle and while annealing.
        momentum_min: momentum at the peak.

    Source: `CircularLR_beta` of fastai 0.7; Smith, https://arxiv.org/abs/1803.09820
    """

    start_ratio: float = 20.0
    final_fraction: float = 0.2
    final_ratio: float = 100.0
    momentum_max: float = 0.95
    momentum_min: float = 0.85

    def __post_init__(self) -> None:
        demand(self, "start_ratio final_ratio", lambda v: v > 0, "a positive number")
        demand(self, "final_fraction", lambda v: 0 < v < 1, "a share of training between 0 and 1")
        demand(self, "momentum_max momentum_min", lambda v: 0 <= v < 1, "a momentum from 0 to below 1")

    def at(self, progress: float) -> Setting:
        """Returns the setting at `progress`, from 0 at the first step to 1 after the last."""
        first = 1 / self.start_ratio
        ramp = (1 - self.final_fraction) / 2
        if progress >= 2 * ramp:
            annealed = (progress - 2 * ramp) / self.final_fraction
            return Setting(first * (1 - annealed * (1 - 1 / self.final_ratio)), self.momentum_max)
        height = 1 - abs(progress - ramp) / ramp
        momentum = self.momentum_max - height * (self.momentum_max - self.momentum_min)
        return Setting(first + height * (1 - first), momentum)


@dataclass(frozen=True, kw_only=True)
class LinearDecay:
    """A learning rate that falls in a straight line from its peak to zero, after the share `until` of training."""

    until: float = 1.0

    def __post_init__(self) -> None:
        demand(self, "until", lambda v: v > 0, "a positive share of training")

    def at(self, progress: float) -> Setting:
        """Returns the setting at `progress`, from 0 at the first step to 1 after the last."""
        return Setting(max(0.0, 1 - progress / self.until))


Schedule = OneCycle | LinearDecay
