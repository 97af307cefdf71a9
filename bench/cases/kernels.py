"""`wallclock run kernels`: every operation at every shape, each variant against the others and against the machine."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.cases.kernel_trial import DTYPES, Trial, failures, in_a_line
from bench.environment import Telemetry, last_level_cache_bytes, provenance
from bench.numerics import numerics
from bench.timing import Deadline, measure
from kernels.cases import SPECS
from kernels.spec import Case, KernelSpec, available
from reports.schema import Run, RunStatus, Sample, SampleStatus
from reports.store import RunWriter, new_run_id, utc_now


@dataclass(frozen=True, kw_only=True)
class KernelsRequest:
    """What is asked of one run.

    Attributes:
        dtype: a name in `DTYPES`.
        device: "cpu" or "cuda".
        only: words; a case runs if operation, case or variant names hold each of them.
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
            raise ValueError(f"no case matches '{' '.join(self.only)}'; operations: {', '.join(SPECS)}")

    def chosen(self) -> Iterator[tuple[KernelSpec, Case, list[str]]]:
        """Yields operations and cases with the variants asked for; "eager" is among them always, as their judge."""
        for spec in SPECS.values():
            for case in spec.cases:
                variants = [v for v in spec.variants if v not in self.without]
                words = f"{spec.name} {case.name}"
                matching = [v for v in variants if all(word in f"{words} {v}".split() for word in self.only)]
                if matching:
                    yield spec, case, matching


@dataclass(frozen=True)
class CaseDone:
    """One variant at one case: its median latencies by direction in seconds, or why it was not timed."""

    case: str
    variant: str
    latencies_s: dict[str, float]
    why_not: str = ""


def run_kernels(
    request: KernelsRequest,
    out: Path,
    command: str,
    observe: Callable[[CaseDone], None],
    *,
    deadline: Deadline | None = None,
) -> tuple[Path, RunStatus]:
    """Measures what is asked for, as a new run under `out`.

    Args:
        request: what.
        out: folder that holds runs.
        command: as typed, for the record.
        observe: is shown every variant that is done.
        deadline: no case is begun after it.

    Returns:
        The run's directory, and how it ended: "failed" if a variant failed its reference check.

    Raises:
        ValueError: if no variant that is asked for can be timed here.
        StoreError: if `out` cannot be written.
    """
    device = torch.device(request.device)
    asked_for = dict.fromkeys(variant for _, _, variants in request.chosen() for variant in variants)
    skipped = {v: why for v in asked_for if (why := available(v, device) or interpreted(v, device))}
    if len(skipped) == len(asked_for):
        raise ValueError(f"nothing to time: {'; '.join(f'{v}: {why}' for v, why in skipped.items())}")
    fields = provenance(request.device)
    asked = {"benchmark": "kernels", "dtype": request.dtype, "device": request.device, "only": list(request.only)}
    with numerics(seed=0) as settings:
        del settings["seed"]
        fields["environment"] |= settings
        run = Run(run_id=new_run_id("kernels"), started_utc=utc_now(), command=command, request=asked, **fields)
        with RunWriter.create(out, run) as writer:
            for variant, why_not in skipped.items():
                writer.note(f"{variant} was not timed: {why_not}")
                observe(CaseDone("every case", variant, {}, why_not))
            status = _measure_all(request, skipped, writer, observe, deadline or Deadline(None))
            writer.finish(status, None if status != "failed" else "a variant is wrong; its errors are in the samples")
    return writer.path, status


def _measure_all(
    request: KernelsRequest,
    skipped: Collection[str],
    writer: RunWriter,
    observe: Callable[[CaseDone], None],
    deadline: Deadline,
) -> RunStatus:
    device = torch.device(request.device)
    writer.add(_copy_bandwidth(device, request.sample_budget_s))
    status: RunStatus = "done"
    with Telemetry(device.index or 0 if device.type == "cuda" else None) as telemetry:
        for spec, case, variants in request.chosen():
            if deadline.expired():
                writer.note(f"stopped before {spec.name} {case.name}: the budget is spent")
                return "stopped" if status == "done" else status
            wanted = [variant for variant in variants if variant not in skipped]
            for done in _measure_case(spec, case, wanted, request, writer, telemetry):
                observe(done)
                status = "failed" if done.why_not else status
    writer.add(_copy_bandwidth(device, request.sample_budget_s))
    return status


def _measure_case(
    spec: KernelSpec, case: Case, variants: list[str], request: KernelsRequest, writer: RunWriter, telemetry: Telemetry
) -> Iterator[CaseDone]:
    """Checks, times and checks again; what fails is recorded with the reason, and the others go on."""
    trial = Trial(spec, case, request.dtype, torch.device(request.device))

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
        latencies, failed = trial.measure(right, writer, telemetry, request.sample_budget_s)
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


def _copy_bandwidth(device: torch.device, budget_s: float) -> Sample:
    """Bytes read and written a second by a copy that no cache holds: what a kernel can reach on this machine."""
    cache = (
        torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else last_level_cache_bytes()
    )
    source = torch.zeros(max(4 * cache, 256 << 20), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = measure(lambda: target.copy_(source), device=device, budget_s=budget_s, queued=True).median_s
    return Sample(
        benchmark="kernels", case="copy", metric="copy_bandwidth", unit="GB/s", better="higher",
        value=2e-9 * source.nbytes / seconds, parameters={"device": device.type},
    )  # fmt: skip
