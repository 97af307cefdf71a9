"""What is asked of a run: options of its command, and what its record keeps so that it can go on. No torch here."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

SYNTHETIC = "synthetic"


def option(default: Any, help: str, *, flag: str = "") -> Any:
    """Returns a field of a request that its command has as an option.

    Args:
        default: the value without the option.
        help: one line for `--help`.
        flag: the option, such as `--class`; by default the name of the field.
    """
    return field(default=default, metadata={"help": help, "flag": flag})


def by_device(cpu: Any, cuda: Any) -> Any:
    """Returns a field of a request without an option: a command sets it by the device."""
    return field(default=cpu, metadata={"cuda": cuda})


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of one run; each task derives its requests, and checks in `__post_init__` what a caller may set.

    Attributes:
        BENCHMARK: the name of the benchmark in the records.
        recipe: the recipe with all overrides applied.
        data: a path, or "synthetic" for the embedded set.
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
        """Returns what a record keeps of the request; the recipe has a place of its own there."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "recipe"}
        return {"benchmark": self.BENCHMARK, **own}

    @classmethod
    def from_stored(cls, recipe: Any, stored: dict[str, Any]) -> Self:
        """Returns the request of which `stored` is what a record keeps."""
        return cls(recipe=recipe, **{f.name: stored[f.name] for f in fields(cls) if f.name != "recipe"})

    @classmethod
    def on_device(cls, device: str, **given: Any) -> Self:
        """Returns a request with the defaults of a device; see `by_device`."""
        usual = {f.name: f.metadata["cuda"] for f in fields(cls) if device == "cuda" and "cuda" in f.metadata}
        return cls(**{"device": device} | usual | given)


@dataclass(frozen=True, kw_only=True)
class IterationRequest(Request):
    """What is asked of a run of iterations, `bench.runs.iterations`; a task adds the limit and the window.

    Attributes:
        LIMIT: the field that says after how many iterations to stop; 0 for the recipe's whole budget.
        WINDOW: the field that says over how many iterations one rate is measured.
        look_every: iterations from look to look: figures, a picture, a checkpoint.
        seed: of weights, order and noise.

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
        """Iterations to stop after; 0 for all."""
        return getattr(self, self.LIMIT)

    @property
    def window(self) -> int:
        """Iterations of a window."""
        return getattr(self, self.WINDOW)
