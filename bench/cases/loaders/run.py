"""`wallclock run loaders`: measures every pipeline over every form of a data set, in four separate regimes.

The regimes: one image at a time; a pipeline alone, over whole epochs without training; the latency of its first batch;
and training on its batches, beside the same network training on one batch held in memory. Pipelines take turns within
each round, in reverse order in every second round.
"""

import itertools
import math
import statistics
import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wallclock.bench.cases.kernels.trial import failures, in_a_line
from wallclock.bench.cases.loaders.trial import HELD, TOLERANCE, Form, LoaderTrial, Measured, Regime
from wallclock.bench.measure.environment import cpu_cores
from wallclock.bench.measure.timing import Deadline
from wallclock.bench.runs.cases import CaseDone, CaseRequest, CaseRun
from wallclock.bench.runs.request import SYNTHETIC
from wallclock.bench.runs.select import is_chosen
from wallclock.bench.tasks.cifar.run import load_split
from wallclock.loaders.batches import DataError, Dataset
from wallclock.loaders.data.shards import SHARDS, write_shards
from wallclock.loaders.data.stored import StoredImages, find_stored
from wallclock.loaders.pipelines.choose import PIPELINES, unavailable
from wallclock.loaders.pipelines.workers import WorkerDied
from wallclock.models.recipes import get_recipe
from wallclock.reports.format.text import significant
from wallclock.reports.store.schema import Sample

if TYPE_CHECKING:
    import pandas as pd

MOST_IMAGES = 10_000  # default, with which the slowest pipeline's epoch takes seconds
IMAGE_BUDGET_S = 0.3  # seconds for the regime "one image" in each round
TUNED = ("dataloader", "dali", "webdataset")  # pipelines whose number of processes or threads is chosen by trial

# The metric that every pipeline records in each round of a regime; a resumed run finds by it which rounds are done.
REGIMES: dict[Regime, str] = {"one image": "image_time", "alone": "images_per_s", "training": "step_time"}
# The pipelines that read each form. `device` decodes the set once, when it is loaded, so that its form is pixels.
FORMS = {
    "pixels": ("device", "dataloader", "dali"),
    "parquet": ("dataloader", "dali"),
    "folders": ("dataloader", "dali"),
    "shards": ("webdataset", "dataloader", "dali"),
}


@dataclass(frozen=True, kw_only=True)
class LoadersRequest(CaseRequest):
    """A request to measure pipelines; `only` takes words of form, batch size, pipeline and regime.

    Attributes:
        data: path of the data set, or "synthetic" for the embedded one.
        images: number of images used, the first ones of the training set.
        steps: number of training steps that are timed in each round.
        recipe: name of the CIFAR recipe whose network trains.

    Raises:
        ValueError: if a number is out of range.
    """

    benchmark = "loaders"
    data: str
    batch_sizes: tuple[int, ...] = (128, 500)
    images: int = 10_000
    rounds: int = 5
    steps: int = 3
    recipe: str = "sprint"

    def __post_init__(self) -> None:
        if not self.batch_sizes or min(self.batch_sizes) < 1 or min(self.images, self.rounds, self.steps) < 1:
            raise ValueError(
                f"batch sizes are {self.batch_sizes}, images {self.images}, rounds {self.rounds}, steps {self.steps}; "
                "expected numbers above 0"
            )
        if self.images < 2 * max(self.batch_sizes):
            batches = f"two batches of {max(self.batch_sizes)}"
            raise ValueError(f"{self.images} images are less than {batches}; ask for more images")

    def units(self, forms: Collection[str], skipped: Collection[str]) -> dict[tuple[str, int, Regime], list[str]]:
        """Returns the pipelines to measure, in order, for each form of the data, batch size and regime.

        `skipped` are the pipelines that this machine lacks.

        Raises:
            ValueError: if nothing is left to measure.
        """
        found = {}
        for form, batch_size, regime in itertools.product(forms, self.batch_sizes, REGIMES):
            # One image at a time has no batch size: it is measured with the first one only.
            once = regime != "one image" or batch_size == self.batch_sizes[0]
            regimes = ("alone", "first batch") if regime == "alone" else (regime,)  # "alone" times a first batch
            named = [f"{form} {batch_size} {each}".split() for each in regimes]
            here = [pipeline for pipeline in FORMS[form] if pipeline not in skipped]
            pipelines = [p for p in here if any(is_chosen((*words, p), self.only) for words in named)]
            if once and pipelines:
                found[form, batch_size, regime] = pipelines
        if not found:
            why = "; ".join(skipped)
            raise ValueError(
                f"nothing matches '{' | '.join(self.only)}'; forms: {', '.join(forms)}; pipelines: "
                f"{', '.join(PIPELINES)}; regimes: {', '.join(REGIMES)}, first batch"
                + (f"; not here: {why}" if why else "")
            )
        return found


class LoadersRun(CaseRun[LoadersRequest]):
    """One run of the loaders benchmark, which checks and measures case after case.

    Attributes:
        pixels: the decoded images in memory.
        stored: the encoded images on the disk, or None for a data set that does not store each image by itself.
        workers: number of processes or threads of each tuned pipeline, by name.
        units: names of the pipelines to measure, for each form, batch size and regime.
    """

    kind = LoadersRequest
    failure = "pipelines are wrong or could not run; see their errors"
    verb = "measured"
    seeded = True

    def __init__(self, request: LoadersRequest) -> None:
        self.pixels, self.stored = _load(request)
        super().__init__(request, {name: why for name in PIPELINES if (why := unavailable(name))}, self.pixels)
        self.workers: dict[str, int] = {}
        forms = ("pixels", *((self.stored.form,) if self.stored else ()), "shards")  # shards can be made of any
        self.units = request.units(forms, self.skipped)

    def read_done(self, samples: "pd.DataFrame") -> None:
        """Reads the tuned workers, and marks the rounds as done that hold every pipeline that has not failed."""
        tuned = samples[samples["metric"] == "workers"]
        self.workers = {str(name): int(count) for name, count in zip(tuned["variant"], tuned["value"], strict=True)}
        for (form, batch_size, regime), pipelines in self.units.items() if len(samples) else ():
            case = f"{form} {batch_size}"
            own = samples[(samples["case"] == case) & (samples["regime"] == regime)]
            failed = set(own.loc[own["status"] == "failed", "variant"])
            needed = {*pipelines, *((HELD,) if regime == "training" else ())} - failed
            key = own[own["metric"] == REGIMES[regime]]
            for turn in range(self.request.rounds):
                if needed <= set(key.loc[key["round"] == turn, "variant"]):
                    self.done.add((case, regime, turn))

    def measure(self, deadline: Deadline) -> str:
        """Tunes the pipelines and measures the remaining rounds until the deadline; returns why it stopped early."""
        self.show_skipped("every case", "every regime")
        with tempfile.TemporaryDirectory(prefix="wallclock-shards-") as scratch:
            forms = self._forms(Path(scratch))
            self._tune(forms)
            for (form, batch_size, regime), pipelines in self.units.items():
                trial = LoaderTrial(forms[form], batch_size, self.device, self.workers)
                if not self._measure_rounds(trial, regime, pipelines, deadline):
                    return f"stopped at {trial.name}, {regime}: the budget is spent"
        return ""

    def _forms(self, scratch: Path) -> dict[str, Form]:
        """Returns the data in every available form; writes shards to `scratch` if any pipeline reads them."""
        forms = {"pixels": Form("pixels", self.pixels, self.pixels)}
        if self.stored is not None:
            forms[self.stored.form] = Form(self.stored.form, self.stored, self.pixels)
        if any(form == "shards" for form, _, _ in self.units):
            written = write_shards(self.stored or self.pixels, scratch / "shards", min(SHARDS, len(self.pixels)))
            forms["shards"] = Form("shards", written, self.pixels)
        return forms

    def _tune(self, forms: dict[str, Form]) -> None:
        """Chooses the number of processes or threads of each pipeline, since an untuned baseline proves nothing."""
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
            self._show(trial, pipeline, "tuning", {f"images/s with {count}": rate for count, rate in rates.items()})

    def _measure_rounds(self, trial: LoaderTrial, regime: Regime, pipelines: list[str], deadline: Deadline) -> bool:
        """Checks and measures the pipelines of a case in turns; returns whether the budget sufficed for all rounds."""
        rounds = [turn for turn in range(self.request.rounds) if (trial.name, regime, turn) not in self.done]
        right = [pipeline for pipeline in pipelines if rounds and self._is_right(trial, pipeline, regime)]
        if not right:
            return True
        trainer = None
        if regime == "training":
            trainer, right = trial.trainer(get_recipe(self.request.recipe, self.request.device)), [HELD, *right]
        for turn in rounds:
            if deadline.expired():
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
                        self._record(trial, pipeline, measured, round=turn, slot=slot, **self.telemetry.read())
                except _broken() as failure:
                    self._fail(trial, pipeline, regime, in_a_line(failure))
                    right = [other for other in right if other != pipeline]
                    continue
                medians = {name: statistics.median(values) for name, values in figures.items()}
                self._show(trial, pipeline, f"{regime}, round {turn + 1}", medians)
        return True

    def _is_right(self, trial: LoaderTrial, pipeline: str, regime: Regime) -> bool:
        """Checks a pipeline's images and records their error; returns whether they are right."""
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
        measured = Measured(regime, "error", "normalised", math.nan)
        self._record(trial, pipeline, measured, status="failed", error=why)
        self.report(CaseDone(trial.name, pipeline, why_not=why, regime=regime))

    def _show(self, trial: LoaderTrial, pipeline: str, regime: str, figures: dict[str, float]) -> None:
        result = ", ".join(f"{name} {significant(value)}" for name, value in figures.items())
        self.report(CaseDone(trial.name, pipeline, result, regime=regime))

    def _record(self, trial: LoaderTrial, pipeline: str, measured: Measured, **fields: Any) -> None:
        found = asdict(measured)
        regime, single = found.pop("regime"), measured.regime == "one image"
        parameters: dict[str, Any] = {"regime": regime, "form": trial.form.name}
        parameters |= {"batch_size": 1 if single else trial.batch_size, "set_images": len(self.pixels)}
        parameters |= {"dataset": self.pixels.name, "data_hash": self.pixels.content_hash[:12]}
        parameters["device"] = self.request.device
        if regime == "training":
            parameters["network"] = self.request.recipe
        if pipeline in TUNED and not single:
            parameters["workers"] = trial.workers.get(pipeline, 0)
        found |= {"better": "higher" if measured.metric == "images_per_s" else "lower", **fields}
        self.writer.add(Sample(benchmark="loaders", case=trial.name, variant=pipeline, parameters=parameters, **found))


RUN = LoadersRun


def _broken() -> tuple[type[Exception], ...]:
    """Returns the exceptions of pipelines, drivers and full memory; mistakes in this suite raise others."""
    return (*failures(), DataError, WorkerDied)


def default_images(data: str) -> int:
    """Returns the default number of training images: 10,000, or all of a smaller set."""
    return min(MOST_IMAGES, len(load_split(data, "test").train))


def _load(request: LoadersRequest) -> tuple[Dataset, StoredImages | None]:
    """Returns the requested number of images, decoded in memory and, if each is stored encoded, as on the disk.

    Raises:
        DataError: if the images are missing, damaged, or fewer than requested.
    """
    train = load_split(request.data, "test").train
    if len(train) < request.images:
        raise DataError(f"{request.data} holds {len(train)} training images; use --images {len(train)} or less")
    stored = None if request.data == SYNTHETIC else find_stored(Path(request.data))
    return train.subset(slice(0, request.images)), stored and stored.first(request.images)
