"""Requests of ablations. No torch here."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Self

from wallclock.bench.ablation.variants import Variants
from wallclock.bench.runs.request import Request, by_device, option


@dataclass(frozen=True, kw_only=True)
class AblationRequest(Request):
    """A request for an ablation; each task derives its own, and counts `turn_length` in its own iterations.

    Raises:
        ValueError: if a number is out of range.
    """

    data: str = option("synthetic", "Path of the data set, as `wallclock run` takes it.")
    seed: int = option(0, "Seed of weights, batches and noise.")
    rounds: int = option(12, "Turns of each variant.")
    turn_length: int = by_device(cpu=1, cuda=20)  # some seconds on a CPU, and a second on a GPU
    choice: Variants = Variants()

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.turn_length < 1:
            raise ValueError(f"rounds is {self.rounds}, turn_length {self.turn_length}; expected at least 1")

    def recipes(self) -> Collection[Any]:
        """Returns every recipe that the ablation trains."""
        return self.variants().values()

    def variants(self) -> dict[str, Any]:
        """Returns the recipe of each variant by name; see `bench.ablation.variants`."""
        return self.choice.of(self.steady(self.recipe))

    @staticmethod
    def steady(recipe: Any) -> Any:
        """Returns the recipe changed so that all turns are alike and the training has no end."""
        return recipe

    def stored(self) -> dict[str, Any]:
        """Returns the request as records keep it."""
        stored = super().stored()
        stored["variants"] = stored.pop("choice").stored()
        return stored

    @classmethod
    def from_stored(cls, recipe: Any, stored: dict[str, Any]) -> Self:
        """Returns the request that records keep as `stored`."""
        return super().from_stored(recipe, {**stored, "choice": Variants.from_stored(stored["variants"])})
