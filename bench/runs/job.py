"""Jobs: the entries of `quick` and `suite`, and the context that they run in."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `wallclock --help` needs neither
    from rich.console import Console

    from wallclock.bench.measure.timing import Deadline


@dataclass(frozen=True)
class Context:
    """The context that a job runs in, on "cpu" or "cuda", with a time limit of the whole suite.

    `out` is the folder that holds runs, `data` the path of the real data set, or None to stay with the embedded one;
    `console` shows progress, and `command` is the command line as typed, for the records.
    """

    out: Path
    data: str | None
    device: str
    deadline: "Deadline"
    console: "Console"
    command: str


def needs_data(context: Context) -> str:
    """Returns the reason why a job on real images cannot run in a context; empty when it can."""
    return "" if context.data else "needs real images: --data PATH (wallclock data fetch gets them)"


@dataclass(frozen=True)
class Job:
    """One entry of `quick` or `suite`.

    Attributes:
        name: unique name, such as "cifar sprint".
        summary: description in one line, for `wallclock list`.
        run: executes the job; returns how it ended, "done", "stopped" or "diverged".
        unavailable: returns the reason why the job cannot run in a context; empty when it can.
        at_least_s: seconds before its first result; with less of the budget left, the job is not begun.
        gpu_at_least_s: value of `at_least_s` on a GPU, if smaller there; None otherwise.
        share: fraction of the remaining budget that it may take, so that many cases leave time for later jobs.
        last: whether it comes after the jobs of all benchmarks that are not marked as last.
    """

    name: str
    summary: str
    run: Callable[[Context], str]
    unavailable: Callable[[Context], str] = lambda context: ""
    at_least_s: float = 0.0
    gpu_at_least_s: float | None = None
    share: float = 1.0
    last: bool = False

    def begins_with_s(self, device: str) -> float:
        """Returns the seconds of budget that must be left for the job to begin on a device."""
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
