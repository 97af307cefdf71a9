"""`wallclock run upsampling`: what each way to double a map costs at DCGAN's stages, and what grid it leaves."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from wallclock.bench.cases.kernels.run import (
    CaseDone,
    copy_bandwidth,
    interpreted,
    is_done,
    measure_case,
    measured_under,
)
from wallclock.bench.cases.kernels.trial import failures, in_a_line
from wallclock.bench.cases.upsampling.small_gan import CAPTION, GanDiverged, Score, SmallGan, real_scores
from wallclock.bench.cases.upsampling.trial import UPSAMPLING, UpsamplingTrial, kind_of, spread_at_start
from wallclock.bench.measure.environment import provenance, resolve_device
from wallclock.bench.measure.telemetry import Telemetry
from wallclock.bench.measure.timing import Deadline, now_s
from wallclock.bench.runs.resume import begun_run, check_same_place
from wallclock.bench.runs.select import is_chosen
from wallclock.bench.tasks.cifar.run import SYNTHETIC, load_split
from wallclock.kernels.spec import Case, available
from wallclock.loaders.batches import Dataset
from wallclock.models.networks.dcgan import Generator
from wallclock.models.upsampling import UPSAMPLINGS
from wallclock.reports.store.pictures import write_picture
from wallclock.reports.store.read import load
from wallclock.reports.store.schema import Run, RunStatus, Sample
from wallclock.reports.store.write import RunWriter, StoreError, new_run_id, utc_now

DTYPES = ("fp32", "bf16")
STEPS = 100
PICTURES_TITLE = "Checkerboards: five upsamplings before and after a short training"


@dataclass(frozen=True, kw_only=True)
class UpsamplingRequest:
    """What is asked of one run.

    Attributes:
        device: "cpu" or "cuda".
        data: a path, or "synthetic" for the embedded set: what the small generators are trained on.
        seeds: how many trainings of each kind; none measures speed alone.
        steps: of each training.
        only: see `bench.runs.select`; words are those that the error for an unknown one lists.
        sample_budget_s: time for each measurement of a variant and direction.

    Raises:
        ValueError: if nothing is left, or a number is out of range.
    """

    device: str
    data: str = SYNTHETIC
    seeds: int = 1
    steps: int = STEPS
    only: tuple[str, ...] = ()
    sample_budget_s: float = 0.5

    def __post_init__(self) -> None:
        if self.seeds < 0 or self.steps < 1:
            raise ValueError(f"seeds is {self.seeds} and steps {self.steps}; expected at least 0 and 1")
        if not any(True for _ in self.speeds()) and not any(True for _ in self.trainings()):
            raise ValueError(
                f"nothing matches '{' | '.join(self.only)}'; words: speed, training, {', '.join(UPSAMPLINGS)}, "
                f"{', '.join(DTYPES)}, nchw, channels_last, {', '.join(_shape(case) for case in UPSAMPLING.cases)}"
            )

    def stored(self) -> dict[str, Any]:
        """Returns what a record keeps of the request, so that the run can be resumed."""
        return {"benchmark": "upsampling", **asdict(self)}

    def speeds(self) -> Iterator[tuple[Case, str, list[str]]]:
        """Yields cases and types with the variants asked for."""
        for case in UPSAMPLING.cases:
            for dtype in DTYPES:
                matching = [v for v in UPSAMPLING.variants if is_chosen(_words(case, dtype, v), self.only)]
                if matching:
                    yield case, dtype, matching

    def trainings(self) -> Iterator[tuple[int, str]]:
        """Yields seeds and kinds: all kinds of a seed before the next."""
        for seed in range(self.seeds):
            yield from ((seed, kind) for kind in UPSAMPLINGS if is_chosen({"training", kind}, self.only))


def _shape(case: Case) -> str:
    return "x".join(map(str, case.shape))


def _words(case: Case, dtype: str, variant: str) -> set[str]:
    layout = "nchw" if variant.endswith("_nchw") else "channels_last"
    return {"speed", case.network, _shape(case), dtype, variant, kind_of(variant), layout}


class UpsamplingRun:
    """One run of a request: measures stage after stage, then trains kind after kind, and records it as it goes.

    Args:
        request: what to run.
        data: real images, uint8 [N, S, S, 3]; see `real_images`.
        writer: where records go.
        skipped: variants that are not timed on this machine, with the reason.
        done: cases with their types, and seeds with their kinds, that the records hold already.
        failed: whether one of them failed.
    """

    def __init__(
        self,
        request: UpsamplingRequest,
        data: Dataset,
        writer: RunWriter,
        skipped: Mapping[str, str],
        *,
        done: Collection[tuple[Any, str]] = (),
        failed: bool = False,
    ) -> None:
        self.request, self.data, self.writer, self.skipped = request, data, writer, skipped
        self.done, self.failed, self.device = done, failed, torch.device(request.device)

    def execute(self, observe: Callable[[CaseDone], None], deadline: Deadline | None = None) -> RunStatus:
        """Runs what is left and ends the records.

        Args:
            observe: is shown every variant and every training that is done.
            deadline: nothing is begun with less time left than the longest part so far took.

        Returns:
            How it ended: "failed" if a variant is wrong or could not run, or a training diverged.

        Raises:
            KeyboardInterrupt: after the records have been ended as interrupted.
        """
        with self.writer as writer, measured_under(), Telemetry.of(self.device, self.writer.note) as telemetry:
            stopped, longest_s = "", 0.0
            for name, part in self._parts(observe, telemetry):
                if deadline is not None and deadline.remaining_s() <= longest_s:
                    stopped = f"stopped before {name}: the budget does not hold it"
                    break
                begun_s = now_s()
                part()
                longest_s = max(longest_s, now_s() - begun_s)
            if stopped:
                writer.note(stopped)
                writer.finish("stopped")
                return "stopped"
            why = ("failed", "variants are wrong, could not run or diverged; see their errors")
            writer.finish(*(why if self.failed else ()))
        return "failed" if self.failed else "done"

    def _parts(
        self, observe: Callable[[CaseDone], None], telemetry: Telemetry
    ) -> Iterator[tuple[str, Callable[[], None]]]:
        def seen(done: CaseDone) -> None:
            self.failed |= bool(done.why_not)
            observe(done)

        speeds = [unit for unit in self.request.speeds() if (unit[0].name, unit[1]) not in self.done]
        if speeds:
            for variant, why_not in self.skipped.items():
                observe(CaseDone("every stage", variant, {}, why_not))
            yield "the copy", self._measure_copy
        for case, dtype, variants in speeds:
            wanted = [variant for variant in variants if variant not in self.skipped]
            yield f"{case.name} {dtype}", lambda c=case, d=dtype, v=wanted: self._measure(c, d, v, telemetry, seen)  # type: ignore[misc]
        trainings = [unit for unit in self.request.trainings() if unit not in self.done]
        if trainings:
            yield "the real images' scores", self._score_real
        for seed, kind in trainings:
            yield f"training {kind}, seed {seed}", lambda s=seed, k=kind: self._train(s, k, seen)  # type: ignore[misc]

    def _measure_copy(self) -> None:
        self.writer.add(copy_bandwidth(self.device, self.request.sample_budget_s, "upsampling"))

    def _measure(
        self, case: Case, dtype: str, variants: list[str], telemetry: Telemetry, seen: Callable[[CaseDone], None]
    ) -> None:
        trial = UpsamplingTrial(UPSAMPLING, case, dtype, self.device)
        for variant in variants:
            of: dict[str, Any] = {"parameters": {"of": "layer", "training_steps": 0}}
            self.writer.add(
                trial.sample(variant, "parameter_count", "count", trial.parameter_count(variant)),
                trial.sample(variant, "constant_spread", "ratio", spread_at_start(case, kind_of(variant)), **of),
            )
        for done in measure_case(trial, variants, self.request.sample_budget_s, self.writer, telemetry):
            seen(done)

    def _sample(self, variant: str, score: Score, **fields: Any) -> Sample:
        size = self.data.images_NHWC.shape[1]
        parameters: dict[str, Any] = {"dataset": self.data.name, "data_hash": self.data.content_hash[:12]}
        parameters |= {"image_size": size, "device": self.device.type, **score.of, **fields.pop("parameters", {})}
        return Sample(
            benchmark="upsampling", case=f"small gan {size} px", variant=variant, parameters=parameters,
            metric=score.metric, unit=score.unit, value=score.value, better="lower", **fields,
        )  # fmt: skip

    def _score_real(self) -> None:
        self.writer.add(*(self._sample("real images", score) for score in real_scores(self.data.images_NHWC)))

    def _train(self, seed: int, kind: str, seen: Callable[[CaseDone], None]) -> None:
        name, why = f"training with seed {seed}", ""
        try:
            gan = SmallGan(kind, self.data.images_NHWC, seed=seed, device=self.device)
            self._look(gan, kind, seed, 0)
            gan.train(self.request.steps)
            self._look(gan, kind, seed, self.request.steps)
        except failures() as failure:
            why = in_a_line(failure)
            lost = Score("phase_share", "fraction", float("nan"), {"of": "images"})
            status: Any = "diverged" if isinstance(failure, GanDiverged) else "failed"
            where = {"parameters": {"training_steps": self.request.steps}, "seed": seed}
            self.writer.add(self._sample(kind, lost, status=status, error=why, **where))
        seen(CaseDone(name, kind, {}, why))

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
    """Returns the training images that a request names.

    Raises:
        DataError: if they are missing or damaged.
        ValueError: if a generator cannot make images of their size.
    """
    found = load_split(data, "test").train
    height, width = found.images_NHWC.shape[1:3]
    if height != width:
        raise ValueError(f"{data} has images of {height} x {width} pixels; expected square ones")
    with torch.device("meta"):
        Generator(image_size=height)
    return found


def not_timed(request: UpsamplingRequest) -> dict[str, str]:
    """Returns the variants of a request that this machine does not time, with the reason.

    Raises:
        ValueError: if that is all of them and nothing is to be trained.
    """
    device = torch.device(request.device)
    asked_for = dict.fromkeys(variant for _, _, variants in request.speeds() for variant in variants)
    skipped = {v: why for v in asked_for if (why := available(v, device) or interpreted(v, device))}
    if len(skipped) == len(asked_for) and not any(True for _ in request.trainings()):
        raise ValueError(f"nothing to time: {'; '.join(f'{v}: {why}' for v, why in skipped.items())}")
    return skipped


def new_run(request: UpsamplingRequest, out: Path, command: str) -> UpsamplingRun:
    """Returns a request as a new run under `out`, ready to be executed.

    Args:
        request: what to run.
        out: folder that holds runs.
        command: as typed, for the record.

    Raises:
        DataError: if the data are missing or damaged; nothing is recorded then.
        ValueError: if nothing that is asked for can be done here.
        StoreError: if `out` cannot be written.
    """
    skipped, data = not_timed(request), real_images(request.data)
    run = Run(
        run_id=new_run_id("upsampling"),
        started_utc=utc_now(),
        command=command,
        request={**request.stored(), "content_hash": data.content_hash},
        notes=tuple(f"{variant} was not timed: {why}" for variant, why in skipped.items()),
        **_provenance(request),
    )
    return UpsamplingRun(request, data, RunWriter.create(out, run), skipped)


def resumed_run(path: Path) -> UpsamplingRun:
    """Returns a run that was interrupted, stopped or killed, ready to go on.

    Finished cases and trainings stay as they are; one that was begun is done again.

    Args:
        path: the run's directory.

    Raises:
        StoreError: if the run is finished, being written, or was begun with another version, on other data or another
            machine.
        ValueError: if its device is not there.
    """
    run = begun_run(path, "upsampling")
    fields = {key: value for key, value in run.request.items() if key not in ("benchmark", "content_hash")}
    request = UpsamplingRequest(**fields | {"only": tuple(fields["only"])})
    resolve_device(request.device)
    data = real_images(request.data)
    if data.content_hash != run.request["content_hash"]:
        raise StoreError(f"{path} was made with other data than {request.data} holds now; start a new run")
    check_same_place(run, _provenance(request), path)
    skipped = not_timed(request)
    writer = RunWriter.resume(path)
    samples = load(path)
    done: set[tuple[Any, str]] = set()
    if "dtype" in samples:
        for case, dtype, variants in request.speeds():
            name = f"{UPSAMPLING.name} {case.name}"
            checks = samples[(samples["metric"] == "error") & (samples["case"] == name) & (samples["dtype"] == dtype)]
            if is_done(checks, [v for v in variants if v not in skipped]):
                done.add((case.name, dtype))
    if "training_steps" in samples:
        ended = samples[(samples["training_steps"] == request.steps) & samples["seed"].notna()]
        done |= {(int(seed), str(kind)) for seed, kind in zip(ended["seed"], ended["variant"], strict=True)}
    failed = bool(samples["status"].isin(("failed", "diverged")).any())
    return UpsamplingRun(request, data, writer, skipped, done=done, failed=failed)


def _provenance(request: UpsamplingRequest) -> dict[str, Any]:
    fields = provenance(request.device)
    with measured_under() as settings:
        fields["environment"] |= settings
    del fields["environment"]["seed"]  # each training's samples name theirs
    return fields
