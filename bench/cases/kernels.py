"""`wallclock run kernels`: every operation at every shape, each variant against the others and against the machine."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.environment import last_level_cache_bytes, provenance
from bench.numerics import numerics
from bench.timing import Deadline, Measurement, measure
from kernels.cases import SPECS
from kernels.spec import TOLERANCES, Case, Direction, Inputs, KernelSpec, available
from reports.schema import Run, RunStatus, Sample
from reports.store import RunWriter, new_run_id, utc_now

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ROUNDS = 2  # of all variants in turn, the second in reverse, so that a drift of the clock meets all alike


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
        StoreError: if `out` cannot be written.
    """
    fields = provenance(request.device)
    asked = {"benchmark": "kernels", "dtype": request.dtype, "device": request.device, "only": list(request.only)}
    with numerics(seed=0) as settings:
        del settings["seed"]
        fields["environment"] |= settings
        run = Run(run_id=new_run_id("kernels"), started_utc=utc_now(), command=command, request=asked, **fields)
        with RunWriter.create(out, run) as writer:
            status = _measure_all(request, writer, observe, deadline or Deadline(None))
            writer.finish(status, None if status != "failed" else "a variant is wrong; its errors are in the samples")
    return writer.path, status


def _measure_all(
    request: KernelsRequest, writer: RunWriter, observe: Callable[[CaseDone], None], deadline: Deadline
) -> RunStatus:
    device = torch.device(request.device)
    writer.add(_copy_bandwidth(device, request.sample_budget_s))
    status: RunStatus = "done"
    for spec, case, variants in request.chosen():
        if deadline.expired():
            writer.note(f"stopped before {spec.name} {case.name}: the budget is spent")
            return "stopped" if status == "done" else status
        trial = Trial(spec, case, request.dtype, device)
        right = []
        for variant in variants:
            why_not = available(variant, device) or interpreted(variant, device)
            error, allowed = (0.0, 0.0) if why_not else trial.check(variant)
            if not why_not:
                fine = error <= allowed
                writer.add(trial.sample(variant, "error", "fraction", error, status="ok" if fine else "failed"))
                if not fine:
                    why_not = f"wrong: off by {error:.2e} of the reference's largest value, {allowed:.2e} is allowed"
                    status = "failed"
            if why_not:
                observe(CaseDone(trial.name, variant, {}, why_not))
            else:
                right.append(variant)
        for variant, latencies in trial.measure(right, writer, request.sample_budget_s).items():
            observe(CaseDone(trial.name, variant, latencies))
    writer.add(_copy_bandwidth(device, request.sample_budget_s))
    return status


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
    seconds = measure(lambda: target.copy_(source), device=device, budget_s=budget_s).median_s
    return Sample(
        benchmark="kernels", case="copy", metric="copy_bandwidth", unit="B/s", better="higher",
        value=2 * source.nbytes / seconds, parameters={"device": device.type},
    )  # fmt: skip


class Trial:
    """One operation at one case: its inputs, its reference results, and what is recorded of its variants."""

    def __init__(self, spec: KernelSpec, case: Case, dtype: str, device: torch.device) -> None:
        self.spec, self.case, self.dtype, self.device = spec, case, dtype, device
        self.name = f"{spec.name} {case.name}"
        self.parameters: dict[str, Any] = {"operation": spec.name, "network": case.network, "dtype": dtype}
        self.parameters |= {"shape": "x".join(map(str, case.shape)), "device": device.type}
        torch._dynamo.reset()  # a variant is compiled for each case, and Dynamo gives up at the ninth shape
        self.inputs = spec.inputs(case, DTYPES[dtype], device)
        wide = {name: _widened(tensor) for name, tensor in self.inputs.items()}
        self.exact = self._results(spec.reference, wide)
        self.eager_error = self._error("eager")

    def _leaves(self, inputs: Inputs) -> Inputs:
        """The inputs, those that are differentiated as leaves of a graph of their own."""
        return {
            name: tensor.detach().requires_grad_()
            if tensor is not None and name in self.spec.differentiated
            else tensor
            for name, tensor in inputs.items()
        }

    def _differentiated(self, leaves: Inputs) -> list[torch.Tensor]:
        return [t for name in self.spec.differentiated if (t := leaves[name]) is not None]

    def _dy(self, y: torch.Tensor) -> torch.Tensor:
        random = torch.Generator(self.device).manual_seed(7)
        dy = torch.randn(self.case.shape, device=self.device, generator=random).to(DTYPES[self.dtype])
        return torch.empty_like(y).copy_(dy)

    def _results(self, function: Callable[..., torch.Tensor], inputs: Inputs) -> list[torch.Tensor]:
        """The output and all gradients."""
        leaves = self._leaves(inputs)
        y = function(**leaves, **self.case.options)
        wanted = self._differentiated(leaves)
        gradients = torch.autograd.grad(y, wanted, self._dy(y)) if wanted else ()
        return [y.detach(), *gradients]

    def _of(self, variant: str) -> Inputs:
        if not variant.endswith("_nchw"):
            return self.inputs
        return {name: None if t is None else t.contiguous() for name, t in self.inputs.items()}

    def _error(self, variant: str) -> float:
        found = self._results(self.spec.variants[variant], self._of(variant))
        errors = [
            ((ours.double() - exact.double()).abs().max() / exact.double().abs().max().clamp_min(1e-30)).item()
            for ours, exact in zip(found, self.exact, strict=True)
        ]
        return max(errors) if all(error == error for error in errors) else float("inf")

    def check(self, variant: str) -> tuple[float, float]:
        """Returns a variant's error against the float64 reference, and what is allowed."""
        allowed = max(TOLERANCES[DTYPES[self.dtype]], 2 * self.eager_error, self.spec.loose.get(variant, 0.0))
        return self._error(variant), allowed

    def sample(self, variant: str, metric: str, unit: str, value: float, **fields: Any) -> Sample:
        """A sample of this case."""
        return Sample(
            benchmark="kernels",
            case=self.name,
            variant=variant,
            parameters=self.parameters | fields.pop("parameters", {}),
            metric=metric,
            unit=unit,
            value=value,
            better="lower",
            **fields,
        )

    def call(self, variant: str, direction: Direction) -> Callable[[], object]:
        """What is timed: forward builds no graph; backward goes through one that is kept."""
        function, options = self.spec.variants[variant], self.case.options
        inputs = self._of(variant)
        leaves = self._leaves(inputs)
        wanted = self._differentiated(leaves)
        if direction == "forward":

            def forward() -> object:
                with torch.no_grad():
                    return function(**inputs, **options)

            return forward
        kept = function(**leaves, **options)
        dy = self._dy(kept)
        if direction == "backward":
            return lambda: torch.autograd.grad(kept, wanted, dy, retain_graph=True)
        return lambda: torch.autograd.grad(function(**leaves, **options), wanted, dy)

    def measure(self, variants: list[str], writer: RunWriter, budget_s: float) -> dict[str, dict[str, float]]:
        """Times variants in turn and records every sample; returns hot median latencies by variant and direction."""
        directions: tuple[Direction, ...] = (
            ("forward", "backward", "both") if self.spec.differentiated else ("forward",)
        )
        latencies: dict[str, dict[str, float]] = {variant: {} for variant in variants}
        for variant in variants:
            self._record_memory(variant, writer)
        for direction, cold in itertools.product(directions, (False, True)):
            parameters = {"direction": direction, "cache": "cold" if cold else "hot"}
            calls = {variant: self.call(variant, direction) for variant in variants}
            for turn in range(ROUNDS):
                for slot, variant in enumerate(variants if turn % 2 == 0 else reversed(variants)):
                    found: Measurement = measure(
                        calls[variant], device=self.device, budget_s=budget_s / ROUNDS, cold=cold, min_count=5
                    )
                    if not cold:
                        latencies[variant][direction] = found.median_s
                    where = {"parameters": parameters, "round": turn, "slot": slot}
                    writer.add(
                        *(
                            self.sample(variant, "latency", "s", seconds, index=index, **where)
                            for index, seconds in enumerate(found.samples_s)
                        )
                    )
            for variant in variants:
                element_bytes = DTYPES[self.dtype].itemsize
                predicted = self.spec.bytes_moved(self.case, variant, direction, element_bytes)
                writer.add(self.sample(variant, "predicted_bytes", "B", predicted, parameters=parameters))
        return latencies

    def _record_memory(self, variant: str, writer: RunWriter) -> None:
        if not self.spec.differentiated:
            return
        saved, leaves = {}, self._leaves(self._of(variant))

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        cuda = self.device.type == "cuda"
        before = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = self.spec.variants[variant](**leaves, **self.case.options)
        writer.add(self.sample(variant, "saved_bytes", "B", sum(saved.values())))
        torch.autograd.grad(y, self._differentiated(leaves), self._dy(y))
        if cuda:
            writer.add(self.sample(variant, "peak_bytes", "B", torch.cuda.max_memory_allocated() - before))


def _widened(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return tensor.double() if tensor is not None and tensor.is_floating_point() else tensor
