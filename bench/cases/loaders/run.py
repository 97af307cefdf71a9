"""`wallclock run loaders`: every pipeline over every form of a data set, in four regimes that are never mixed.

One image at a time; a pipeline alone, whole epochs that nobody trains on; the latency of its first batch; and a network
that trains on it, beside the same network on one batch held in memory. Pipelines take turns within each round, forwards
and backwards.
"""

import itertools
import math
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wallclock.bench.cases.kernels.trial import failures, in_a_line
from wallclock.bench.cases.loaders.request import REGIMES, LoadersRequest
from wallclock.bench.cases.loaders.trial import HELD, TOLERANCE, Form, LoaderTrial, Measured, Regime
from wallclock.bench.measure.environment import cpu_cores, provenance, resolve_device
from wallclock.bench.measure.numerics import numerics
from wallclock.bench.measure.telemetry import Telemetry
from wallclock.bench.measure.timing import Deadline
from wallclock.bench.runs.resume import begun_run, check_same_place
from wallclock.bench.tasks.cifar.run import SYNTHETIC, load_split
from wallclock.loaders.batches import DataError, Dataset
from wallclock.loaders.data.shards import SHARDS, write_shards
from wallclock.loaders.data.stored import StoredImages, find_stored
from wallclock.loaders.pipelines.choose import PIPELINES, unavailable
from wallclock.loaders.pipelines.workers import WorkerDied
from wallclock.models.recipes import get_recipe
from wallclock.reports.format.text import significant
from wallclock.reports.store.read import load
from wallclock.reports.store.schema import Run, RunStatus, Sample
from wallclock.reports.store.write import RunWriter, StoreError, new_run_id, utc_now

if TYPE_CHECKING:
    import pandas as pd

MOST_IMAGES = 10_000  # unless told: an epoch of the slowest pipeline within seconds
IMAGE_BUDGET_S = 0.3  # of one image at a time, in each round
TUNED = ("dataloader", "dali", "webdataset")  # whose processes or threads are chosen by trying


@dataclass(frozen=True)
class PipelineDone:
    """One pipeline in one regime at one case and round: its median, or why it was not measured."""

    case: str
    pipeline: str
    regime: str
    figures: dict[str, float]
    why_not: str = ""

    def told(self) -> str:
        """Returns its figures in a line, or why there are none."""
        return self.why_not or ", ".join(f"{name} {significant(value)}" for name, value in self.figures.items())


Done = frozenset[tuple[str, str, int]]  # case, regime, round


class LoadersRun:
    """One run of a request: checks and measures case after case, and records it as it goes.

    Args:
        request: what to run.
        pixels: the images in memory.
        stored: the same images as they lie on the disk, or None where they are not encoded one by one.
        writer: where records go.
        skipped: pipelines that are not measured here, with the reason.
        done: units that the records hold already.
        workers: processes or threads of pipelines, as the records tell.
        failed: whether a pipeline has failed before.
    """

    def __init__(
        self,
        request: LoadersRequest,
        pixels: Dataset,
        stored: StoredImages | None,
        writer: RunWriter,
        skipped: dict[str, str],
        *,
        done: Done = frozenset(),
        workers: dict[str, int] | None = None,
        failed: bool = False,
    ) -> None:
        self.request, self.pixels, self.stored, self.writer, self.skipped = request, pixels, stored, writer, skipped
        self.device, self.workers, self.done, self.failed = torch.device(request.device), workers or {}, done, failed
        self.units = request.units(forms_of(stored), skipped)

    def execute(self, observe: Callable[[PipelineDone], None], deadline: Deadline | None = None) -> RunStatus:
        """Runs what is left and ends the records.

        Args:
            observe: is shown everything that is done.
            deadline: no round is begun after it.

        Returns:
            How it ended: "failed" if a pipeline is wrong or could not run.

        Raises:
            KeyboardInterrupt: after the records have been ended as interrupted.
        """
        self._observe, self._deadline = observe, deadline or Deadline(None)
        with (
            self.writer as writer,
            measured_under(),
            Telemetry.of(self.device, self.writer.note) as self._telemetry,
            tempfile.TemporaryDirectory(prefix="wallclock-shards-") as scratch,
        ):
            for pipeline, why_not in self.skipped.items():
                observe(PipelineDone("every case", pipeline, "every regime", {}, why_not))
            forms = self._forms(Path(scratch))
            self._tune(forms)
            for (form, batch_size, regime), pipelines in self.units.items():
                trial = LoaderTrial(forms[form], batch_size, self.device, self.workers)
                if not self._measure(trial, regime, pipelines):
                    writer.note(f"stopped at {trial.name}, {regime}: the budget is spent")
                    writer.finish("stopped")
                    return "stopped"
            how = ("failed", "pipelines are wrong or could not run; see their errors") if self.failed else ()
            writer.finish(*how)
        return "failed" if self.failed else "done"

    def _forms(self, scratch: Path) -> dict[str, Form]:
        """The data in every form that is asked for; shards are written for it."""
        forms = {"pixels": Form("pixels", self.pixels, self.pixels)}
        if self.stored is not None:
            forms[self.stored.form] = Form(self.stored.form, self.stored, self.pixels)
        if any(form == "shards" for form, _, _ in self.units):
            written = write_shards(self.stored or self.pixels, scratch / "shards", min(SHARDS, len(self.pixels)))
            forms["shards"] = Form("shards", written, self.pixels)
        return forms

    def _tune(self, forms: dict[str, Form]) -> None:
        """Chooses how many processes or threads each pipeline gets: an untuned baseline proves nothing."""
        counts, batch_size = sorted({1, max(1, cpu_cores() // 2), cpu_cores()}), max(self.request.batch_sizes)
        for pipeline in TUNED:
            form = next((form for (form, *_), pipelines in self.units.items() if pipeline in pipelines), None)
            if form is None or pipeline in self.workers:
                continue
            rates: dict[int, float] = {}
            self.workers[pipeline] = 1
            try:
                for turn, count in itertools.product(range(2), counts):
                    trial = LoaderTrial(forms[form], batch_size, self.device, {pipeline: count})
                    rate = next(m.value for m in trial.alone(pipeline) if m.metric == "images_per_s")
                    rates[count] = max(rate, rates.get(count, 0.0))
                    self._record(trial, pipeline, Measured("tuning", "images_per_s", "images/s", rate), round=turn)
            except _broken() as failure:
                self._fail(trial, pipeline, "tuning", in_a_line(failure))
                continue
            self.workers[pipeline] = max(rates, key=rates.__getitem__)
            self.writer.note(f"{pipeline} gets {self.workers[pipeline]} of {', '.join(map(str, counts))} workers")
            self._record(trial, pipeline, Measured("tuning", "workers", "processes", self.workers[pipeline]))
            figures = {f"images/s with {count}": rate for count, rate in rates.items()}
            self._observe(PipelineDone(trial.name, pipeline, "tuning", figures))

    def _measure(self, trial: LoaderTrial, regime: Regime, pipelines: list[str]) -> bool:
        """Checks and measures the pipelines of a case in turn; returns whether the budget held all rounds."""
        rounds = [turn for turn in range(self.request.rounds) if (trial.name, regime, turn) not in self.done]
        right = [pipeline for pipeline in pipelines if rounds and self._right(trial, pipeline, regime)]
        if not right:
            return True
        trainer = None
        if regime == "training":
            trainer, right = trial.trainer(get_recipe(self.request.recipe, self.request.device)), [HELD, *right]
        for turn in rounds:
            if self._deadline.expired():
                return False
            for slot, pipeline in enumerate(right if turn % 2 == 0 else right[::-1]):
                figures: dict[str, list[float]] = {}
                try:
                    if trainer is not None:
                        found = trial.training(pipeline, trainer, self.request.steps)
                    else:
                        found = (
                            trial.alone(pipeline) if regime == "alone" else trial.one_image(pipeline, IMAGE_BUDGET_S)
                        )
                    for measured in found:
                        figures.setdefault(measured.metric, []).append(measured.value)
                        self._record(trial, pipeline, measured, round=turn, slot=slot, **self._telemetry.read())
                except _broken() as failure:
                    self._fail(trial, pipeline, regime, in_a_line(failure))
                    right = [other for other in right if other != pipeline]
                    continue
                medians = {name: statistics.median(values) for name, values in figures.items()}
                self._observe(PipelineDone(trial.name, pipeline, f"{regime}, round {turn + 1}", medians))
        return True

    def _right(self, trial: LoaderTrial, pipeline: str, regime: Regime) -> bool:
        """Checks a pipeline's images; what is wrong is recorded and not timed."""
        try:
            error = trial.check(pipeline)
        except _broken() as failure:
            self._fail(trial, pipeline, regime, in_a_line(failure))
            return False
        if not error <= TOLERANCE:
            self._fail(trial, pipeline, regime, f"wrong: off by {error:.2e}, {TOLERANCE:.0e} is allowed")
            return False
        self._record(trial, pipeline, Measured(regime, "error", "normalised", error))
        return True

    def _fail(self, trial: LoaderTrial, pipeline: str, regime: Regime, why: str) -> None:
        self.failed = True
        measured = Measured(regime, "error", "normalised", math.nan)
        self._record(trial, pipeline, measured, status="failed", error=why)
        self._observe(PipelineDone(trial.name, pipeline, regime, {}, why))

    def _record(self, trial: LoaderTrial, pipeline: str, measured: Measured, **fields: Any) -> None:
        parameters: dict[str, Any] = {
            "regime": measured.regime,
            "form": trial.form.name,
            "batch_size": 1 if measured.regime == "one image" else trial.batch_size,
            "set_images": len(self.pixels),
            "dataset": self.pixels.name,
            "data_hash": self.pixels.content_hash[:12],
            "device": self.request.device,
            "network": self.request.recipe if measured.regime == "training" else "",
        }
        if pipeline in TUNED and measured.regime != "one image":
            parameters["workers"] = trial.workers.get(pipeline, 0)
        self.writer.add(
            Sample(
                benchmark="loaders",
                case=trial.name,
                variant=pipeline,
                parameters={name: value for name, value in parameters.items() if value != ""},
                metric=measured.metric,
                unit=measured.unit,
                value=measured.value,
                better="higher" if measured.metric == "images_per_s" else "lower",
                index=measured.index,
                **fields,
            )
        )


def _broken() -> tuple[type[Exception], ...]:
    """What a pipeline, a driver or want of memory raise, and not what a mistake in this suite raises."""
    return (*failures(), DataError, WorkerDied)


def measured_under() -> AbstractContextManager[dict[str, str]]:
    """Returns the settings that every measurement runs under."""
    return numerics(seed=0, keep_heap=True)


def not_measured() -> dict[str, str]:
    """Returns the pipelines that this machine lacks, with the reason."""
    return {name: why for name in PIPELINES if (why := unavailable(name))}


def default_images(data: str) -> int:
    """Returns how many training images are used unless told: 10,000, or all where there are fewer."""
    return min(MOST_IMAGES, len(load_split(data, "test").train))


def forms_of(stored: StoredImages | None) -> tuple[str, ...]:
    """Returns the forms that a data set has; shards can be written of any."""
    return ("pixels", *((stored.form,) if stored else ()), "shards")


def _loaded(request: LoadersRequest) -> tuple[Dataset, StoredImages | None]:
    """The images in memory and as they lie on the disk, as many as are asked for.

    Raises:
        DataError: if they are missing or damaged, or fewer than asked for.
    """
    train = load_split(request.data, "test").train
    if len(train) < request.images:
        raise DataError(f"{request.data} holds {len(train)} training images; use --images {len(train)} or less")
    stored = None if request.data == SYNTHETIC else find_stored(Path(request.data))
    return train.subset(slice(0, request.images)), stored and stored.first(request.images)


def new_run(request: LoadersRequest, out: Path, command: str) -> LoadersRun:
    """Returns a request as a new run under `out`, ready to be executed.

    Args:
        request: what to run.
        out: folder that holds runs.
        command: as typed, for the record.

    Raises:
        DataError: if the data are missing or damaged; nothing is recorded then.
        StoreError: if `out` cannot be written.
        ValueError: if nothing is left to measure.
    """
    pixels, stored = _loaded(request)
    skipped = not_measured()
    request.units(forms_of(stored), skipped)
    run = Run(
        run_id=new_run_id("loaders"),
        started_utc=utc_now(),
        command=command,
        request={**request.stored(), "content_hash": pixels.content_hash},
        notes=tuple(f"{pipeline} was not measured: {why}" for pipeline, why in skipped.items()),
        **_provenance(request),
    )
    return LoadersRun(request, pixels, stored, RunWriter.create(out, run), skipped)


def resumed_run(path: Path) -> LoadersRun:
    """Returns a run that was interrupted, stopped or killed, ready to go on.

    Rounds that are whole stay as they are; one that was begun is measured again, and all its samples count.

    Args:
        path: the run's directory.

    Raises:
        StoreError: if the run is finished, being written, or was begun with another version, other data or on another
            machine.
        ValueError: if its device is not there.
    """
    run = begun_run(path, "loaders")
    fields = {key: value for key, value in run.request.items() if key not in ("benchmark", "content_hash")}
    request = LoadersRequest(**fields | {key: tuple(fields[key]) for key in ("only", "batch_sizes")})
    resolve_device(request.device)
    if request.data != SYNTHETIC and not Path(request.data).exists():
        raise StoreError(f"{path} needs its data at {request.data}, seen from where it was begun; go on from there")
    pixels, stored = _loaded(request)
    if pixels.content_hash != run.request["content_hash"]:
        raise StoreError(f"{path} was made with other data than {request.data} holds now; start a new run")
    check_same_place(run, _provenance(request), path)
    writer, skipped = RunWriter.resume(path), not_measured()
    samples = load(path)
    tuned = samples[samples["metric"] == "workers"]
    workers = {str(name): int(count) for name, count in zip(tuned["variant"], tuned["value"], strict=True)}
    broken = samples[samples["status"] == "failed"]
    done = _whole_rounds(request, request.units(forms_of(stored), skipped), samples)
    return LoadersRun(request, pixels, stored, writer, skipped, done=done, workers=workers, failed=len(broken) > 0)


def _whole_rounds(
    request: LoadersRequest, units: dict[tuple[str, int, Regime], list[str]], samples: "pd.DataFrame"
) -> Done:
    """The rounds of which the records hold every pipeline that has not failed."""
    if samples.empty:
        return frozenset()
    whole = set()
    for (form, batch_size, regime), pipelines in units.items():
        case = f"{form} {batch_size}"
        own = samples[(samples["case"] == case) & (samples["regime"] == regime)]
        failed = set(own.loc[own["status"] == "failed", "variant"])
        needed = {*pipelines, *((HELD,) if regime == "training" else ())} - failed
        key = own[own["metric"] == REGIMES[regime]]
        for turn in range(request.rounds):
            if needed <= set(key.loc[key["round"] == turn, "variant"]):
                whole.add((case, str(regime), turn))
    return frozenset(whole)


def _provenance(request: LoadersRequest) -> dict[str, Any]:
    fields = provenance(request.device)
    with measured_under() as settings:
        fields["environment"] |= settings
    return fields
