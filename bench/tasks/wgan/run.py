"""WGAN iterations per second: one training of one recipe, its rates, losses and samples recorded as they come."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wallclock.bench.engine.checkpoint import CHECKPOINT
from wallclock.bench.measure.numerics import numerics
from wallclock.bench.measure.telemetry import Telemetry
from wallclock.bench.measure.timing import Deadline, now_s, synchronize
from wallclock.bench.runs.record import begun, change_notes, new_record
from wallclock.bench.tasks.wgan.checkpoint import load, save
from wallclock.bench.tasks.wgan.trainer import WganTrainer, check_runnable
from wallclock.loaders.batches import Split
from wallclock.loaders.data.images import load_images
from wallclock.models.recipes.wgan import WganRecipe
from wallclock.reports.store.pictures import write_picture
from wallclock.reports.store.schema import RunStatus, Sample
from wallclock.reports.store.write import RunWriter

GALLERY_EDGE = 8  # images along each side
REQUEST_KEYS = ("data", "only_class", "device", "seed", "generator_iterations", "look_every", "window_cycles")
HIGHER = ("critic_iterations_per_s", "generator_iterations_per_s", "images_per_s")


@dataclass(frozen=True, kw_only=True)
class WganRequest:
    """What is asked of one run.

    Attributes:
        recipe: with all overrides applied.
        data: a path, or "synthetic" for the embedded set.
        only_class: name of the one class to train on; empty for all.
        device: "cpu" or "cuda".
        seed: of weights, order and noise.
        generator_iterations: to stop after; 0 for the recipe's whole budget.
        look_every: generator iterations from look to look: estimates, samples, checkpoint.
        window_cycles: generator iterations, with their critic steps, that one rate is measured over.

    Raises:
        ValueError: if a number is out of range.
    """

    recipe: WganRecipe
    data: str
    only_class: str = ""
    device: str
    seed: int = 0
    generator_iterations: int = 0
    look_every: int = 25
    window_cycles: int = 1

    def __post_init__(self) -> None:
        if self.generator_iterations < 0 or self.look_every < 1 or self.window_cycles < 1:
            raise ValueError(
                f"generator_iterations is {self.generator_iterations}, look_every {self.look_every}, window_cycles "
                f"{self.window_cycles}; expected at least 0 (for all), 1 and 1"
            )

    def stored(self) -> dict[str, Any]:
        """Returns what a record keeps of the request, so that the run can be resumed."""
        return {"benchmark": "wgan", **{key: getattr(self, key) for key in REQUEST_KEYS}}


@dataclass(frozen=True)
class Looked:
    """A look on the way, off the clock: estimates of the earth mover's distance."""

    generator_iterations: int
    critic_steps: int
    em_train: float
    em_held_out: float

    def __str__(self) -> str:
        """Returns it in a line."""
        return (
            f"after {self.generator_iterations:,} generator and {self.critic_steps:,} critic steps: distance to "
            f"training images {self.em_train:.4g}, held-out images {self.em_held_out:.4g}"
        )


@dataclass(frozen=True)
class Window:
    """Some cycles of one kind, timed as a whole.

    Attributes:
        critic_steps_per_cycle: that the recipe wants before each generator step; the end of an epoch cuts some short.
        critic_steps: done in it.
        cycles: generator steps done in it.
        seconds: that they took.
        critic_losses: mean of each cycle.
        generator_losses: of each cycle.
        ends: critic steps done in all by the end of each cycle.
    """

    critic_steps_per_cycle: int
    critic_steps: int
    cycles: int
    seconds: float
    critic_losses: tuple[float, ...]
    generator_losses: tuple[float, ...]
    ends: tuple[int, ...]

    def __str__(self) -> str:
        """Returns it in a line."""
        return (
            f"critic step {self.ends[-1]:,}: {self.critic_steps / self.seconds:.3g} it/s, critic loss "
            f"{self.critic_losses[-1]:.4g}, generator loss {self.generator_losses[-1]:.4g}"
        )


Observer = Callable[[str], None]  # is told in lines


@functools.lru_cache(maxsize=1)  # a suite runs job after job on the same data
def load_split(data: str, image_size: int, only_class: str) -> Split:
    """Returns the images that a request names.

    Raises:
        DataError: if they are missing or damaged, or there is no such class.
    """
    return load_images(data, image_size, only_class=only_class)


class WganRun:
    """One run of a request: trains and records as it goes.

    Args:
        request: what to run.
        split: from `load_split`.
        writer: where records go.
        resumed: whether to go on from the run's checkpoint.
        deadline: the run stops at the first cycle that ends after it.
    """

    def __init__(
        self,
        request: WganRequest,
        split: Split,
        writer: RunWriter,
        *,
        resumed: bool = False,
        deadline: Deadline | None = None,
    ) -> None:
        self.request, self.split, self.writer, self.resumed = request, split, writer, resumed
        self.deadline = deadline or Deadline(None)
        self.device = torch.device(request.device)
        self._warm: set[int] = set()

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
            trainer = WganTrainer(recipe, self.split.train, device=self.device, seed=request.seed)
            checkpoint = self.writer.path / CHECKPOINT
            if self.resumed and checkpoint.exists():
                load(trainer, checkpoint)
                looked = self._looked(trainer)
            else:
                looked = self._look(trainer, telemetry, observe)
            for window in self._windows(trainer):
                self._record(window, trainer, telemetry)
                observe(str(window))
                if not all(map(math.isfinite, (*window.critic_losses, *window.generator_losses))):
                    error = f"a loss became {window.critic_losses[-1]} by critic step {window.ends[-1]}"
                    self._add(trainer, "final_em_held_out", "score", math.nan, status="diverged", error=error)
                    self.writer.finish("diverged", error)
                    return "diverged"
                done = trainer.position.total_generator_iterations
                if self._finished(trainer) or done % request.look_every == 0:
                    looked = self._look(trainer, telemetry, observe)
                elif self.deadline.expired():
                    self.writer.note(f"stopped after {done} generator iterations: the budget is spent")
                    self.writer.finish("stopped")
                    return "stopped"
            self._add(trainer, "final_em_held_out", "score", looked.em_held_out)
            self.writer.finish()
        return "done"

    def _finished(self, trainer: WganTrainer) -> bool:
        limit = self.request.generator_iterations or math.inf
        return trainer.finished or trainer.position.total_generator_iterations >= limit

    def _windows(self, trainer: WganTrainer) -> Iterator[Window]:
        """Times cycles of one kind together, up to a look or the end; the clock is read between windows only."""
        request, steps = self.request, trainer.train()
        while not self._finished(trainer):
            wanted, before = trainer.wanted_critic_steps(), trainer.position.total_critic_steps
            critic: list[torch.Tensor] = []
            generator: list[torch.Tensor] = []
            ends: list[int] = []
            synchronize(self.device)
            begun_s = now_s()
            while len(generator) < request.window_cycles:
                losses = []
                while (step := next(steps)).kind == "critic":
                    losses.append(step.loss)
                critic.append(torch.stack(losses).mean())
                generator.append(step.loss)
                ends.append(trainer.position.total_critic_steps)
                looks = trainer.position.total_generator_iterations % request.look_every == 0
                if looks or self._finished(trainer) or trainer.wanted_critic_steps() != wanted:
                    break
            synchronize(self.device)
            seconds = now_s() - begun_s
            critic_losses, generator_losses = (tuple(torch.stack(part).tolist()) for part in (critic, generator))
            done = trainer.position.total_critic_steps - before
            yield Window(wanted, done, len(ends), seconds, critic_losses, generator_losses, tuple(ends))

    def _record(self, window: Window, trainer: WganTrainer, telemetry: Telemetry) -> None:
        """Adds a window's rates and losses.

        The first window of a kind is warm-up: it compiles, captures, and touches memory for the first time.
        """
        warm = window.critic_steps_per_cycle in self._warm
        self._warm.add(window.critic_steps_per_cycle)
        images = window.critic_steps * self.request.recipe.batch_size
        rates = {
            ("critic_iterations_per_s", "it/s"): window.critic_steps / window.seconds,
            ("generator_iterations_per_s", "it/s"): window.cycles / window.seconds,
            ("images_per_s", "images/s"): images / window.seconds,
        }
        parameters = {"critic_steps_per_cycle": window.critic_steps_per_cycle}
        at = {"phase": "steady" if warm else "warm-up", "parameters": parameters, **telemetry.read()}
        samples = [self._sample(trainer, metric, unit, rate, **at) for (metric, unit), rate in rates.items()]
        for end, *losses in zip(window.ends, window.critic_losses, window.generator_losses, strict=True):
            for metric, loss in zip(("critic_loss", "generator_loss"), losses, strict=True):
                status = "ok" if math.isfinite(loss) else "diverged"
                samples.append(self._sample(trainer, metric, "score", loss, step=end, status=status))
        self.writer.add(*samples)

    def _looked(self, trainer: WganTrainer) -> Looked:
        at = trainer.position
        distances = [trainer.distance(part) for part in (self.split.train, self.split.test)]
        return Looked(at.total_generator_iterations, at.total_critic_steps, *distances)

    def _look(self, trainer: WganTrainer, telemetry: Telemetry, observe: Observer) -> Looked:
        """Estimates the distance, draws the gallery and writes a checkpoint, in this order: it holds no look less."""
        looked = self._looked(trainer)
        at = telemetry.read()
        self._add(trainer, "em_train", "score", looked.em_train, **at)
        self._add(trainer, "em_held_out", "score", looked.em_held_out, **at)
        fakes = trainer.samples(GALLERY_EDGE**2)
        side = fakes.shape[1]
        tiled = fakes.view(GALLERY_EDGE, GALLERY_EDGE, side, side, 3).transpose(1, 2).reshape(
            GALLERY_EDGE * side, GALLERY_EDGE * side, 3
        )  # fmt: skip
        write_picture(
            self.writer.path,
            f"samples-{looked.generator_iterations:07d}",
            tiled.numpy(),
            title=f"Samples of {self.request.recipe.name} at fixed noise",
            caption=f"After {looked.generator_iterations:,} generator and {looked.critic_steps:,} critic steps; "
            f"distance to held-out images estimated at {looked.em_held_out:.3g}.",
        )
        save(trainer, self.writer.path / CHECKPOINT)
        observe(str(looked))
        return looked

    def _add(self, trainer: WganTrainer, metric: str, unit: str, value: float, **fields: Any) -> None:
        self.writer.add(self._sample(trainer, metric, unit, value, **fields))

    def _sample(self, trainer: WganTrainer, metric: str, unit: str, value: float, **fields: Any) -> Sample:
        where = {"seed": self.request.seed, "step": trainer.position.total_critic_steps}
        where["epoch"] = where["step"] / len(trainer.batches)  # type: ignore[assignment]
        return new_sample(self.request.recipe, self.split, self.request.device, metric, unit, value, **where | fields)


def new_sample(
    recipe: WganRecipe, split: Split, device: str, metric: str, unit: str, value: float, **fields: Any
) -> Sample:
    """Returns a sample with what makes the case of a WGAN's recipe on a data set.

    Args:
        recipe: that was run.
        split: the images.
        device: "cpu" or "cuda".
        metric: see `Sample`.
        unit: see `Sample`.
        value: see `Sample`.
        fields: others of `Sample`; `parameters` are added to those of the case.
    """
    parameters = {
        "dataset": split.train.name,
        "data_hash": split.content_hash[:12],
        "device": device,
        "precision": recipe.precision,
        "batch_size": recipe.batch_size,
        "image_size": recipe.image_size,
    }
    return Sample(
        benchmark="wgan",
        case=recipe.name,
        parameters=parameters | fields.pop("parameters", {}),
        metric=metric,
        unit=unit,
        value=value,
        better="higher" if metric in HIGHER else "lower",
        **{"variant": recipe.variant} | fields,
    )


def new_run(request: WganRequest, out: Path, command: str, *, deadline: Deadline | None = None) -> WganRun:
    """Returns a request as a new run under `out`, ready to be executed.

    Args:
        request: what to run.
        out: folder that holds runs.
        command: as typed, for the record.
        deadline: see `WganRun`.

    Raises:
        DataError: if the data are missing or damaged; nothing is recorded then.
        StoreError: if `out` cannot be written.
        ValueError: if the recipe cannot run on this device.
    """
    recipe = request.recipe
    split = load_split(request.data, recipe.image_size, request.only_class)
    check_runnable(recipe, split, torch.device(request.device))
    run = new_record(f"wgan-{recipe.name}", recipe, request.stored(), split, command, *change_notes(recipe))
    return WganRun(request, split, RunWriter.create(out, run), deadline=deadline)


def load_stored(recipe: WganRecipe, stored: dict[str, Any]) -> Split:
    """Returns the images of a stored request; see `load_split`."""
    return load_split(stored["data"], recipe.image_size, stored["only_class"])


def resumed_run(path: Path) -> WganRun:
    """Returns a run that was interrupted, stopped or killed, ready to go on from its checkpoint.

    It goes through the same steps as one that was not; losses between the checkpoint and the end are recorded again.

    Args:
        path: the run's directory.

    Raises:
        StoreError: see `bench.runs.record.begun`.
        ValueError: the same.
    """
    run, recipe, split = begun(path, "wgan", WganRecipe, load_stored)
    request = WganRequest(recipe=recipe, **{key: run.request[key] for key in REQUEST_KEYS})
    return WganRun(request, split, RunWriter.resume(path), resumed=True)
