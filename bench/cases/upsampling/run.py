"""`wallclock run upsampling`: the time of each way to double a map at DCGAN's stages, and the grid that it leaves."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from wallclock.bench.cases.kernels.run import copy_bandwidth, holds_checks, measure_case, skip_untimed
from wallclock.bench.cases.kernels.trial import failures, in_a_line
from wallclock.bench.cases.upsampling.small_gan import CAPTION, GanDiverged, Score, SmallGan, real_scores
from wallclock.bench.cases.upsampling.trial import UPSAMPLING, UpsamplingTrial, kind_of, spread_at_start
from wallclock.bench.measure.timing import Deadline
from wallclock.bench.runs.cases import CaseDone, CaseRequest, CaseRun, Part
from wallclock.bench.runs.request import SYNTHETIC
from wallclock.bench.runs.select import is_chosen
from wallclock.bench.tasks.cifar.run import load_split
from wallclock.kernels.spec import Case
from wallclock.loaders.batches import Dataset
from wallclock.models.networks.dcgan import Generator
from wallclock.models.upsampling import UPSAMPLINGS
from wallclock.reports.store.pictures import write_picture
from wallclock.reports.store.schema import Sample

if TYPE_CHECKING:
    import pandas as pd

DTYPES = ("fp32", "bf16")
STEPS = 100
PICTURES_TITLE = "Checkerboards: five upsamplings before and after a short training"


@dataclass(frozen=True, kw_only=True)
class UpsamplingRequest(CaseRequest):
    """A request to time the ways of upsampling and to train small generators with them.

    Attributes:
        data: path of the images that the small generators are trained on, or "synthetic" for the embedded ones.
        seeds: number of trainings of each kind of upsampling; 0 measures speed alone.
        steps: number of steps in each training.
        sample_budget_s: seconds for each measurement of a variant and direction.

    Raises:
        ValueError: if nothing is left to measure, or a number is out of range.
    """

    benchmark = "upsampling"
    data: str = SYNTHETIC
    seeds: int = 1
    steps: int = STEPS
    sample_budget_s: float = 0.5

    def __post_init__(self) -> None:
        if self.seeds < 0 or self.steps < 1:
            raise ValueError(f"seeds is {self.seeds} and steps {self.steps}; expected at least 0 and 1")
        if not any(self.speeds()) and not any(self.trainings()):
            raise ValueError(
                f"nothing matches '{' | '.join(self.only)}'; words: speed, training, {', '.join(UPSAMPLINGS)}, "
                f"{', '.join(DTYPES)}, nchw, channels_last, {', '.join(_shape(case) for case in UPSAMPLING.cases)}"
            )

    def speeds(self) -> Iterator[tuple[Case, str, list[str]]]:
        """Yields each case and type with its variants that match `only`."""
        for case in UPSAMPLING.cases:
            for dtype in DTYPES:
                matching = [v for v in UPSAMPLING.variants if is_chosen(_words(case, dtype, v), self.only)]
                if matching:
                    yield case, dtype, matching

    def trainings(self) -> Iterator[tuple[int, str]]:
        """Yields the seed and kind of each training, all kinds of one seed before the next seed."""
        for seed in range(self.seeds):
            yield from ((seed, kind) for kind in UPSAMPLINGS if is_chosen({"training", kind}, self.only))


def _shape(case: Case) -> str:
    return "x".join(map(str, case.shape))


def _words(case: Case, dtype: str, variant: str) -> set[str]:
    layout = "nchw" if variant.endswith("_nchw") else "channels_last"
    return {"speed", case.network, _shape(case), dtype, variant, kind_of(variant), layout}


class UpsamplingRun(CaseRun[UpsamplingRequest]):
    """One run of the upsampling benchmark, which times stage after stage, then trains kind after kind."""

    kind = UpsamplingRequest
    failure = "variants are wrong, could not run or diverged; see their errors"

    def __init__(self, request: UpsamplingRequest) -> None:
        variants = (variant for _, _, each in request.speeds() for variant in each)
        skipped = skip_untimed(variants, request.device, others=any(request.trainings()))
        self.images = real_images(request.data)
        super().__init__(request, skipped, self.images)

    def read_done(self, samples: "pd.DataFrame") -> None:
        """Marks the stages as done for which the records hold every check, and the trainings that have ended."""
        for case, dtype, variants in self.request.speeds() if "dtype" in samples else ():
            own = samples[(samples["case"] == f"{UPSAMPLING.name} {case.name}") & (samples["dtype"] == dtype)]
            if holds_checks(own[own["metric"] == "error"], self.timed(variants)):
                self.done.add((case.name, dtype))
        if "training_steps" in samples:
            ended = samples[(samples["training_steps"] == self.request.steps) & samples["seed"].notna()]
            self.done |= {(int(seed), str(kind)) for seed, kind in zip(ended["seed"], ended["variant"], strict=True)}

    def measure(self, deadline: Deadline) -> str:
        """Measures the remaining stages and trainings; returns why it stopped early, else an empty text."""
        return self.measure_parts(self._parts(), deadline)

    def _parts(self) -> Iterator[Part]:
        speeds = [unit for unit in self.request.speeds() if (unit[0].name, unit[1]) not in self.done]
        if speeds:
            self.show_skipped("every stage")
            copy = partial(copy_bandwidth, self.device, self.request.sample_budget_s, "upsampling")
            yield "the copy", lambda: self.writer.add(copy())
        for case, dtype, variants in speeds:
            yield f"{case.name} {dtype}", partial(self._measure_stage, case, dtype, self.timed(variants))
        trainings = [unit for unit in self.request.trainings() if unit not in self.done]
        if trainings:
            yield "the real images' scores", self._score_real
        for seed, kind in trainings:
            yield f"training {kind}, seed {seed}", partial(self._train, seed, kind)

    def _measure_stage(self, case: Case, dtype: str, variants: list[str]) -> None:
        trial = UpsamplingTrial(UPSAMPLING, case, dtype, self.device)
        for variant in variants:
            of: dict[str, Any] = {"parameters": {"of": "layer", "training_steps": 0}}
            self.writer.add(
                trial.sample(variant, "parameter_count", "count", trial.parameter_count(variant)),
                trial.sample(variant, "constant_spread", "ratio", spread_at_start(case, kind_of(variant)), **of),
            )
        measure_case(self, trial, variants, self.request.sample_budget_s)

    def _sample(self, variant: str, score: Score, **fields: Any) -> Sample:
        size = self.images.images_NHWC.shape[1]
        parameters: dict[str, Any] = {"dataset": self.images.name, "data_hash": self.images.content_hash[:12]}
        parameters |= {"image_size": size, "device": self.device.type, **score.of, **fields.pop("parameters", {})}
        return Sample(
            benchmark="upsampling", case=f"small gan {size} px", variant=variant, parameters=parameters,
            metric=score.metric, unit=score.unit, value=score.value, better="lower", **fields,
        )  # fmt: skip

    def _score_real(self) -> None:
        self.writer.add(*(self._sample("real images", score) for score in real_scores(self.images.images_NHWC)))

    def _train(self, seed: int, kind: str) -> None:
        why = ""
        try:
            gan = SmallGan(kind, self.images.images_NHWC, seed=seed, device=self.device)
            self._look(gan, kind, seed, 0)
            gan.train(self.request.steps)
            self._look(gan, kind, seed, self.request.steps)
        except failures() as failure:
            why = in_a_line(failure)
            lost = Score("phase_share", "fraction", float("nan"), {"of": "images"})
            status: Any = "diverged" if isinstance(failure, GanDiverged) else "failed"
            where = {"parameters": {"training_steps": self.request.steps}, "seed": seed}
            self.writer.add(self._sample(kind, lost, status=status, error=why, **where))
        self.report(CaseDone(f"training with seed {seed}", kind, why_not=why))

    def _look(self, gan: SmallGan, kind: str, seed: int, steps: int) -> None:
        scores, picture = gan.look()
        if seed == 0:
            when = f"after {steps} steps" if steps else "at the start"
            name = f"{UPSAMPLINGS.index(kind)}-{kind}-{int(steps > 0)}"
            caption = f"{kind} {when}: {CAPTION}"
            write_picture(self.writer.path, name, picture, title=PICTURES_TITLE, caption=caption)
        where = {"parameters": {"training_steps": steps}, "seed": seed, "step": steps}
        self.writer.add(*(self._sample(kind, score, **where) for score in scores))


def real_images(data: str) -> Dataset:
    """Returns the training images at a path, or the embedded ones for "synthetic".

    Raises:
        DataError: if the images are missing or damaged.
        ValueError: if the images are not square, or the generator cannot make images of their size.
    """
    found = load_split(data, "test").train
    height, width = found.images_NHWC.shape[1:3]
    if height != width:
        raise ValueError(f"{data} has images of {height} x {width} pixels; expected square ones")
    with torch.device("meta"):
        Generator(image_size=height)
    return found


RUN = UpsamplingRun
