"""`wallclock run kernels`: times every variant of every operation at every shape, and the bandwidth of the machine."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from wallclock.bench.cases.kernels.trial import DTYPES, Trial
from wallclock.bench.measure.sampling import cache_bytes, measure
from wallclock.bench.measure.timing import Deadline
from wallclock.bench.runs.cases import CaseDone, CaseRequest, CaseRun, Part
from wallclock.bench.runs.select import is_chosen
from wallclock.kernels.cases import SPECS
from wallclock.kernels.spec import Case, KernelSpec, available, failures, in_a_line, interpreted
from wallclock.reports.store.schema import Sample, SampleStatus

if TYPE_CHECKING:
    import pandas as pd

COPIED_AT_LEAST_BYTES = 256 << 20  # least size of the copy that measures a machine's bandwidth
CHECKS = 2  # each variant is checked against the reference before and after it is timed


@dataclass(frozen=True, kw_only=True)
class KernelsRequest(CaseRequest):
    """A request to time operations at their cases on inputs of a type in `DTYPES`, without some variants.

    `sample_budget_s` are the seconds for each measurement of a variant, direction and state of the cache.

    Raises:
        ValueError: if no case is left to measure, or the type is unknown.
    """

    benchmark = "kernels"
    dtype: str
    sample_budget_s: float = 0.5
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is '{self.dtype}'; expected one of {', '.join(DTYPES)}")
        if not any(self.chosen()):
            raise ValueError(f"no case matches '{' | '.join(self.only)}'; operations: {', '.join(SPECS)}")

    def chosen(self) -> Iterator[tuple[KernelSpec, Case, list[str]]]:
        """Yields each operation and case with the variants that `only` chooses by operation, case and variant."""
        for spec in SPECS.values():
            for case in spec.cases:
                variants = [v for v in spec.variants_at(case) if v not in self.without]
                words = f"{spec.name} {case.name}"
                matching = [v for v in variants if is_chosen([*words.split(), v], self.only)]
                if matching:
                    yield spec, case, matching


class KernelsRun(CaseRun[KernelsRequest]):
    """One run of the kernels benchmark, which checks and times case after case."""

    kind = KernelsRequest
    failure = "variants are wrong or could not run; see their errors"

    def __init__(self, request: KernelsRequest) -> None:
        super().__init__(request, skip_untimed((v for _, _, each in request.chosen() for v in each), request.device))

    def read_done(self, samples: "pd.DataFrame") -> None:
        """Marks the cases as done for which the records hold every check."""
        errors = samples[samples["metric"] == "error"]
        for spec, case, variants in self.request.chosen():
            name = f"{spec.name} {case.name}"
            if holds_checks(errors[errors["case"] == name], self.timed(variants)):
                self.done.add(name)

    def measure(self, deadline: Deadline) -> str:
        """Measures the remaining cases between two copies; returns why it stopped early, else an empty text."""
        self.show_skipped("every case")
        copy = partial(copy_bandwidth, self.device, self.request.sample_budget_s, "kernels")
        self.writer.add(copy())
        stopped = self.measure_parts(self._parts(), deadline)
        self.writer.add(copy())
        return stopped

    def _parts(self) -> Iterator[Part]:
        for spec, case, variants in self.request.chosen():
            trial = Trial(spec, case, self.request.dtype, self.device)
            if trial.name not in self.done:
                yield trial.name, partial(measure_case, self, trial, self.timed(variants), self.request.sample_budget_s)


RUN = KernelsRun


def skip_untimed(variants: Iterable[str], device_type: str, *, others: bool = False) -> dict[str, str]:
    """Returns the variants that cannot be timed on a device, each with the reason.

    Raises:
        ValueError: if that is every variant, and `others`, whether the request measures anything else, is False.
    """
    device, asked_for = torch.device(device_type), dict.fromkeys(variants)
    skipped = {v: why for v in asked_for if (why := available(v, device) or interpreted(v, device))}
    if len(skipped) == len(asked_for) and not others:
        raise ValueError(f"nothing to time: {'; '.join(f'{v}: {why}' for v, why in skipped.items())}")
    return skipped


def holds_checks(errors: "pd.DataFrame", variants: Collection[str]) -> bool:
    """Returns whether a case's recorded errors hold, for every variant, both checks or a failure."""
    counts = errors["variant"].value_counts()
    wrong = set(errors.loc[errors["status"] == "failed", "variant"])
    return all(v in wrong or counts.get(v, 0) >= CHECKS for v in variants)


def measure_case(run: CaseRun[Any], trial: Trial, variants: list[str], budget_s: float) -> None:
    """Checks variants, times them and checks them again; a failure is recorded, and the other variants go on.

    The run records the samples and reports the outcome of each variant; a measurement of one takes `budget_s` seconds.
    """

    def record(variant: str, error: float, why: str) -> None:
        status: SampleStatus = "failed" if why else "ok"
        run.writer.add(trial.sample(variant, "error", "fraction", error, status=status, error=why or None))

    def check(variant: str) -> str:
        error, why = float("nan"), ""
        try:
            error, allowed = trial.check(variant)
            if not error <= allowed:
                why = f"wrong: off by {error:.2e} of the reference's largest value, {allowed:.2e} is allowed"
        except failures() as failure:
            why = in_a_line(failure)
        record(variant, error, why)
        return why

    latencies: dict[str, dict[str, float]] = {}
    try:
        trial.prepare()
        found = {variant: check(variant) for variant in variants}
        right = [variant for variant, why in found.items() if not why]
        latencies, failed = trial.measure(right, run.writer, run.telemetry, budget_s)
    except failures() as failure:  # the inputs or the reference could not be made
        found, right = {}, []
        failed = dict.fromkeys(variants, in_a_line(failure))
    for variant, why in failed.items():
        record(variant, float("nan"), why)
    found |= failed
    found |= {variant: check(variant) for variant in right if variant not in failed}
    trial.close()
    for variant, why in found.items():
        medians = () if why else latencies[variant].items()
        times = ", ".join(f"{direction} {1e6 * seconds:,.1f} us" for direction, seconds in medians)
        run.report(CaseDone(trial.name, variant, times or "done", why))


def copy_bandwidth(device: torch.device, budget_s: float, benchmark: str) -> Sample:
    """Returns a sample of the GB/s that a copy beyond any cache reads and writes: what a kernel can reach here."""
    # Each of the two maps is at least twice the cache. Some servers report 480 MiB; `quick` then stays below 4 GiB.
    source = torch.zeros(max(2 * cache_bytes(device), COPIED_AT_LEAST_BYTES), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = measure(lambda: target.copy_(source), device=device, budget_s=budget_s, queued=True).median_s
    return Sample(
        benchmark=benchmark, case="copy", metric="copy_bandwidth", unit="GB/s", better="higher",
        value=2e-9 * source.nbytes / seconds, parameters={"device": device.type},
    )  # fmt: skip
