"""CycleGAN iterations per second: one training of one recipe, its rates, losses and pictures recorded as they come."""

import functools
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wallclock.bench.engine.checkpoint import CHECKPOINT, load_checkpoint, read_position, save_checkpoint
from wallclock.bench.measure.numerics import numerics
from wallclock.bench.measure.telemetry import Telemetry
from wallclock.bench.measure.timing import Deadline, now_s, synchronize
from wallclock.bench.runs.record import begun, change_notes, new_record
from wallclock.bench.tasks.cyclegan.cycle_error import cycle_error, hidden_error
from wallclock.bench.tasks.cyclegan.networks import LOSSES
from wallclock.bench.tasks.cyclegan.trainer import CycleGanTrainer, Position, check_runnable
from wallclock.loaders.data.unpaired import Unpaired, load_unpaired
from wallclock.models.recipes.cyclegan import CycleGanRecipe
from wallclock.reports.store.pictures import write_picture
from wallclock.reports.store.schema import RunStatus, Sample
from wallclock.reports.store.write import RunWriter, StoreError

PICTURED = 4  # test images of each domain
FULL_ITERATIONS = 200 * 1334  # the published training on horses and zebras, whose longer domain has 1,334 images
LOOKED_AT = 32  # test images of each domain, for the cycle's error
REQUEST_KEYS = ("data", "device", "seed", "iterations", "look_every", "window_iterations")

Observer = Callable[[str], None]  # is told in lines


@dataclass(frozen=True, kw_only=True)
class CycleGanRequest:
    """What is asked of one run.

    Attributes:
        recipe: with all overrides applied.
        data: a folder, or "synthetic" for the embedded domains.
        device: "cpu" or "cuda".
        seed: of weights, batches and pools.
        iterations: to stop after; 0 for the recipe's whole budget.
        look_every: iterations from look to look: errors on test images, pictures, checkpoint.
        window_iterations: that one rate is measured over.

    Raises:
        ValueError: if a number is out of range.
    """

    recipe: CycleGanRecipe
    data: str
    device: str
    seed: int = 0
    iterations: int = 0
    look_every: int = 1000
    window_iterations: int = 1

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.look_every < 1 or self.window_iterations < 1:
            raise ValueError(
                f"iterations is {self.iterations}, look_every {self.look_every}, window_iterations "
                f"{self.window_iterations}; expected 0 or more, and at least 1 of the others"
            )

    def stored(self) -> dict[str, Any]:
        """Returns what a record keeps of the request, so that the run can be resumed."""
        return {"benchmark": "cyclegan", **{key: getattr(self, key) for key in REQUEST_KEYS}}


@dataclass(frozen=True)
class Window:
    """Iterations that one rate is measured over.

    Attributes:
        first: iteration before it.
        seconds: they took.
        losses: float64 [iterations, 5]; see `bench.tasks.cyclegan.networks.LOSSES`.
    """

    first: int
    seconds: float
    losses: npt.NDArray[np.float64]

    @property
    def count(self) -> int:
        """Iterations in it."""
        return len(self.losses)

    def __str__(self) -> str:
        """Returns it in a line."""
        told = ", ".join(f"{name} {loss:.3g}" for name, loss in zip(LOSSES, self.losses[-1], strict=True))
        return f"iteration {self.first + self.count:,}: {self.count / self.seconds:.3g} it/s, {told}"


@functools.lru_cache(maxsize=1)  # a suite runs job after job on the same data
def load_data(data: str, load_size: int, image_size: int) -> Unpaired:
    """Returns the domains that a request names.

    Raises:
        DataError: see `loaders.data.unpaired.load_unpaired`.
    """
    return load_unpaired(data, load_size, image_size)


class CycleGanRun:
    """One run of a request: trains and records as it goes.

    Args:
        request: what to run.
        data: from `load_data`.
        writer: where records go.
        resumed: whether to go on from the run's checkpoint.
        deadline: the run stops at the first window that ends after it.
    """

    def __init__(
        self,
        request: CycleGanRequest,
        data: Unpaired,
        writer: RunWriter,
        *,
        resumed: bool = False,
        deadline: Deadline | None = None,
    ) -> None:
        self.request, self.data, self.writer, self.resumed = request, data, writer, resumed
        self.deadline = deadline or Deadline(None)
        self.device = torch.device(request.device)
        self._steady_rates: list[float] = []  # it/s

    def execute(self, observe: Observer) -> RunStatus:
        """Runs what is left and ends the records.

        Args:
            observe: is told every look and window in a line.

        Returns:
            How it ended.

        Raises:
            KeyboardInterrupt: after the records have been ended as interrupted.
        """
        request, recipe = self.request, self.request.recipe
        kept = numerics(seed=request.seed, keep_heap=recipe.implementations.keep_heap)
        with self.writer, kept, Telemetry.of(self.device, self.writer.note) as telemetry:
            trainer = CycleGanTrainer(recipe, self.data, device=self.device, seed=request.seed)
            checkpoint = self.writer.path / CHECKPOINT
            if self.resumed and checkpoint.exists():
                resume(trainer, checkpoint)
            else:
                self._look(trainer, telemetry, observe)
            warm = False
            for window in self._windows(trainer):
                phase = "steady" if warm else "warm-up"  # which compiles, captures and touches memory first
                warm = True
                self._record(window, trainer, {"phase": phase, **telemetry.read()})
                observe(str(window))
                if not np.isfinite(window.losses).all():
                    error = f"a loss is no longer a number by iteration {window.first + window.count}"
                    self._add(trainer, "cycle_error", "fraction", math.nan, status="diverged", error=error)
                    self.writer.finish("diverged", error)
                    return "diverged"
                done = trainer.position.iteration
                if self._finished(trainer) or done % request.look_every == 0:
                    self._look(trainer, telemetry, observe)
                elif self.deadline.expired():
                    self.writer.note(f"stopped after {done} iterations: the budget is spent")
                    self.writer.finish("stopped")
                    return "stopped"
            if self._steady_rates:
                hours = FULL_ITERATIONS / statistics.median(self._steady_rates) / 3600
                of = {"parameters": {"projected_iterations": FULL_ITERATIONS}}
                self._add(trainer, "projected_training_h", "h, a projection", hours, **of)
            self.writer.finish()
        return "done"

    def _finished(self, trainer: CycleGanTrainer) -> bool:
        return trainer.finished or trainer.position.iteration >= (self.request.iterations or math.inf)

    def _windows(self, trainer: CycleGanTrainer) -> Iterator[Window]:
        request, steps = self.request, trainer.train()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        while not self._finished(trainer):
            first = trainer.position.iteration
            losses: list[torch.Tensor] = []
            synchronize(self.device)
            begun_s = now_s()
            while len(losses) < request.window_iterations:
                losses.append(next(steps).values)
                if self._finished(trainer) or trainer.position.iteration % request.look_every == 0:
                    break
            synchronize(self.device)
            seconds = now_s() - begun_s
            yield Window(first, seconds, torch.stack(losses).double().cpu().numpy())

    def _record(self, window: Window, trainer: CycleGanTrainer, at: dict[str, Any]) -> None:
        rates = {
            ("iterations_per_s", "it/s"): window.count / window.seconds,
            ("images_per_s", "images/s"): 2 * window.count * self.request.recipe.batch_size / window.seconds,
        }
        if at["phase"] == "steady":
            self._steady_rates.append(window.count / window.seconds)
        samples = [self._sample(trainer, metric, unit, rate, **at) for (metric, unit), rate in rates.items()]
        if self.device.type == "cuda":
            samples.append(self._sample(trainer, "peak_bytes", "B", torch.cuda.max_memory_allocated(), **at))
        for place, row in enumerate(window.losses):
            step = window.first + place + 1
            for name, loss in zip(LOSSES, row, strict=True):
                status = "ok" if math.isfinite(loss) else "diverged"
                samples.append(self._sample(trainer, f"loss_{name}", "loss", loss, step=step, status=status))
        self.writer.add(*samples)

    def _look(self, trainer: CycleGanTrainer, telemetry: Telemetry, observe: Observer) -> None:
        """Measures the cycles on test images, draws the grid and writes a checkpoint."""
        at = telemetry.read()
        for domain, (there, back) in enumerate((("g_a", "g_b"), ("g_b", "g_a"))):
            images = self.data.test[domain][:LOOKED_AT]
            of = {"parameters": {"domain": "AB"[domain]}}
            error = cycle_error(trainer, there, back, images)
            hidden = hidden_error(trainer, there, back, images)
            self._add(trainer, "cycle_error", "fraction", error, **at, **of)
            self._add(trainer, "cycle_error_with_noise", "fraction", hidden, **at, **of)
            observe(
                f"iteration {trainer.position.iteration:,}: cycle of {'AB'[domain]} is off by {error:.3g}, and by "
                f"{hidden:.3g} with noise on the way"
            )
        write_picture(
            self.writer.path,
            f"translations-{trainer.position.iteration:07d}",
            self._grid(trainer),
            title=f"Translations of {self.request.recipe.name}",
            caption=f"Test images after {trainer.position.iteration:,} iterations: A, as B, back; B, as A, back.",
        )
        save(trainer, self.writer.path / CHECKPOINT)

    def _grid(self, trainer: CycleGanTrainer) -> npt.NDArray[np.uint8]:
        """Rows of an image, its translation, and that one's, for both domains side by side."""
        columns = []
        for domain, (there, back) in enumerate((("g_a", "g_b"), ("g_b", "g_a"))):
            images = self.data.test[domain][:PICTURED]
            fakes = trainer.translated(there, images)
            columns += [images, fakes, trainer.translated(back, fakes)]
        count = min(map(len, columns))
        rows = [torch.cat([column[row] for column in columns], dim=1) for row in range(count)]
        return torch.cat(rows).numpy()

    def _add(self, trainer: CycleGanTrainer, metric: str, unit: str, value: float, **fields: Any) -> None:
        self.writer.add(self._sample(trainer, metric, unit, value, **fields))

    def _sample(self, trainer: CycleGanTrainer, metric: str, unit: str, value: float, **fields: Any) -> Sample:
        where = {"seed": self.request.seed, "step": trainer.position.iteration}
        where["epoch"] = where["step"] / len(trainer.batches)  # type: ignore[assignment]
        return new_sample(self.request.recipe, self.data, self.request.device, metric, unit, value, **where | fields)


def save(trainer: CycleGanTrainer, path: Path) -> None:
    """Writes a checkpoint of a trainer between two iterations; see `bench.engine.checkpoint.save_checkpoint`."""
    save_checkpoint(path, trainer.state(), asdict(trainer.position), trainer.recipe)


def resume(trainer: CycleGanTrainer, path: Path) -> None:
    """Takes a fresh trainer of the same recipe to where a checkpoint was written.

    Raises:
        StoreError: if it is damaged, or one of another recipe.
    """
    state = trainer.state()
    stored = load_checkpoint(path, state, trainer.recipe)
    try:
        trainer.position = Position(**read_position(path))
    except TypeError as error:
        raise StoreError(f"{path} is damaged ({error}); start a new run") from None
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(stored[name])


def new_sample(
    recipe: CycleGanRecipe, data: Unpaired, device: str, metric: str, unit: str, value: float, **fields: Any
) -> Sample:
    """Returns a sample with what makes the case of a recipe on a data set; see `bench.tasks.wgan.run.new_sample`."""
    parameters = {
        "dataset": data.name,
        "data_hash": data.content_hash[:12],
        "device": device,
        "precision": recipe.precision,
        "batch_size": recipe.batch_size,
        "image_size": recipe.image_size,
        "blocks": recipe.blocks,
    }
    return Sample(
        benchmark="cyclegan",
        case=recipe.name,
        parameters=parameters | fields.pop("parameters", {}),
        metric=metric,
        unit=unit,
        value=value,
        better="higher" if metric in ("iterations_per_s", "images_per_s") else "lower",
        **{"variant": recipe.variant} | fields,
    )


def new_run(request: CycleGanRequest, out: Path, command: str, *, deadline: Deadline | None = None) -> CycleGanRun:
    """Returns a request as a new run under `out`, ready to be executed.

    Args:
        request: what to run.
        out: folder that holds runs.
        command: as typed, for the record.
        deadline: see `CycleGanRun`.

    Raises:
        DataError: if the images are missing; nothing is recorded then.
        StoreError: if `out` cannot be written.
        ValueError: if the recipe cannot run on this device.
    """
    recipe = request.recipe
    data = load_data(request.data, recipe.load_size, recipe.image_size)
    check_runnable(recipe, data, torch.device(request.device))
    notes = run_notes(recipe, data)
    run = new_record(f"cyclegan-{recipe.name}", recipe, request.stored(), data, command, *notes)
    return CycleGanRun(request, data, RunWriter.create(out, run), deadline=deadline)


def run_notes(recipe: CycleGanRecipe, data: Unpaired) -> tuple[str, ...]:
    """Returns what a record says of a recipe and its data beforehand."""
    return (*change_notes(recipe), *(f"skipped: {why}" for why in data.skipped))


def load_stored(recipe: CycleGanRecipe, stored: dict[str, Any]) -> Unpaired:
    """Returns the domains of a stored request; see `load_data`."""
    return load_data(stored["data"], recipe.load_size, recipe.image_size)


def resumed_run(path: Path) -> CycleGanRun:
    """Returns a run that was interrupted, stopped or killed, ready to go on from its checkpoint.

    Args:
        path: the run's directory.

    Raises:
        StoreError: see `bench.runs.record.begun`.
        ValueError: the same.
    """
    run, recipe, data = begun(path, "cyclegan", CycleGanRecipe, load_stored)
    request = CycleGanRequest(recipe=recipe, **{key: run.request[key] for key in REQUEST_KEYS})
    return CycleGanRun(request, data, RunWriter.resume(path), resumed=True)
