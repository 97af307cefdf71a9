"""Runs of benchmarks that measure case after case: how one begins, is resumed after an interruption, and ends."""

import abc
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import torch

from wallclock.bench.measure.environment import resolve_device
from wallclock.bench.measure.numerics import numerics
from wallclock.bench.measure.telemetry import Telemetry
from wallclock.bench.measure.timing import Deadline, now_s
from wallclock.bench.runs.record import measured_at
from wallclock.bench.runs.resume import begun_run, check_same_place
from wallclock.loaders.batches import Dataset
from wallclock.reports.store.read import load
from wallclock.reports.store.schema import Run, RunStatus
from wallclock.reports.store.write import RunWriter, new_run_id, utc_now

if TYPE_CHECKING:
    import pandas as pd

Part = tuple[str, Callable[[], None]]  # the name of a part of a run, and the function that measures it


@dataclass(frozen=True)
class CaseDone:
    """The outcome of one variant or pipeline at one case, for the console: its medians in a line.

    `why_not` is the reason why it was not measured, empty when it was; `regime` is that of a pipeline, with the round.
    """

    case: str
    variant: str
    result: str = "done"
    why_not: str = ""
    regime: str = ""

    def line(self) -> str:
        """Returns the outcome in a line."""
        return f"{', '.join(filter(None, (self.case, self.variant, self.regime)))}: {self.why_not or self.result}"


@dataclass(frozen=True, kw_only=True)
class CaseRequest:
    """A request to measure cases on "cpu" or "cuda"; each benchmark adds fields and a name for records and run ids.

    `only` are texts that choose among the cases by their words; see `bench.runs.select`.
    """

    benchmark: ClassVar[str]
    device: str
    only: tuple[str, ...] = ()

    def stored(self) -> dict[str, Any]:
        """Returns the request as the records keep it; `from_stored` reads it."""
        return {"benchmark": self.benchmark, **asdict(self)}

    @classmethod
    def from_stored(cls, stored: dict[str, Any]) -> Self:
        """Returns the request that a run's records keep."""
        own = {name: value for name, value in stored.items() if name not in ("benchmark", "content_hash")}
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in own.items()}
        return cls(**fields)


R = TypeVar("R", bound=CaseRequest)


class CaseRun(abc.ABC, Generic[R]):
    """One run of a request: measures case after case, and records each as it goes.

    Args:
        skipped: variants that this machine does not measure, with the reason.
        data: the data set that the run uses, if it uses one.

    Attributes:
        kind: the class of the benchmark's requests.
        failure: the error that ends the records of a run in which something failed.
        verb: the participle in the notes on skipped variants, such as "timed".
        seeded: whether the seed of the environment decides a result; otherwise samples or cases name their own seeds.
        done: parts that the records already hold.
    """

    kind: ClassVar[type[CaseRequest]]
    failure: ClassVar[str]
    verb: ClassVar[str] = "timed"
    seeded: ClassVar[bool] = False
    writer: RunWriter
    telemetry: Telemetry

    def __init__(self, request: R, skipped: dict[str, str], data: Dataset | None = None) -> None:
        self.request, self.skipped, self.data = request, skipped, data
        self.device, self.done, self.failed = torch.device(request.device), set[Any](), False

    @classmethod
    def new(cls, request: R, out: Path, command: str) -> Self:
        """Returns a new run of a request, with its records under `out`, ready to be executed.

        Raises:
            DataError: if the data are missing or damaged; nothing is recorded then.
            ValueError: if nothing that is asked for can be measured here.
            StoreError: if `out` cannot be written.
        """
        run = cls(request)  # type: ignore[call-arg]
        content = {} if run.data is None else {"content_hash": run.data.content_hash}
        record = Run(
            run_id=new_run_id(request.benchmark),
            started_utc=utc_now(),
            command=command,
            request=request.stored() | content,
            notes=tuple(f"{variant} was not {cls.verb}: {why}" for variant, why in run.skipped.items()),
            **run._measured_at(),
        )
        run.writer = RunWriter.create(out, record)
        return run

    @classmethod
    def resume(cls, path: Path) -> Self:
        """Returns the run in the directory `path`, which was interrupted, stopped or killed, ready to be resumed.

        Finished parts stay as they are; one that was begun is measured again, and all its samples count.

        Raises:
            StoreError: if the run is finished, being written, or was begun with another version, on other data or on
                another machine.
            ValueError: if its device is missing.
        """
        record = begun_run(path, cls.kind.benchmark)
        stored = record.request
        resolve_device(stored["device"])
        run = cls(cls.kind.from_stored(stored))  # type: ignore[call-arg,arg-type]
        check_same_place(record, run._measured_at(), path, run.data)
        run.writer, samples = RunWriter.resume(path), load(path)
        run.failed = bool(samples["status"].isin(("failed", "diverged")).any())
        run.read_done(samples)
        return run

    def _measured_at(self) -> dict[str, Any]:
        return measured_at(self.request.device, keep_heap=True, seeded=self.seeded)

    @abc.abstractmethod
    def read_done(self, samples: "pd.DataFrame") -> None:
        """Reads from the samples recorded so far which parts are done."""

    @abc.abstractmethod
    def measure(self, deadline: Deadline) -> str:
        """Measures what is left, and returns why it stopped before the end; empty if it did not."""

    def execute(self, observe: Callable[[CaseDone], None], deadline: Deadline | None = None) -> RunStatus:
        """Measures what is left and closes the records; `observe` is called with each outcome.

        A part that the deadline leaves no time for is not begun. The run has "failed" if a variant is wrong or fails.

        Raises:
            KeyboardInterrupt: after the records have been closed as interrupted.
        """
        self._observe = observe
        # A CPU's heap is kept: as it comes, the pages of each result are mapped anew, and the backward of a map of 17
        # MB took 6.0 to 8.1 ms instead of 2.5.
        settings = numerics(seed=0, keep_heap=True)
        with self.writer as writer, settings, Telemetry.of(self.device, writer.note) as self.telemetry:
            stopped = self.measure(deadline or Deadline(None))
            status: RunStatus = "stopped" if stopped else "failed" if self.failed else "done"
            if stopped:
                writer.note(stopped)
            writer.finish(status, self.failure if status == "failed" else None)
        return status

    def report(self, done: CaseDone) -> None:
        """Shows an outcome, and remembers whether it is a failure."""
        self.failed |= bool(done.why_not)
        self._observe(done)

    def timed(self, variants: Iterable[str]) -> list[str]:
        """Returns the variants that are not skipped."""
        return [variant for variant in variants if variant not in self.skipped]

    def show_skipped(self, case: str, regime: str = "") -> None:
        """Shows which variants are skipped, and why; `case` and `regime` say where."""
        for variant, why_not in self.skipped.items():
            self._observe(CaseDone(case, variant, why_not=why_not, regime=regime))

    def measure_parts(self, parts: Iterable[Part], deadline: Deadline) -> str:
        """Measures parts while more time is left than the longest one took; returns why it stopped, if it did."""
        longest_s = 0.0
        for name, measure in parts:
            if deadline.remaining_s() <= longest_s:
                return f"stopped before {name}: the budget does not hold it"
            begun_s = now_s()
            measure()
            longest_s = max(longest_s, now_s() - begun_s)
        return ""
