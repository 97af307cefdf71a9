"""Runs of any training task: how a run is begun, resumed, executed and recorded."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wallclock.bench.measure.numerics import numerics
from wallclock.bench.measure.telemetry import Telemetry
from wallclock.bench.measure.timing import Deadline
from wallclock.bench.runs.record import begun, change_notes, new_record
from wallclock.bench.runs.request import Request
from wallclock.bench.runs.task import Task
from wallclock.reports.store.schema import Run, RunStatus, Sample
from wallclock.reports.store.write import RunWriter

if TYPE_CHECKING:
    from rich.console import Console

Observer = Callable[[Any], None]  # called with each event: a line, or an object that a task's run defines
Ended = tuple[RunStatus, str | None]  # how a run ended, and the error if there was one


@dataclass(frozen=True)
class Judged:
    """One set of generated images, and the real images that `wallclock judge` compares it with.

    Attributes:
        name: name of the set, such as "samples" or "A to B".
        samples_NHWC: generated images, uint8 [N, S, S, 3].
        train_NHWC: images that the network was trained on, uint8 [N', S, S, 3].
        held_out_NHWC: images of the same kind that it has never seen, uint8 [N'', S, S, 3].
    """

    name: str
    samples_NHWC: torch.Tensor
    train_NHWC: torch.Tensor
    held_out_NHWC: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Training:
    """The half of a task that needs torch.

    Attributes:
        load: returns the data that a request names; raises DataError if they cannot be used. Data have a `name`, and a
            `content_hash` of all their content.
        check: raises ValueError if a recipe cannot run on some data and a device.
        runs: the class that executes each class of requests.
        turns: the class of the turns in its ablation; see `bench.ablation.turns.Turns`.
        notes: returns remarks on a recipe and its data, for the record.
        judged: returns the sets that `wallclock judge` judges, of a trainer that holds a run's weights, its data, the
            number of images to make, and the most real images to compare with; None if the task makes no images.
        translator: returns the generator that `wallclock translate` uses, in evaluation mode, of a recipe, the tensors
            of a checkpoint and a direction; None if the task translates no images. Raises ValueError if there is no
            such direction.
    """

    load: Callable[[Any], Any]
    check: Callable[[Any, Any, torch.device], None]
    runs: Mapping[type[Request], type["TrainingRun"]]
    turns: Callable[[Any, Any], Any]
    notes: Callable[[Any, Any], Iterable[str]] = lambda recipe, data: change_notes(recipe)
    judged: Callable[[Any, Any, int, int], Iterable[Judged]] | None = None
    translator: Callable[[Any, Mapping[str, torch.Tensor], str], torch.nn.Module] | None = None


class TrainingRun:
    """One run of a request; each derived class trains and records in its `train`.

    Args:
        data: the data that `Training.load` returned for the request.
        resumed: whether the run goes on from the records in its directory.

    Attributes:
        telemetry: reads the GPU's clocks, temperature and power while the run is executed.
    """

    telemetry: Telemetry

    def __init__(
        self,
        task: Task,
        request: Any,
        data: Any,
        writer: RunWriter,
        *,
        resumed: bool = False,
        deadline: Deadline | None = None,
    ) -> None:
        self.task, self.request, self.data, self.writer, self.resumed = task, request, data, writer, resumed
        self.deadline = deadline or Deadline(None)
        self.device = torch.device(request.device)

    @classmethod
    def check(cls, task: Task, request: Any, data: Any) -> None:
        """Raises ValueError if a request cannot be measured, beyond what `Training.check` refuses."""

    def execute(self, observe: Observer) -> str:
        """Runs what is left and closes the records; `observe` is called with every event. Returns how the run ended.

        Raises:
            KeyboardInterrupt: after the records have been closed as interrupted.
        """
        with self.writer, Telemetry.of(self.device, self.writer.note) as self.telemetry:
            status, error = self.train(observe)
            self.writer.finish(status, error)
        return status

    def train(self, observe: Observer) -> Ended:
        """Trains what is left, and records results as they come."""
        raise NotImplementedError

    def display(self, console: "Console") -> AbstractContextManager[Observer]:
        """Returns a context whose observer shows progress on a console, with a line for each event."""
        return nullcontext(lambda text: console.print(text, markup=False))

    def numerics(self, seed: int) -> AbstractContextManager[Any]:
        """Returns the context of numeric settings for one seed's training; see `bench.measure.numerics`."""
        return numerics(seed=seed, keep_heap=self.request.recipe.implementations.keep_heap)

    def sample(self, metric: str, unit: str, value: float, **fields: Any) -> Sample:
        """Returns a sample of this run; see `new_sample`."""
        return new_sample(self.task, self.request, self.request.recipe, self.data, metric, unit, value, **fields)


def new_sample(
    task: Task, request: Any, recipe: Any, data: Any, metric: str, unit: str, value: float, **fields: Any
) -> Sample:
    """Returns a sample whose case is made up by the recipe that was measured, the data and the device.

    `fields` are further fields of `Sample`; their `parameters` are added to those of the case.
    """
    parameters = {
        "dataset": data.name,
        "data_hash": data.content_hash[:12],
        "device": request.device,
        "precision": recipe.precision,
        "batch_size": recipe.batch_size,
        **{name: getattr(recipe, name) for name in task.case},
    }
    return Sample(
        benchmark=request.BENCHMARK,
        case=recipe.name,
        parameters=parameters | fields.pop("parameters", {}),
        metric=metric,
        unit=unit,
        value=value,
        better="higher" if metric.endswith("_per_s") or metric in task.higher else "lower",
        **{"variant": recipe.variant} | fields,
    )


def plan_run(task: Task, request: Request, command: str) -> tuple[Any, Run]:
    """Returns the data of a request, and the record of its run before it begins; `command` is the one as typed.

    Raises:
        DataError: if the data are missing or damaged.
        ValueError: if a recipe cannot run on them, or on this device.
    """
    training: Training = task.training()
    recipe, data = request.recipe, training.load(request)
    for each in request.recipes():
        training.check(each, data, torch.device(request.device))
    training.runs[type(request)].check(task, request, data)
    name = recipe.name if task.unnamed and task.name == request.BENCHMARK else f"{request.BENCHMARK}-{recipe.name}"
    stored, notes = request.stored(), training.notes(recipe, data)
    return data, new_record(name.replace(" ", "-"), recipe, stored, data, command, *notes)


def new_run(
    task: Task, request: Request, out: Path, command: str, *, deadline: Deadline | None = None, **options: Any
) -> TrainingRun:
    """Returns a new run of a request, with its records under `out`, ready to be executed; see `plan_run`.

    `options` are further arguments of the class that executes the request.

    Raises:
        StoreError: if `out` cannot be written.
    """
    kind = task.training().runs[type(request)]
    data, record = plan_run(task, request, command)
    return kind(task, request, data, RunWriter.create(out, record), deadline=deadline, **options)


def resumed_run(task: Task, kind: type[Request], path: Path) -> TrainingRun:
    """Returns the run in the directory `path`, which was interrupted, stopped or killed, ready to be resumed.

    Raises:
        StoreError: if the run is finished, being written, or was begun under other conditions.
        ValueError: if its device is missing.
    """
    training: Training = task.training()
    request, data = begun(path, kind, task.recipe, training.load)
    return training.runs[kind](task, request, data, RunWriter.resume(path), resumed=True)
