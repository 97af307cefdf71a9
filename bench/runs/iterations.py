"""Runs measured in iterations: windows of steady rates, looks during training, checkpoints, exact resumption."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from wallclock.bench.engine.checkpoint import CHECKPOINT
from wallclock.bench.engine.trainer import StatefulTrainer
from wallclock.bench.measure.timing import now_s, synchronize
from wallclock.bench.runs.training import Ended, Observer, TrainingRun
from wallclock.reports.store.pictures import write_picture
from wallclock.reports.store.schema import Sample


@dataclass(frozen=True)
class Figure:
    """One value to record, see `reports.store.schema.Sample`; `parameters` are added to those of the run."""

    metric: str
    unit: str
    value: float
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Look:
    """The findings of a look during training, off the clock: values to record, and lines for the observer.

    The other fields are those of a picture of the networks' present output, uint8 [H, W, 3]; see
    `reports.store.pictures.write_picture`.
    """

    figures: Sequence[Figure]
    lines: Sequence[str]
    name: str
    pixels: npt.NDArray[np.uint8]
    title: str
    caption: str


@dataclass(frozen=True)
class Window:
    """Iterations of one pace, timed as a whole.

    Attributes:
        pace: pace of its iterations; see `StatefulTrainer.pace`.
        first: number of iterations done before the window.
        first_step: number of steps done before the window.
        seconds: seconds that its iterations took.
        losses: losses of each iteration, float64 [iterations, K].
        ends: number of steps done by the end of each iteration.
    """

    pace: int
    first: int
    first_step: int
    seconds: float
    losses: npt.NDArray[np.float64]
    ends: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of iterations in the window."""
        return len(self.ends)

    @property
    def steps(self) -> int:
        """Number of steps in the window."""
        return self.ends[-1] - self.first_step


class IterationRun(TrainingRun):
    """A run that trains one seed, and records windows and looks as they come; a task defines its looks.

    Its request is a `bench.runs.request.IterationRequest`, its trainer is that of the task's ablation.

    Attributes:
        COUNTED: name of the iterations, in the plural.
        LOSSES: metrics of the K losses of an iteration.
        LOSS_UNIT: the unit of the losses.
        IMAGES: number of images that an iteration trains on for each image of the batch size.
        RESULT: metric and unit of the sample that marks a run as diverged, with NaN as its value.
    """

    COUNTED: ClassVar[str] = "iterations"
    LOSSES: ClassVar[tuple[str, ...]]
    LOSS_UNIT: ClassVar[str] = "loss"
    IMAGES: ClassVar[int] = 1
    RESULT: ClassVar[tuple[str, str]]

    def look(self, trainer: Any) -> Look:
        """Measures and pictures the networks' present output; leaves the state of the training unchanged."""
        raise NotImplementedError

    def rates(self, window: Window) -> Sequence[Figure]:
        """Returns the rates of a window, and on a GPU the peak of memory."""
        images = self.IMAGES * window.count * self.request.recipe.batch_size
        figures = [
            Figure("iterations_per_s", "it/s", window.count / window.seconds),
            Figure("images_per_s", "images/s", images / window.seconds),
        ]
        if self.device.type == "cuda":
            figures.append(Figure("peak_bytes", "B", torch.cuda.max_memory_allocated()))
        return figures

    def line(self, window: Window) -> str:
        """Returns a line with the rate and the last losses."""
        names = (metric.removeprefix("loss_") for metric in self.LOSSES)
        losses = ", ".join(f"{name} {loss:.3g}" for name, loss in zip(names, window.losses[-1], strict=True))
        return f"iteration {window.ends[-1]:,}: {window.count / window.seconds:.3g} it/s, {losses}"

    def divergence(self, window: Window) -> str:
        """Returns the message on a loss that became NaN or infinite."""
        return f"a loss is no longer a number by iteration {window.ends[-1]}"

    def results(self, look: Look, steady: Sequence[Window]) -> Sequence[Figure]:
        """Returns the figures of a whole run, from the last look and all windows but the first of each pace."""
        return ()

    def train(self, observe: Observer) -> Ended:
        """Trains from the checkpoint or the beginning, up to the end, the limit or the deadline.

        A resumed run records the losses that came after its checkpoint again.
        """
        with self.numerics(self.request.seed):
            kind, look = self.task.training().turns.TRAINER, None
            trainer = kind(self.request.recipe, self.data, device=self.device, seed=self.request.seed)
            checkpoint = self.writer.path / CHECKPOINT
            if self.resumed and checkpoint.exists():
                trainer.load(checkpoint)
            else:
                look = self._take_look(trainer, observe)
            paces: set[int] = set()
            steady: list[Window] = []
            for window in self._windows(trainer):
                if warm := window.pace in paces:
                    steady.append(window)
                paces.add(window.pace)
                self._record(trainer, window, warm=warm)
                observe(self.line(window))
                if not np.isfinite(window.losses).all():
                    error = self.divergence(window)
                    self._add(trainer, Figure(*self.RESULT, math.nan), status="diverged", error=error)
                    return "diverged", error
                if self._finished(trainer) or trainer.iteration % self.request.look_every == 0:
                    look = self._take_look(trainer, observe)
                elif self.deadline.expired():
                    self.writer.note(f"stopped after {trainer.iteration} {self.COUNTED}: the budget is spent")
                    return "stopped", None
            self._add(trainer, *self.results(look or self.look(trainer), steady))
        return "done", None

    def _finished(self, trainer: StatefulTrainer) -> bool:
        return trainer.finished or trainer.iteration >= (self.request.limit or math.inf)

    def _windows(self, trainer: StatefulTrainer) -> Iterator[Window]:
        """Times iterations of one pace together, up to a look or the end; clocks are read between windows only."""
        iterations = trainer.iterations()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        while not self._finished(trainer):
            pace, first, first_step = trainer.pace, trainer.iteration, trainer.step
            losses: list[torch.Tensor] = []
            ends: list[int] = []
            synchronize(self.device)
            begun_s = now_s()
            while len(losses) < self.request.window:
                losses.append(next(iterations))
                ends.append(trainer.step)
                looks = trainer.iteration % self.request.look_every == 0
                if looks or self._finished(trainer) or trainer.pace != pace:
                    break
            synchronize(self.device)
            seconds = now_s() - begun_s
            values = torch.stack(losses).double().cpu().numpy()
            yield Window(pace, first, first_step, seconds, values, tuple(ends))

    def _record(self, trainer: StatefulTrainer, window: Window, *, warm: bool) -> None:
        """Records rates and losses; the first window of a pace is warm-up, which compiles, captures, touches memory."""
        at = {"phase": "steady" if warm else "warm-up", **self.telemetry.read()}
        samples = self._samples(trainer, self.rates(window), **at)
        for end, row in zip(window.ends, window.losses.tolist(), strict=True):
            for metric, loss in zip(self.LOSSES, row, strict=True):
                status = "ok" if math.isfinite(loss) else "diverged"
                samples += self._samples(trainer, [Figure(metric, self.LOSS_UNIT, loss)], step=end, status=status)
        self.writer.add(*samples)

    def _take_look(self, trainer: StatefulTrainer, observe: Observer) -> Look:
        """Takes a look, records it, then writes a checkpoint: in this order no checkpoint is ahead of its look."""
        look = self.look(trainer)
        self._add(trainer, *look.figures, **self.telemetry.read())
        write_picture(self.writer.path, look.name, look.pixels, title=look.title, caption=look.caption)
        trainer.save(self.writer.path / CHECKPOINT)
        for line in look.lines:
            observe(line)
        return look

    def _add(self, trainer: StatefulTrainer, *figures: Figure, **fields: Any) -> None:
        self.writer.add(*self._samples(trainer, figures, **fields))

    def _samples(self, trainer: StatefulTrainer, figures: Sequence[Figure], **fields: Any) -> list[Sample]:
        where = {"seed": self.request.seed, "step": trainer.step, "epoch": trainer.step / len(trainer.batches)}
        where |= fields
        return [self.sample(one.metric, one.unit, one.value, parameters=one.parameters, **where) for one in figures]
