"""The one module that reads clocks, of host and GPU; `RunClocks` times a training run, `PhaseTimer` its phases.

`bench.measure.sampling` times one operation in steady state, `bench.measure.processes` a whole process. All times are
in seconds unless a name says otherwise.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PHASES = ("data", "forward", "backward", "optimiser", "replay", "evaluation", "step")


class TimingError(RuntimeError):
    """An exception for a clock that is read before it was started."""


def now_s() -> float:
    """Returns the host's monotonic time, of which the difference of two readings is meaningful."""
    return time.perf_counter()


def cpu_s() -> float:
    """Returns the CPU time that all threads of this process have used so far."""
    return time.process_time()


def process_elapsed_s() -> float:
    """Returns the time since this process was created, including the interpreter's start and all imports."""
    import psutil

    return time.time() - psutil.Process().create_time()


def process_tree_cpu_s() -> float:
    """Returns the CPU time that this process and its children, running or ended, have used."""
    import psutil

    process = psutil.Process()
    own = process.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:  # the child has ended; its parent's times now include it
            continue
        total += times.user + times.system
    return total


def synchronize(device: "torch.device") -> None:
    """Waits until all work queued on `device` is done; returns at once on a CPU."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


class Deadline:
    """A time budget in seconds that begins now; None for a deadline that never comes."""

    def __init__(self, budget_s: float | None) -> None:
        self._budget_s = math.inf if budget_s is None else budget_s
        self._end_s = now_s() + self._budget_s

    def remaining_s(self) -> float:
        """Returns the seconds left: infinite without a budget, negative after the deadline."""
        return self._end_s - now_s()

    def spent(self) -> float:
        """Returns the share of the budget that has gone by, from 0 to 1; 0 without a budget."""
        return 0.0 if math.isinf(self._budget_s) else min(1.0, 1 - self.remaining_s() / self._budget_s)

    def expired(self) -> bool:
        """Returns whether the budget is spent."""
        return self.remaining_s() <= 0


class RunClocks:
    """The three clocks of one training run.

    `process_s` begins with the process, `resident_s` once the raw uint8 data are on the device, `train_eval_s` with the
    first step (or whitening); all end with the final evaluation. The device is synchronised at every mark and reading;
    a training loop in between reads no clock.

    Attributes:
        cold: whether these are the first clocks of the process; only then does `process_s` cover this run alone.
    """

    _first = True

    def __init__(self, device: "torch.device") -> None:
        self._device = device
        self.cold, RunClocks._first = RunClocks._first, False
        self._resident_start_s: float | None = None
        self._train_start_s: float | None = None
        self._standing_s: float | None = None
        self._stopped_s: float | None = None
        self._offset_s = process_elapsed_s() - now_s()

    def _running_s(self) -> float:
        """Returns the time since the process began, without excluded blocks; fixed in such a block and after `stop`."""
        for standing in (self._stopped_s, self._standing_s):
            if standing is not None:
                return standing
        synchronize(self._device)
        return now_s() + self._offset_s

    def start_resident(self) -> None:
        """Starts `resident_s`: the raw data are on the device."""
        self._resident_start_s = self._running_s()

    def start_train_eval(self) -> None:
        """Starts `train_eval_s`: whitening or the first step begins."""
        self._train_start_s = self._running_s()

    def stop(self) -> None:
        """Stops all three clocks: the final evaluation has ended."""
        self._stopped_s = self._running_s()

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Pauses all three clocks while the block runs, such as an evaluation during the training or a report."""
        if self._standing_s is not None:  # within another exclusion
            yield
            return
        self._standing_s = self._running_s()
        try:
            yield
        finally:
            synchronize(self._device)
            self._offset_s = self._standing_s - now_s()
            self._standing_s = None

    def _since(self, start_s: float | None) -> float:
        if start_s is None:
            raise TimingError("the clock was read before it was started")
        return self._running_s() - start_s

    @property
    def process_s(self) -> float:
        """Time since the process was created."""
        return self._since(0.0)

    @property
    def resident_s(self) -> float:
        """Time since `start_resident`."""
        return self._since(self._resident_start_s)

    @property
    def train_eval_s(self) -> float:
        """Time since `start_train_eval`."""
        return self._since(self._train_start_s)


class PhaseTimer:
    """A timer that splits the steps of a training loop into phases.

    On a GPU it records events and reads them in `times_s`, so that the loop never waits; on a CPU it reads the host's
    clock. Comparing steps with and without `enabled`, where `phase` does nothing, shows what the timer itself costs.
    """

    def __init__(self, device: "torch.device", *, enabled: bool = True) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._enabled = enabled
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of the block to one of `PHASES`.

        Raises:
            ValueError: if `name` is not in `PHASES`.
        """
        if not self._enabled:
            yield
            return
        if name not in PHASES:
            raise ValueError(f"no phase '{name}'; phases: {', '.join(PHASES)}")
        start = self._read()
        yield
        self._marks.append((name, start, self._read()))

    def _read(self) -> Any:
        if not self._cuda:
            return now_s()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def times_s(self) -> dict[str, list[float]]:
        """Waits for the device, and returns the times in seconds of each phase, in the order taken."""
        synchronize(self._device)
        times = defaultdict(list)
        for name, start, end in self._marks:
            times[name].append(start.elapsed_time(end) / 1e3 if self._cuda else end - start)
        return dict(times)


@dataclass(frozen=True)
class WindowTime:
    """Time of one window of work.

    Attributes:
        device_s: seconds by the device's clock.
        host_s: seconds by the host's clock between two synchronisations; on a GPU they include the time of a `GpuHold`.
        issue_s: seconds until the host had queued the whole window; on a CPU the seconds of the window itself.
    """

    device_s: float
    host_s: float
    issue_s: float


class GpuHold:
    """A wait that keeps a GPU busy while the host queues a window, so that the GPU never waits for a launch within it.

    Its length is found by trial: if the GPU began a window before all of it was queued, the window is timed again after
    a wait twice as long. The wait is given up for an operation that itself waits for the device.

    Attributes:
        cycles: length of the wait in GPU clock cycles; 0 for no wait.
    """

    LONGEST_CYCLES = 1 << 27  # about 70 ms

    def __init__(self) -> None:
        self.cycles = 1 << 16

    def begin(self) -> None:
        """Queues the wait on the GPU."""
        if self.cycles:
            import torch

            torch.cuda._sleep(self.cycles)

    def was_long_enough(self, first: Any) -> bool:
        """Returns whether the window's time is valid; `first` is its first event, and all of it must be queued."""
        if not self.cycles or not first.query():
            return True
        self.cycles = 0 if self.cycles >= self.LONGEST_CYCLES else 2 * self.cycles
        return False


def time_window(
    window: Callable[[], object],
    device: "torch.device",
    *,
    before: Callable[[], object] | None = None,
    hold: GpuHold | None = None,
) -> WindowTime:
    """Times one window of work, after the device has finished all earlier work.

    `before` is called first, outside the time that is taken; `hold` keeps a GPU busy while the host queues the window.
    """
    synchronize(device)
    if before is not None:
        before()
    if device.type != "cuda":
        start = now_s()
        window()
        elapsed = now_s() - start
        return WindowTime(elapsed, elapsed, elapsed)
    import torch

    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if hold is not None:
        hold.begin()
    start = now_s()
    first.record()
    window()
    last.record()
    issued = now_s() - start
    counts = hold is None or hold.was_long_enough(first)
    synchronize(device)
    if not counts:
        return time_window(window, device, before=before, hold=hold)
    return WindowTime(first.elapsed_time(last) / 1e3, now_s() - start, issued)
