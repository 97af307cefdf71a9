"""Runs of CIFAR-10 to a target accuracy: trains the seeds of one recipe, and records times and scores."""

import functools
import math
import statistics
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console

from wallclock.bench.ablation.run import AblationRun
from wallclock.bench.engine.ranks import Ranks
from wallclock.bench.engine.trainer import DTYPES
from wallclock.bench.measure.profiling import operator_times
from wallclock.bench.measure.timing import PhaseTimer, RunClocks, now_s
from wallclock.bench.runs.request import SYNTHETIC
from wallclock.bench.runs.training import Ended, Observer, Training, TrainingRun
from wallclock.bench.tasks.cifar.ablation import CifarTurns
from wallclock.bench.tasks.cifar.fastest_convs import Choices, recorded_choices, tried_choices
from wallclock.bench.tasks.cifar.progress import Display, SeedDiverged, SeedEvent
from wallclock.bench.tasks.cifar.requests import CifarAblationRequest, CifarRequest
from wallclock.bench.tasks.cifar.trainer import Diverged, Evaluated, Finished, Trainer, check_runnable
from wallclock.kernels.spec import available, interpreted
from wallclock.loaders.batches import Split
from wallclock.loaders.data.cifar10 import load_cifar10
from wallclock.loaders.data.synthetic import synthetic_split
from wallclock.models.build import build_model
from wallclock.reports.store.read import load
from wallclock.reports.store.schema import Sample


@functools.lru_cache(maxsize=1)  # a suite runs job after job on the same data
def load_split(data: str, split: str) -> Split:
    """Returns the data that a request names by `data` and `split`.

    Raises:
        DataError: if the data are missing or damaged.
    """
    whole = synthetic_split() if data == SYNTHETIC else load_cifar10(Path(data))
    return whole.tune() if split == "tune" else whole


class GivenUp(Exception):
    """A request to stop the run early, which an observer may raise; its text gives the reason."""


class CifarRun(TrainingRun):
    """Trains every seed for the recipe's fixed budget, and records it as it goes; see `TrainingRun`.

    In a resumed run, finished seeds (`done`) stay as they are, and an unfinished one starts over. A seed is begun only
    if the deadline leaves the time of the slowest seed so far, and is given up if it overruns.

    Args:
        estimate_s: estimated seconds of the first seed; 0 if unknown.
        ranks: the processes that train together; only the first one keeps records.

    Attributes:
        choices: implementations of each unit's convolutions, by unit name, where they were measured.
        stopped: reason why the run ended early; empty if it did not.
    """

    request: CifarRequest
    data: Split

    def __init__(self, *arguments: Any, estimate_s: float = 0.0, ranks: Ranks | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ranks, self._slowest_s = ranks or Ranks(), estimate_s
        self.done, self.diverged, self.stopped = frozenset[int](), False, ""
        self.choices: dict[str, Choices] = {}
        if self.resumed:
            samples = load(self.writer.path)
            finals = samples[samples["metric"] == "final_accuracy"]
            self.done = frozenset(int(seed) for seed in finals["seed"])
            self.diverged = bool((finals["status"] == "diverged").any())
            self.choices = dict(recorded_choices(samples))

    def display(self, console: Console) -> AbstractContextManager[Observer]:
        """Returns a progress bar, or lines where there is no terminal."""
        return Display(console, self.request.recipe.name, self.request.target)

    def execute(self, observe: Observer) -> str:
        """Runs what is left and ends the records; see `TrainingRun.execute`. It stops if `observe` raises `GivenUp`.

        Returns "diverged" if a seed diverged, else how the run ended; a stopped run can be resumed in either case.
        """
        status = super().execute(observe)
        return "diverged" if self.diverged else status

    def train(self, observe: Observer) -> Ended:
        """Trains the seeds that are left, then measures the phases of a step."""
        if self.request.recipe.implementations.conv_bn_act == "auto":
            self._choose()
        for seed in (s for s in range(self.request.seeds) if s not in self.done):
            if self.deadline.remaining_s() < self._slowest_s:
                self.stopped = f"stopped before seed {seed}: the budget does not hold another seed"
                break
            clocks, begun_s = RunClocks(self.device), now_s()
            try:
                try:
                    self._train(seed, clocks, observe)
                except Diverged as error:
                    self._record_result(seed, clocks, error=str(error))
                    self.diverged = True
                    observe(SeedDiverged(seed, str(error)))
            except GivenUp as why:
                self.stopped = f"stopped within seed {seed}: {why}"
                break
            self._slowest_s = max(self._slowest_s, now_s() - begun_s)
        if self.stopped:
            self.writer.note(self.stopped)
            return "stopped", None
        if self.diverged:
            return "diverged", None
        if self.request.phases:
            self._measure_phases()
        return "done", None

    def sample(self, metric: str, unit: str, value: float, **fields: Any) -> Sample:
        """Returns a sample of this run, with split, padding, pipeline and ranks among the parameters of its case."""
        recipe = self.request.recipe
        case: dict[str, Any] = {"split": self.request.split, "padding": recipe.padding, "pipeline": recipe.pipeline}
        if self.ranks.world > 1:
            case["ranks"] = self.ranks.world
        fields["parameters"] = case | fields.get("parameters", {})
        return super().sample(metric, unit, value, variant=recipe.implementations.variant, **fields)

    def _trainer(self, seed: int, clocks: RunClocks) -> Trainer:
        more: dict[str, Any] = {"clocks": clocks, "choices": self.choices, "ranks": self.ranks}
        return Trainer(self.request.recipe, self.data, device=self.device, seed=seed, **more)

    def _choose(self) -> None:
        """Measures the fastest convolutions of each unit, unless the records of a resumed run hold them."""
        if why_not := available("triton", self.device) or interpreted("triton", self.device):
            self.writer.note(f"conv_bn_act is eager everywhere: {why_not}")
            return
        recipe, device = self.request.recipe, self.device
        pixels_NHWC = self.data.train.images_NHWC[: recipe.batch_size].to(device)
        with self.numerics(0):
            model = build_model(recipe, len(self.data.train.classes), device)
            images = (pixels_NHWC.permute(0, 3, 1, 2) / 127.5 - 1).to(DTYPES[recipe.precision])
            for tried in tried_choices(model, images, images.dtype, recipe.implementations, self.choices):
                for one in tried:
                    self.writer.add(*one.samples({"device": device.type, "precision": recipe.precision}))
                    self.choices |= dict.fromkeys(one.units, one.choices) if one.chosen else {}

    def _train(self, seed: int, clocks: RunClocks, observe: Observer) -> None:
        telemetry = self.telemetry
        with self.numerics(seed):
            trainer, begun_j = self._trainer(seed, clocks), telemetry.energy_j()
            for event in trainer.train():
                if isinstance(event, Evaluated):
                    at = {"seed": seed, "epoch": event.epoch, "step": event.step, **telemetry.read()}
                    self.writer.add(
                        self.sample("accuracy", "fraction", event.accuracy, **at),
                        self.sample("elapsed_train_eval_s", "s", event.elapsed_train_eval_s, **at),
                        self.sample("train_loss", "nats", event.train_loss_nats, **at),
                    )
                elif isinstance(event, Finished):
                    self._record_result(seed, clocks, event)
                    ended_j = telemetry.energy_j()
                    if begun_j is not None and ended_j is not None:
                        self.writer.add(self.sample("energy_j", "J", ended_j - begun_j, seed=seed))
                observe(SeedEvent(seed, event))
                if self.deadline.expired() and not isinstance(event, Finished):
                    raise GivenUp("the budget is spent")

    def _record_result(self, seed: int, clocks: RunClocks, result: Finished | None = None, error: str = "") -> None:
        """Records the times and the accuracy of a seed that has finished, or else has diverged with an error."""
        accuracy = math.nan if result is None else result.accuracy
        reached = accuracy >= self.request.target
        score: dict[str, Any] = {"seed": seed, "target": self.request.target, "reached": reached}
        score |= {"censored": not reached, "error": error or None}
        score["status"] = "diverged" if error else "ok" if reached else "missed"
        times = {"train_eval_s": clocks.train_eval_s, "resident_s": clocks.resident_s}
        if result is not None and clocks.cold:
            times["process_s"] = clocks.process_s
        samples = [self.sample(metric, "s", value, **score) for metric, value in times.items()]
        if result is not None:
            samples.append(self.sample("images_per_s", "images/s", result.images_per_s, seed=seed))
        self.writer.add(*samples, self.sample("final_accuracy", "fraction", accuracy, **score))

    def _measure_phases(self) -> None:
        """Times the phases of steps at full resolution in a separate pass, where timed and plain steps alternate."""
        request, device = self.request, self.device
        with self.numerics(0):
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
            self.sample("operator_time", "s", one.seconds, parameters={"operator": one.name, "calls": one.calls})
            for one in operators
        ]
        for name, times in phases.times_s().items():
            count = len(images) if name == "evaluation" else request.recipe.batch_size
            of = {"phase_name": name, "images": count}
            samples += [self.sample("phase_time", "s", value, index=i, parameters=of) for i, value in enumerate(times)]
        plain, instrumented = (whole[timed].times_s()["step"] for timed in (False, True))
        samples += [self.sample("step_time", "s", value, index=index) for index, value in enumerate(plain)]
        overhead = statistics.median(instrumented) / statistics.median(plain) - 1
        self.writer.add(*samples, self.sample("phase_overhead", "fraction", overhead))


TRAINING = Training(
    load=lambda request: load_split(request.data, getattr(request, "split", "test")),  # an ablation has no split
    check=check_runnable,
    runs={CifarRequest: CifarRun, CifarAblationRequest: AblationRun},
    turns=CifarTurns,
    notes=lambda recipe, data: (),
)
