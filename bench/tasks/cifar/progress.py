"""The display of a run's events on stderr: a progress bar on a terminal, plain lines elsewhere."""

from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from wallclock.bench.tasks.cifar.trainer import Evaluated, Event, Finished, StepDone


@dataclass(frozen=True)
class SeedEvent:
    """An event of a training, with the number of its seed."""

    seed: int
    event: Event


@dataclass(frozen=True)
class SeedDiverged:
    """A seed whose loss became NaN or infinite, with the message on it."""

    seed: int
    error: str


class Display:
    """Shows the events of a cifar run.

    Args:
        console: where to write; a terminal gets a bar, anything else a line for each epoch.
        title: name of the run, shown beside the bar.
        target: the accuracy to reach, as a fraction.
    """

    def __init__(self, console: Console, title: str, target: float) -> None:
        self.console, self.title, self.target = console, title, target
        self._accuracy = self._rate = ""
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[state]}"))
        self._progress = Progress(
            *columns, TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(), console=console, transient=True
        )
        self._task: int | None = None

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._progress.stop()

    def __call__(self, seen: SeedEvent | SeedDiverged) -> None:
        """Shows one event."""
        if isinstance(seen, SeedDiverged):
            self._line(f"seed {seen.seed}: diverged, {seen.error}", "red")
            self._end_seed()
        elif isinstance(seen.event, StepDone):
            event = seen.event
            if event.elapsed_train_eval_s > 0:
                self._rate = f"{event.images / event.elapsed_train_eval_s:,.0f} img/s"
            self._advance(seen.seed, event.step, event.total_steps)
        elif isinstance(seen.event, Evaluated):
            result = seen.event
            self._accuracy = f"{100 * result.accuracy:.2f}%"
            if not self.console.is_terminal:
                self._line(
                    f"seed {seen.seed} epoch {result.epoch:.3g}: accuracy {self._accuracy}, "
                    f"loss {result.train_loss_nats:.4f}, {result.elapsed_train_eval_s:.1f} s {self._rate}".rstrip()
                )
        elif isinstance(seen.event, Finished):
            final = seen.event
            reached = final.accuracy >= self.target
            verdict = "reached" if reached else "missed"
            self._line(
                f"seed {seen.seed}: {100 * final.accuracy:.2f}% in {final.train_eval_s:.2f} s, "
                f"{final.images_per_s:,.0f} images/s, target of {100 * self.target:g}% {verdict}",
                "green" if reached else "yellow",
            )
            self._end_seed()

    def _advance(self, seed: int, step: int, total: int) -> None:
        if not self.console.is_terminal:
            return
        if self._task is None:
            self._task = self._progress.add_task("", total=total, state="")
        state = " ".join(part for part in (self._accuracy, self._rate) if part)
        description = f"{self.title} seed {seed}"
        self._progress.update(self._task, completed=step, total=total, description=description, state=state)  # type: ignore[arg-type]

    def _end_seed(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)  # type: ignore[arg-type]
        self._task, self._accuracy, self._rate = None, "", ""

    def _line(self, text: str, style: str = "") -> None:
        self._progress.console.print(Text(text, style=style))
