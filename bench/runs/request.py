"""Requests of runs: the options of a command, and the fields that a record keeps to resume the run. No torch here."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

SYNTHETIC = "synthetic"


def option(default: Any, help: str, *, flag: str = "") -> Any:
    """Returns a field of a request that is also an option of its command, with one line for `--help`.

    `flag` is the name of the option, such as `--class`; by default it is derived from the name of the field.
    """
    return field(default=default, metadata={"help": help, "flag": flag})


def by_device(cpu: Any, cuda: Any) -> Any:
    """Returns a field of a request without an option: a command sets it by the device."""
    return field(default=cpu, metadata={"cuda": cuda})


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request for a run; each task derives its own, and checks in `__post_init__` the values that a caller may set.

    Attributes:
        BENCHMARK: the name of the benchmark in the records.
        recipe: the recipe with all overrides applied.
        device: "cpu" or "cuda".
    """

    BENCHMARK: ClassVar[str]

    recipe: Any
    data: str = option(SYNTHETIC, "Path of the data set, or 'synthetic' for the embedded one.")
    device: str

    def recipes(self) -> Collection[Any]:
        """Returns every recipe that the run trains."""
        return (self.recipe,)

    def stored(self) -> dict[str, Any]:
        """Returns the request as records keep it; they keep the recipe in a place of its own."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "recipe"}
        return {"benchmark": self.BENCHMARK, **own}

    @classmethod
    def from_stored(cls, recipe: Any, stored: dict[str, Any]) -> Self:
        """Returns the request that records keep as `stored`."""
        return cls(recipe=recipe, **{f.name: stored[f.name] for f in fields(cls) if f.name != "recipe"})

    @classmethod
    def on_device(cls, device: str, **given: Any) -> Self:
        """Returns a request with the defaults of a device; see `by_device`."""
        usual = {f.name: f.metadata["cuda"] for f in fields(cls) if device == "cuda" and "cuda" in f.metadata}
        return cls(**{"device": device} | usual | given)


@dataclass(frozen=True, kw_only=True)
class IterationRequest(Request):
    """A request for a run of iterations, `bench.runs.iterations`; a task adds the limit and the window.

    Attributes:
        LIMIT: name of the field with the number of iterations to stop after; 0 for the recipe's whole budget.
        WINDOW: name of the field with the number of iterations that one rate is measured over.
        look_every: number of iterations between looks: figures, a picture, a checkpoint.

    Raises:
        ValueError: if a number is out of range.
    """

    LIMIT: ClassVar[str] = "iterations"
    WINDOW: ClassVar[str] = "window_iterations"

    look_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.limit < 0 or self.look_every < 1 or self.window < 1:
            raise ValueError(
                f"{self.LIMIT} is {self.limit}, look_every {self.look_every}, {self.WINDOW} {self.window}; "
                "expected at least 0 (for all), 1 and 1"
            )

    @property
    def limit(self) -> int:
        """Number of iterations to stop after; 0 for all."""
        return getattr(self, self.LIMIT)

    @property
    def window(self) -> int:
        """Number of iterations in a window."""
        return getattr(self, self.WINDOW)
