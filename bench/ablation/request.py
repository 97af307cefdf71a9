"""What is asked of an ablation. No torch here."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Self

from wallclock.bench.ablation.variants import Variants
from wallclock.bench.runs.request import Request, by_device, option


@dataclass(frozen=True, kw_only=True)
class AblationRequest(Request):
    """What is asked of one ablation; each task derives its own.

    Attributes:
        seed: of all contenders.
        rounds: rounds in which each contender has one turn.
        turn_length: iterations of a turn, as the task counts them.
        choice: which variants there are.

    Raises:
        ValueError: if a number is out of range.
    """

    data: str = option("synthetic", "As `wallclock run` takes it.")
    seed: int = option(0, "Of weights, batches and noise.")
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
        """Returns the recipe of each contender; see `bench.ablation.variants`."""
        return self.choice.of(self.steady(self.recipe))

    @staticmethod
    def steady(recipe: Any) -> Any:
        """Returns the recipe with every turn alike, and no end."""
        return recipe

    def stored(self) -> dict[str, Any]:
        """Returns what a record keeps of the request."""
        stored = super().stored()
        stored["variants"] = stored.pop("choice").stored()
        return stored

    @classmethod
    def from_stored(cls, recipe: Any, stored: dict[str, Any]) -> Self:
        """Returns the request of which `stored` is what a record keeps."""
        return super().from_stored(recipe, {**stored, "choice": Variants.from_stored(stored["variants"])})
