"""One operation at one case: checks its variants against the reference and measures their time, traffic and memory."""

import contextlib
import gc
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from wallclock.bench.measure.operator_bytes import Operands
from wallclock.bench.measure.sampling import Measurement, measure
from wallclock.bench.measure.telemetry import Telemetry
from wallclock.kernels.spec import TOLERANCES, Case, Direction, Inputs, KernelSpec, failures, in_a_line, relative_error
from wallclock.reports.store.schema import ParameterValue, Sample
from wallclock.reports.store.write import RunWriter

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ROUNDS = 2  # variants take turns, in reverse order in the second round, so that a drift of the clock affects all alike


class Trial:
    """One operation at one of its cases, with its inputs of a type in `DTYPES` and the reference's results.

    Attributes:
        benchmark: name of the benchmark that the samples belong to.
        cold_or_not: states of the cache to measure in: True overwrites it before each call, False leaves it as it is.
    """

    benchmark = "kernels"
    cold_or_not: tuple[bool, ...] = (False, True)

    def __init__(self, spec: KernelSpec, case: Case, dtype: str, device: torch.device) -> None:
        self.spec, self.case, self.dtype, self.device = spec, case, dtype, device
        self.name = f"{spec.name} {case.name}"
        self.parameters: dict[str, Any] = {"operation": spec.name, "network": case.network, "dtype": dtype}
        self.parameters |= {"shape": "x".join(map(str, case.shape)), "device": device.type}

    def prepare(self) -> None:
        """Makes the inputs and computes the reference's results in float64."""
        torch._dynamo.reset()  # a variant is compiled for each case, and Dynamo gives up at the ninth shape
        self.inputs = self.spec.inputs(self.case, DTYPES[self.dtype], self.device)
        wide = widened(self.inputs)
        self.exact = self._results(self.spec.reference, self.spec.own(wide, self.spec.judge))
        self.eager_error = self._error(self.spec.judge)

    def close(self) -> None:
        """Frees the memory, so that the next case has all of it, even after a case that ran out of memory."""
        self.inputs, self.exact = {}, []
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _leaves(self, inputs: Inputs) -> Inputs:
        """Returns the inputs, in which the differentiated ones are leaves of a new graph."""
        wanted = self.spec.differentiated
        return {n: t.detach().requires_grad_() if t is not None and n in wanted else t for n, t in inputs.items()}

    def _differentiated(self, leaves: Inputs) -> list[torch.Tensor]:
        return [t for name in self.spec.differentiated if (t := leaves[name]) is not None]

    def _dy(self, y: torch.Tensor) -> torch.Tensor:
        random = torch.Generator(self.device).manual_seed(7)
        dy = torch.randn(y.shape, device=self.device, generator=random).to(DTYPES[self.dtype])
        return torch.empty_like(y).copy_(dy)

    def _results(self, function: Callable[..., torch.Tensor], inputs: Inputs) -> list[torch.Tensor]:
        """Returns the output (or the overwritten inputs) and all gradients; the function may overwrite its inputs."""
        leaves = self._leaves(inputs)
        y = function(**leaves, **self.case.options)
        wanted = self._differentiated(leaves)
        gradients = torch.autograd.grad(y, wanted, self._dy(y)) if wanted else ()
        return [*(t.detach() for t in self.spec.results(leaves, y)), *gradients]

    def _of(self, variant: str) -> Inputs:
        return contiguous(self.inputs) if variant.endswith("_nchw") else self.inputs

    def _exact(self, variant: str) -> list[torch.Tensor]:
        """Returns the reference's results that a variant's results are compared with."""
        return self.exact

    def _error(self, variant: str) -> float:
        found = self._results(self.spec.variants[variant], self.spec.own(self._of(variant), variant))
        return relative_error(found, self._exact(variant))

    def check(self, variant: str) -> tuple[float, float]:
        """Returns a variant's relative error against the float64 reference, and the largest error that is allowed."""
        allowed = max(TOLERANCES[DTYPES[self.dtype]], 2 * self.eager_error, self.spec.loose.get(variant, 0.0))
        return self._error(variant), allowed

    def sample(self, variant: str, metric: str, unit: str, value: float, **fields: Any) -> Sample:
        """Returns a sample of this case, with `fields` as further fields of `Sample`."""
        parameters = self.parameters | fields.pop("parameters", {})
        return Sample(
            benchmark=self.benchmark, case=self.name, variant=variant, parameters=parameters, metric=metric, unit=unit,
            value=value, better="lower", **fields,
        )  # fmt: skip

    def call(self, variant: str, direction: Direction) -> Callable[[], object]:
        """Returns the function to time: "forward" builds no graph, "backward" goes through one graph that is kept."""
        function, options = self.spec.variants[variant], self.case.options
        inputs = self.spec.own(self._of(variant), variant)
        leaves = self._leaves(inputs)
        if variant == "compile":
            torch._dynamo.reset()  # each direction is compiled afresh, as for a user who needs only that one
        wanted = self._differentiated(leaves)
        if direction == "forward":

            def forward() -> object:
                with torch.no_grad():
                    return function(**inputs, **options)

            return forward
        # Compiled code otherwise donates the graph's buffers, and a graph that is kept needs them again.
        gives = contextlib.nullcontext() if direction == "both" else torch._functorch.config.patch(donated_buffer=False)
        with gives:
            kept = function(**leaves, **options)
        dy = self._dy(kept)
        if direction == "backward":
            return lambda: torch.autograd.grad(kept, wanted, dy, retain_graph=True)
        return lambda: torch.autograd.grad(function(**leaves, **options), wanted, dy)

    def measure(
        self, variants: list[str], writer: RunWriter, telemetry: Telemetry, budget_s: float
    ) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
        """Times variants in turns and records every sample.

        Returns:
            The median latencies with a hot cache, in seconds, by variant and direction; the failed variants' reasons.
        """
        directions: tuple[Direction, ...] = (
            ("forward", "backward", "both") if self.spec.differentiated else ("forward",)
        )
        latencies: dict[str, dict[str, float]] = {variant: {} for variant in variants}
        failed: dict[str, str] = {}

        def left(order: Iterable[str]) -> Iterator[str]:
            return (variant for variant in order if variant not in failed)

        for variant in variants:
            with self._noting(variant, failed):
                self._record_memory(variant, writer)
        for direction in directions:
            calls: dict[str, Callable[[], object]] = {}
            for variant in left(variants):
                with self._noting(variant, failed):
                    calls[variant] = self.call(variant, direction)
            for cold, turn in itertools.product(self.cold_or_not, range(ROUNDS)):
                parameters: dict[str, ParameterValue] = {"direction": direction, "cache": "cold" if cold else "hot"}
                for slot, variant in enumerate(left(variants if turn % 2 == 0 else reversed(variants))):
                    where: dict[str, Any] = {"parameters": parameters, "round": turn, "slot": slot}
                    with self._noting(variant, failed):
                        found = measure(
                            calls[variant], device=self.device, budget_s=budget_s / ROUNDS, cold=cold, queued=True,
                            min_count=5,
                        )  # fmt: skip
                        self._record_times(variant, found, writer, where | telemetry.read())
                        if not cold:
                            latencies[variant][direction] = found.median_s
            for variant in left(variants):
                with self._noting(variant, failed):
                    self._record_costs(variant, direction, calls[variant], writer)
        return latencies, failed

    @contextlib.contextmanager
    def _noting(self, variant: str, failed: dict[str, str]) -> Iterator[None]:
        try:
            yield
        except failures() as failure:
            failed[variant] = in_a_line(failure)

    def _record_times(self, variant: str, found: Measurement, writer: RunWriter, where: dict[str, Any]) -> None:
        samples = enumerate(found.samples_s)
        writer.add(*(self.sample(variant, "latency", "s", seconds, index=index, **where) for index, seconds in samples))
        if found.queued:
            writer.add(self.sample(variant, "issue", "s", found.issue_median_s, **where))

    def _record_costs(self, variant: str, direction: Direction, call: Callable[[], object], writer: RunWriter) -> None:
        parameters: dict[str, ParameterValue] = {"direction": direction}
        predicted = self.spec.bytes_moved(self.case, variant, direction, DTYPES[self.dtype].itemsize)
        operations = self.spec.operations(self.case, direction)
        writer.add(
            self.sample(variant, "predicted_bytes", "B", predicted, parameters=parameters),
            self.sample(variant, "operations", "FLOP", operations, parameters=parameters),
        )
        if variant != "compile":  # the operators inside a compiled graph cannot be counted
            with Operands() as operands:
                call()
            writer.add(self.sample(variant, "operand_bytes", "B", operands.bytes, parameters=parameters))

    def _record_memory(self, variant: str, writer: RunWriter) -> None:
        if not self.spec.differentiated:
            return
        function, options = self.spec.variants[variant], self.case.options
        saved: dict[int, int] = {}
        leaves = self._leaves(self.spec.own(self._of(variant), variant))
        wanted = self._differentiated(leaves)
        y = function(**leaves, **options)
        dy = self._dy(y)
        torch.autograd.grad(y, wanted, dy)  # compiling and the first call allocate memory of their own
        del y

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        cuda = self.device.type == "cuda"
        before = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = function(**leaves, **options)
        writer.add(self.sample(variant, "saved_bytes", "B", sum(saved.values())))
        saved.pop(y.untyped_storage().data_ptr(), None)  # the next operation would keep the output in any case
        writer.add(self.sample(variant, "saved_beyond_output_bytes", "B", sum(saved.values())))
        torch.autograd.grad(y, wanted, dy)
        if cuda:
            writer.add(self.sample(variant, "peak_bytes", "B", torch.cuda.max_memory_allocated() - before))


def widened(inputs: Inputs) -> Inputs:
    """Returns the inputs with floating-point tensors in float64."""
    return {n: t.double() if t is not None and t.is_floating_point() else t for n, t in inputs.items()}


def contiguous(inputs: Inputs) -> Inputs:
    """Returns the inputs in contiguous (NCHW) memory."""
    return {name: None if tensor is None else tensor.contiguous() for name, tensor in inputs.items()}
