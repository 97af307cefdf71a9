"""Jobs: the entries of `quick` and `suite`, and what they are run with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `wallclock --help` needs neither
    from rich.console import Console

    from wallclock.bench.measure.timing import Deadline


@dataclass(frozen=True)
class Context:
    """What a job is run with.

    Attributes:
        out: folder that holds runs.
        data: path of the real data set, or None to stay with the embedded one.
        device: "cpu" or "cuda".
        deadline: of the whole suite.
        console: for progress.
        command: as typed, for the records.
    """

    out: Path
    data: str | None
    device: str
    deadline: "Deadline"
    console: "Console"
    command: str


@dataclass(frozen=True)
class Job:
    """One entry of `quick` or `suite`.

    Attributes:
        name: unique, such as "cifar sprint".
        summary: one line for `wallclock list`.
        unavailable: why it cannot run in a context; empty when it can.
        run: does it; returns how it ended, "done", "stopped" or "diverged".
        at_least_s: what it takes before it has measured anything; with less left of the budget it is not begun.
        gpu_at_least_s: the same on a GPU, where that is less.
        share: of what is left of the budget that it may take; one of many cases would leave nothing to those after it.
        last: whether it comes after the jobs of every benchmark that are not.
    """

    name: str
    summary: str
    unavailable: Callable[[Context], str]
    run: Callable[[Context], str]
    at_least_s: float = 0.0
    gpu_at_least_s: float | None = None
    share: float = 1.0
    last: bool = False

    def begins_with_s(self, device: str) -> float:
        """Returns how much of a budget it is begun with on a device at the least."""
        if device == "cuda" and self.gpu_at_least_s is not None:
            return self.gpu_at_least_s
        return max(self.at_least_s, 1.0)


@dataclass(frozen=True)
class Plan:
    """A list of jobs, most informative first."""

    name: str
    jobs: tuple[Job, ...]

    def __post_init__(self) -> None:
        names = [job.name for job in self.jobs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"plan '{self.name}' has {', '.join(twice)} twice; every job needs a name of its own")
