"""CIFAR-10 to a target: seeds, records and the score of one recipe on one data set."""

import functools
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from wallclock.bench.engine.ranks import Ranks
from wallclock.bench.measure.numerics import numerics
from wallclock.bench.measure.profiling import operator_times
from wallclock.bench.measure.telemetry import Telemetry
from wallclock.bench.measure.timing import Deadline, PhaseTimer, RunClocks, now_s
from wallclock.bench.runs.record import begun, new_record
from wallclock.bench.tasks.cifar.fastest_convs import Choices, recorded_choices, tried_choices
from wallclock.bench.tasks.cifar.trainer import DTYPES, Diverged, Evaluated, Event, Finished, Trainer, check_runnable
from wallclock.kernels.spec import available, interpreted
from wallclock.loaders.batches import Split
from wallclock.loaders.data.cifar10 import load_cifar10
from wallclock.loaders.data.synthetic import synthetic_split
from wallclock.models.build import build_model
from wallclock.models.recipes.recipe import Recipe
from wallclock.reports.store.read import load
from wallclock.reports.store.schema import RunStatus, Sample
from wallclock.reports.store.write import RunWriter, StoreError

SYNTHETIC = "synthetic"
PHASE_STEPS = 12
REQUEST_KEYS = ("data", "target", "seeds", "device", "split", "phases")


@dataclass(frozen=True, kw_only=True)
class CifarRequest:
    """What is asked of one run.

    Attributes:
        recipe: with all overrides applied.
        data: a path, or "synthetic" for the embedded set.
        target: accuracy, a fraction in (0, 1).
        seeds: how many; they are 0, 1, ...; none measures the phases only.
        device: "cpu" or "cuda".
        split: "test" scores on the test set; "tune" on a tenth of the training set, held out from training.
        phases: steps of the separate phase pass; 0 for none.

    Raises:
        ValueError: if a number is out of range.
    """

    recipe: Recipe
    data: str
    target: float
    seeds: int
    device: str
    split: Literal["test", "tune"] = "test"
    phases: int = PHASE_STEPS

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            hint = f"; did you mean {self.target / 100:g}?" if 10 <= self.target < 100 else ""
            raise ValueError(f"target is {self.target:g}; expected an accuracy between 0 and 1, such as 0.94{hint}")
        if self.seeds < 0:
            raise ValueError(f"seeds is {self.seeds}; expected at least 1, or 0 to measure the phases only")

    def stored(self) -> dict[str, Any]:
        """Returns what a record keeps of the request, so that the run can be resumed."""
        return {"benchmark": "cifar", **{key: getattr(self, key) for key in REQUEST_KEYS}}


@dataclass(frozen=True)
class SeedEvent:
    """An event of one seed's training, with its place in the run."""

    seed: int
    event: Event


@dataclass(frozen=True)
class SeedDiverged:
    """A seed whose loss is no longer a number."""

    seed: int
    error: str


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and where its records are.

    Attributes:
        path: the run's directory.
        status: as recorded; a run that was stopped can go on, whatever became of its seeds.
        diverged: whether a seed did.
    """

    path: Path
    status: RunStatus
    diverged: bool

    @property
    def verdict(self) -> str:
        """What the exit code tells: "diverged" if a seed did, else the status."""
        return "diverged" if self.diverged else self.status


Observer = Callable[[SeedEvent | SeedDiverged], None]


@functools.lru_cache(maxsize=1)  # a suite runs job after job on the same data
def load_split(data: str, split: str) -> Split:
    """Returns the data that a request names by `data` and `split`.

    Raises:
        DataError: if it is missing or damaged.
    """
    whole = synthetic_split() if data == SYNTHETIC else load_cifar10(Path(data))
    return whole.tune() if split == "tune" else whole


class GivenUp(Exception):
    """The rest of the run is not wanted; its text says why. An observer may raise it."""


class CifarRun:
    """One run of a request: trains every seed for the recipe's fixed budget and records it as it goes.

    Args:
        request: what to run.
        split: from `load_split`.
        writer: where records go.
        deadline: no seed is begun that would overrun it, judged by the slowest seed so far; one that does is given up.
        estimate_s: what the first seed is judged by.
        done: seeds that the records hold already.
        diverged: whether one of them diverged.
        choices: of units, that the records hold already.
        ranks: that train together; only the first one's records are kept.

    Attributes:
        stopped: why it ended before its time, or empty.
    """

    def __init__(
        self,
        request: CifarRequest,
        split: Split,
        writer: RunWriter,
        *,
        deadline: Deadline | None = None,
        estimate_s: float = 0.0,
        done: frozenset[int] = frozenset(),
        diverged: bool = False,
        choices: Mapping[str, Choices] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        self.request, self.split, self.writer = request, split, writer
        self.choices = dict(choices or {})
        self.deadline, self.done, self.diverged = deadline or Deadline(None), done, diverged
        self.device = torch.device(request.device)
        self._slowest_s = estimate_s
        self.stopped = ""

    def execute(self, observe: Observer) -> Outcome:
        """Runs what is left and ends the records.

        Args:
            observe: is shown every event; where it raises `GivenUp`, the run is stopped.

        Raises:
            KeyboardInterrupt: after the records have been ended as interrupted.
        """
        with self.writer, Telemetry.of(self.device, self.writer.note) as telemetry:
            if self.request.recipe.implementations.conv_bn_act == "auto":
                self._choose()
            for seed in (s for s in range(self.request.seeds) if s not in self.done):
                if self.deadline.remaining_s() < self._slowest_s:
                    self.stopped = f"stopped before seed {seed}: the budget does not hold another seed"
                    break
                clocks, begun_s = RunClocks(self.device), now_s()
                try:
                    try:
                        self._train(seed, clocks, telemetry, observe)
                    except Diverged as error:
                        self._record_divergence(seed, clocks, str(error))
                        self.diverged = True
                        observe(SeedDiverged(seed, str(error)))
                except GivenUp as why:
                    self.stopped = f"stopped within seed {seed}: {why}"
                    break
                self._slowest_s = max(self._slowest_s, now_s() - begun_s)
            if self.stopped:
                self.writer.note(self.stopped)
            elif self.request.phases and not self.diverged:
                self._measure_phases()
            status: RunStatus = "stopped" if self.stopped else "diverged" if self.diverged else "done"
            self.writer.finish(status)
        return Outcome(self.writer.path, status, self.diverged)

    def _sample(self, metric: str, unit: str, value: float, **fields: Any) -> Sample:
        recipe, request = self.request.recipe, self.request
        parameters: dict[str, Any] = {
            "dataset": self.split.train.name,
            "data_hash": self.split.content_hash[:12],
            "device": request.device,
            "precision": recipe.precision,
            "batch_size": recipe.batch_size,
            "split": request.split,
            "padding": recipe.padding,
            "pipeline": recipe.pipeline,
        }
        if self.ranks.world > 1:
            parameters["ranks"] = self.ranks.world
        return Sample(
            benchmark="cifar",
            case=recipe.name,
            variant=recipe.implementations.variant,
            parameters=parameters | fields.pop("parameters", {}),
            metric=metric,
            unit=unit,
            value=value,
            better="higher" if metric in ("accuracy", "final_accuracy", "images_per_s") else "lower",
            **fields,
        )

    def _numerics(self, seed: int) -> Any:
        return numerics(seed=seed, keep_heap=self.request.recipe.implementations.keep_heap)

    def _trainer(self, seed: int, clocks: RunClocks) -> Trainer:
        return Trainer(
            self.request.recipe, self.split, device=self.device, seed=seed, clocks=clocks, choices=self.choices,
            ranks=self.ranks,
        )  # fmt: skip

    def _choose(self) -> None:
        """Measures what carries out each unit's convolutions, unless a run that goes on has done so."""
        implementations = self.request.recipe.implementations
        why_not = available("triton", self.device) or interpreted("triton", self.device)
        if why_not:
            self.writer.note(f"conv_bn_act is eager everywhere: {why_not}")
            return
        recipe, device = self.request.recipe, self.device
        pixels_NHWC = self.split.train.images_NHWC[: recipe.batch_size].to(device)
        with self._numerics(0):
            model = build_model(recipe, len(self.split.train.classes), device)
            images = (pixels_NHWC.permute(0, 3, 1, 2) / 127.5 - 1).to(DTYPES[recipe.precision])
            for tried in tried_choices(model, images, images.dtype, implementations, self.choices):
                for one in tried:
                    self.writer.add(*one.samples({"device": device.type, "precision": recipe.precision}))
                    self.choices |= dict.fromkeys(one.units, one.choices) if one.chosen else {}

    def _train(self, seed: int, clocks: RunClocks, telemetry: Telemetry, observe: Observer) -> None:
        with self._numerics(seed):
            trainer, begun_j = self._trainer(seed, clocks), telemetry.energy_j()
            for event in trainer.train():
                if isinstance(event, Evaluated):
                    at = {"seed": seed, "epoch": event.epoch, "step": event.step, **telemetry.read()}
                    self.writer.add(
                        self._sample("accuracy", "fraction", event.accuracy, **at),
                        self._sample("elapsed_train_eval_s", "s", event.elapsed_train_eval_s, **at),
                        self._sample("train_loss", "nats", event.train_loss_nats, **at),
                    )
                elif isinstance(event, Finished):
                    self._record_result(seed, event, clocks)
                    ended_j = telemetry.energy_j()
                    if begun_j is not None and ended_j is not None:
                        self.writer.add(self._sample("energy_j", "J", ended_j - begun_j, seed=seed))
                observe(SeedEvent(seed, event))
                if self.deadline.expired() and not isinstance(event, Finished):
                    raise GivenUp("the budget is spent")

    def _record_result(self, seed: int, result: Finished, clocks: RunClocks) -> None:
        reached = result.accuracy >= self.request.target
        score: dict[str, Any] = {"seed": seed, "target": self.request.target, "reached": reached}
        score |= {"censored": not reached, "status": "ok" if reached else "missed"}
        times = {"train_eval_s": clocks.train_eval_s, "resident_s": clocks.resident_s}
        if clocks.cold:
            times["process_s"] = clocks.process_s
        self.writer.add(
            *(self._sample(metric, "s", value, **score) for metric, value in times.items()),
            self._sample("images_per_s", "images/s", result.images_per_s, seed=seed),
            self._sample("final_accuracy", "fraction", result.accuracy, **score),
        )

    def _record_divergence(self, seed: int, clocks: RunClocks, error: str) -> None:
        lost: dict[str, Any] = {"seed": seed, "target": self.request.target, "reached": False, "censored": True}
        lost |= {"status": "diverged", "error": error}
        self.writer.add(
            self._sample("train_eval_s", "s", clocks.train_eval_s, **lost),
            self._sample("resident_s", "s", clocks.resident_s, **lost),
            self._sample("final_accuracy", "fraction", math.nan, **lost),
        )

    def _measure_phases(self) -> None:
        """Splits steps at full resolution into phases, in a pass of its own: timed and plain steps take turns."""
        request, device = self.request, self.device
        with self._numerics(0):
            trainer = self._trainer(0, RunClocks(device))
            trainer.model.train()
            phases, unmeasured = PhaseTimer(device), PhaseTimer(device, enabled=False)
            whole = {True: PhaseTimer(device), False: PhaseTimer(device)}
            batches = trainer.endless_batches()
            trainer.step(batches, 0, unmeasured)
            pair_s = 0.0
            for step in range(request.phases):
                if step and self.deadline.remaining_s() < 3 * pair_s:  # another pair, and evaluations as long as two
                    break
                begun_s = now_s()
                for timed in (False, True):
                    with whole[timed].phase("step"):
                        trainer.step(batches, 0, phases if timed else unmeasured)
                pair_s = now_s() - begun_s
            operators = []  # three steps, which the profiler slows
            if self.deadline.remaining_s() > 4 * pair_s:
                operators = operator_times(lambda: trainer.step(batches, 0, unmeasured), device)
            images, _ = next(iter(trainer.test_batches()))
            for timer in (unmeasured, phases, phases, phases):
                with timer.phase("evaluation"):
                    trainer.evaluate_batch(images)
        samples = [
            self._sample("operator_time", "s", one.seconds, parameters={"operator": one.name, "calls": one.calls})
            for one in operators
        ]
        for name, times in phases.times_s().items():
            parameters = {
                "phase_name": name,
                "images": len(images) if name == "evaluation" else request.recipe.batch_size,
            }
            for index, value in enumerate(times):
                samples.append(self._sample("phase_time", "s", value, index=index, parameters=parameters))
        plain, instrumented = (whole[timed].times_s()["step"] for timed in (False, True))
        samples += [self._sample("step_time", "s", value, index=index) for index, value in enumerate(plain)]
        overhead = statistics.median(instrumented) / statistics.median(plain) - 1
        self.writer.add(*samples, self._sample("phase_overhead", "fraction", overhead))


def new_run(
    request: CifarRequest,
    out: Path,
    command: str,
    *,
    deadline: Deadline | None = None,
    estimate_s: float = 0.0,
    ranks: Ranks | None = None,
) -> CifarRun:
    """Returns a request as a new run under `out`, ready to be executed.

    Args:
        request: what to run.
        out: folder that holds runs.
        command: as typed, for the record.
        deadline: see `CifarRun`.
        estimate_s: see `CifarRun`.
        ranks: see `CifarRun`.

    Raises:
        DataError: if the data are missing or damaged; nothing is recorded then.
        StoreError: if `out` cannot be written.
        ValueError: if the recipe cannot run on this device.
    """
    split = load_split(request.data, request.split)
    check_runnable(request.recipe, split, torch.device(request.device))
    writer = RunWriter.create(out, new_record(request.recipe.name, request.recipe, request.stored(), split, command))
    return CifarRun(request, split, writer, deadline=deadline, estimate_s=estimate_s, ranks=ranks)


def resumed_run(path: Path) -> CifarRun:
    """Returns a run that was interrupted, stopped or killed, ready to go on.

    Finished seeds stay as they are, an unfinished one starts over.

    Args:
        path: the run's directory.

    Raises:
        StoreError: see `bench.runs.record.begun`.
        ValueError: the same.
    """

    def load_stored(recipe: Recipe, stored: dict[str, Any]) -> Split:
        data = stored["data"]
        if data != SYNTHETIC and not Path(data).exists():
            raise StoreError(f"{path} needs its data at {data}, seen from where it was begun; go on from there")
        return load_split(data, stored["split"])

    run, recipe, split = begun(path, "cifar", Recipe, load_stored)
    request = CifarRequest(recipe=recipe, **{key: run.request[key] for key in REQUEST_KEYS})
    writer = RunWriter.resume(path)
    samples = load(path)
    finals = samples[samples["metric"] == "final_accuracy"]
    done = frozenset(int(seed) for seed in finals["seed"])
    diverged = bool((finals["status"] == "diverged").any())
    return CifarRun(request, split, writer, done=done, diverged=diverged, choices=recorded_choices(samples))
