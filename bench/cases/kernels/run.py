"""`wallclock run kernels`: every operation at every shape, each variant against the others and against the machine."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wallclock.bench.cases.kernels.trial import DTYPES, Trial, failures, in_a_line
from wallclock.bench.measure.environment import last_level_cache_bytes, provenance, resolve_device
from wallclock.bench.measure.numerics import numerics
from wallclock.bench.measure.sampling import measure
from wallclock.bench.measure.telemetry import Telemetry
from wallclock.bench.measure.timing import Deadline, now_s
from wallclock.bench.runs.resume import begun_run, check_same_place
from wallclock.bench.runs.select import is_chosen
from wallclock.kernels.cases import SPECS
from wallclock.kernels.spec import Case, KernelSpec, available
from wallclock.reports.store.read import load
from wallclock.reports.store.schema import Run, RunStatus, Sample, SampleStatus
from wallclock.reports.store.write import RunWriter, new_run_id, utc_now

if TYPE_CHECKING:
    import pandas as pd

CHECKS = 2  # of each variant against the reference: before and after it is timed


@dataclass(frozen=True, kw_only=True)
class KernelsRequest:
    """What is asked of one run.

    Attributes:
        dtype: a name in `DTYPES`.
        device: "cpu" or "cuda".
        only: see `bench.runs.select`; words are of the names of operation, case and variant.
        sample_budget_s: time for each measurement of a variant, direction and state of the cache.
        without: variants left out.

    Raises:
        ValueError: if no case is left, or the type is unknown.
    """

    dtype: str
    device: str
    only: tuple[str, ...] = ()
    sample_budget_s: float = 0.5
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is '{self.dtype}'; expected one of {', '.join(DTYPES)}")
        if not any(True for _ in self.chosen()):
            raise ValueError(f"no case matches '{' | '.join(self.only)}'; operations: {', '.join(SPECS)}")

    def stored(self) -> dict[str, Any]:
        """Returns what a record keeps of the request, so that the run can be resumed."""
        return {"benchmark": "kernels", **asdict(self)}

    def chosen(self) -> Iterator[tuple[KernelSpec, Case, list[str]]]:
        """Yields operations and cases with the variants asked for; "eager" is among them always, as their judge."""
        for spec in SPECS.values():
            for case in spec.cases:
                variants = [v for v in spec.variants_at(case) if v not in self.without]
                words = f"{spec.name} {case.name}"
                matching = [v for v in variants if is_chosen([*words.split(), v], self.only)]
                if matching:
                    yield spec, case, matching


@dataclass(frozen=True)
class CaseDone:
    """One variant at one case: its median latencies by direction in seconds, or why it was not timed."""

    case: str
    variant: str
    latencies_s: dict[str, float]
    why_not: str = ""


class KernelsRun:
    """One run of a request: checks and times case after case, and records it as it goes.

    Args:
        request: what to run.
        writer: where records go.
        skipped: variants that are not timed on this machine, with the reason.
        done: names of cases that the records hold already.
        failed: whether one of them holds a variant that failed.
    """

    def __init__(
        self,
        request: KernelsRequest,
        writer: RunWriter,
        skipped: Mapping[str, str],
        *,
        done: Collection[str] = (),
        failed: bool = False,
    ) -> None:
        self.request, self.writer, self.skipped, self.done, self.failed = request, writer, skipped, done, failed

    def execute(self, observe: Callable[[CaseDone], None], deadline: Deadline | None = None) -> RunStatus:
        """Runs what is left and ends the records.

        Args:
            observe: is shown every variant that is done.
            deadline: no case is begun with less time left than the slowest so far took.

        Returns:
            How it ended: "failed" if a variant is wrong or could not run.

        Raises:
            KeyboardInterrupt: after the records have been ended as interrupted.
        """
        device = torch.device(self.request.device)
        with self.writer as writer, measured_under(), Telemetry.of(device, self.writer.note) as telemetry:
            for variant, why_not in self.skipped.items():
                observe(CaseDone("every case", variant, {}, why_not))
            writer.add(copy_bandwidth(device, self.request.sample_budget_s, "kernels"))
            stopped, slowest_s = "", 0.0
            for spec, case, variants in self.request.chosen():
                trial = Trial(spec, case, self.request.dtype, device)
                if trial.name in self.done:
                    continue
                if deadline is not None and deadline.remaining_s() <= slowest_s:
                    stopped = f"stopped before {trial.name}: the budget does not hold it"
                    break
                begun_s = now_s()
                wanted = [variant for variant in variants if variant not in self.skipped]
                for done in measure_case(trial, wanted, self.request.sample_budget_s, writer, telemetry):
                    observe(done)
                    self.failed |= bool(done.why_not)
                slowest_s = max(slowest_s, now_s() - begun_s)
            writer.add(copy_bandwidth(device, self.request.sample_budget_s, "kernels"))
            if stopped:
                writer.note(stopped)
                writer.finish("stopped")
                return "stopped"
            writer.finish(*(("failed", "variants are wrong or could not run; see their errors") if self.failed else ()))
        return "failed" if self.failed else "done"


def not_timed(request: KernelsRequest) -> dict[str, str]:
    """Returns the variants of a request that this machine does not time, with the reason.

    Raises:
        ValueError: if that is all of them.
    """
    device = torch.device(request.device)
    asked_for = dict.fromkeys(variant for _, _, variants in request.chosen() for variant in variants)
    skipped = {v: why for v in asked_for if (why := available(v, device) or interpreted(v, device))}
    if len(skipped) == len(asked_for):
        raise ValueError(f"nothing to time: {'; '.join(f'{v}: {why}' for v, why in skipped.items())}")
    return skipped


def new_run(request: KernelsRequest, out: Path, command: str) -> KernelsRun:
    """Returns a request as a new run under `out`, ready to be executed.

    Args:
        request: what to run.
        out: folder that holds runs.
        command: as typed, for the record.

    Raises:
        ValueError: if no variant that is asked for can be timed here.
        StoreError: if `out` cannot be written.
    """
    skipped = not_timed(request)
    run = Run(
        run_id=new_run_id("kernels"),
        started_utc=utc_now(),
        command=command,
        request=request.stored(),
        notes=tuple(f"{variant} was not timed: {why}" for variant, why in skipped.items()),
        **_provenance(request),
    )
    return KernelsRun(request, RunWriter.create(out, run), skipped)


def resumed_run(path: Path) -> KernelsRun:
    """Returns a run that was interrupted, stopped or killed, ready to go on.

    Finished cases stay as they are; one that was begun is measured again, and all its samples count.

    Args:
        path: the run's directory.

    Raises:
        StoreError: if the run is finished, being written, or was begun with another version or on another machine.
        ValueError: if its device is not there.
    """
    run = begun_run(path, "kernels")
    fields = {key: value for key, value in run.request.items() if key != "benchmark"}
    request = KernelsRequest(**fields | {key: tuple(fields[key]) for key in ("only", "without")})
    resolve_device(request.device)
    check_same_place(run, _provenance(request), path)
    skipped = not_timed(request)
    writer = RunWriter.resume(path)
    samples = load(path)
    errors = samples[samples["metric"] == "error"]
    done = []
    for spec, case, variants in request.chosen():
        name = f"{spec.name} {case.name}"
        if is_done(errors[errors["case"] == name], [v for v in variants if v not in skipped]):
            done.append(name)
    return KernelsRun(request, writer, skipped, done=done, failed=bool((errors["status"] == "failed").any()))


def is_done(errors: "pd.DataFrame", variants: Collection[str]) -> bool:
    """Says whether the errors recorded of a case hold both checks of every variant, or that it is wrong."""
    counts = errors["variant"].value_counts()
    wrong = set(errors.loc[errors["status"] == "failed", "variant"])
    return all(v in wrong or counts.get(v, 0) >= CHECKS for v in variants)


def measured_under() -> AbstractContextManager[dict[str, str]]:
    """Returns the settings that every measurement runs under.

    A CPU's heap is kept, or the pages of each result are mapped anew: the backward of a map of 17 MB took 6.0 to 8.1 ms
    with the heap as it comes, and 2.5 with it kept.
    """
    return numerics(seed=0, keep_heap=True)


def _provenance(request: KernelsRequest) -> dict[str, Any]:
    fields = provenance(request.device)
    with measured_under() as settings:
        fields["environment"] |= settings
    del fields["environment"]["seed"]  # of inputs, which each operation draws from seeds of its own
    return fields


def measure_case(
    trial: Trial, variants: list[str], budget_s: float, writer: RunWriter, telemetry: Telemetry
) -> Iterator[CaseDone]:
    """Checks, times and checks again; what fails is recorded with the reason, and the others go on."""

    def record(variant: str, error: float, why: str) -> None:
        status: SampleStatus = "failed" if why else "ok"
        writer.add(trial.sample(variant, "error", "fraction", error, status=status, error=why or None))

    def checked(candidates: list[str]) -> Iterator[tuple[str, str]]:
        for variant in candidates:
            error, why = float("nan"), ""
            try:
                error, allowed = trial.check(variant)
                if not error <= allowed:
                    why = f"wrong: off by {error:.2e} of the reference's largest value, {allowed:.2e} is allowed"
            except failures() as failure:
                why = in_a_line(failure)
            record(variant, error, why)
            yield variant, why

    latencies: dict[str, dict[str, float]] = {}
    try:
        trial.prepare()
        found = dict(checked(variants))
        right = [variant for variant, why in found.items() if not why]
        latencies, failed = trial.measure(right, writer, telemetry, budget_s)
    except failures() as failure:  # in the inputs or the reference
        found, right = {}, []
        failed = dict.fromkeys(variants, in_a_line(failure))
    for variant, why in failed.items():
        record(variant, float("nan"), why)
    found |= failed
    found |= checked([variant for variant in right if variant not in failed])
    trial.close()
    for variant, why in found.items():
        yield CaseDone(trial.name, variant, {} if why else latencies[variant], why)


def interpreted(variant: str, device: torch.device) -> str:
    """Returns why a variant that can run is not timed; empty when it is."""
    return "Triton's interpreter is not timed" if variant.startswith("triton") and device.type != "cuda" else ""


def copy_bandwidth(device: torch.device, budget_s: float, benchmark: str) -> Sample:
    """Bytes read and written a second by a copy that no cache holds: what a kernel can reach on this machine."""
    cache = (
        torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else last_level_cache_bytes()
    )
    # Each of the two maps is twice the cache: some servers report 480 MiB, and `quick` stays below 4 GiB.
    source = torch.zeros(max(2 * cache, 256 << 20), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = measure(lambda: target.copy_(source), device=device, budget_s=budget_s, queued=True).median_s
    return Sample(
        benchmark=benchmark, case="copy", metric="copy_bandwidth", unit="GB/s", better="higher",
        value=2e-9 * source.nbytes / seconds, parameters={"device": device.type},
    )  # fmt: skip
