"""The one place that reads clocks: the host's, a GPU's, a training run's (`RunClocks`), and its phases' (`PhaseTimer`).

`bench.measure.sampling` times one operation in steady state, `bench.measure.processes` whole processes. All times are
seconds unless a name says otherwise.
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
    """A clock was read before it was started."""


def now_s() -> float:
    """Returns the host's monotonic time; only differences of two readings mean something."""
    return time.perf_counter()


def cpu_s() -> float:
    """Returns the CPU time that the threads of this process have used; only differences mean something."""
    return time.process_time()


def process_elapsed_s() -> float:
    """Returns the time since this process was created: the interpreter's start and all imports are in it."""
    import psutil

    return time.time() - psutil.Process().create_time()


def process_tree_cpu_s() -> float:
    """Returns the CPU time that this process and its children have used, those that ended included."""
    import psutil

    process = psutil.Process()
    own = process.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:  # gone between the two calls; its time is its parent's from now on
            continue
        total += times.user + times.system
    return total


def synchronize(device: "torch.device") -> None:
    """Waits until everything queued on `device` is done; on a CPU nothing is queued."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


class Deadline:
    """A time budget that begins now.

    Args:
        budget_s: seconds; None for a deadline that never comes.
    """

    def __init__(self, budget_s: float | None) -> None:
        self._end_s = math.inf if budget_s is None else now_s() + budget_s

    def remaining_s(self) -> float:
        """Returns the seconds left: infinite without a budget, negative once it is overspent."""
        return self._end_s - now_s()

    def expired(self) -> bool:
        """Returns whether the budget is spent."""
        return self.remaining_s() <= 0


class RunClocks:
    """The three clocks of one training run.

    `process_s` runs from the creation of the process, `resident_s` from raw uint8 on the device, `train_eval_s` from
    the first step (or whitening) through the final evaluation. The device is synchronised at every mark and reading; a
    training loop in between reads no clock.

    Args:
        device: the device that trains.

    Attributes:
        cold: True for the first clocks of a process: only then does `process_s` hold this run and nothing else.
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
        """Time since the process was created, less exclusions; it stands still within one and after `stop`."""
        for standing in (self._stopped_s, self._standing_s):
            if standing is not None:
                return standing
        synchronize(self._device)
        return now_s() + self._offset_s

    def start_resident(self) -> None:
        """Marks that the raw data are on the device."""
        self._resident_start_s = self._running_s()

    def start_train_eval(self) -> None:
        """Marks the beginning of whitening or of the first step."""
        self._train_start_s = self._running_s()

    def stop(self) -> None:
        """Marks the end of the final evaluation, and stops all three clocks."""
        self._stopped_s = self._running_s()

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Stops all three clocks while the block runs: evaluations on the way, reporting."""
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
    """Splits the steps of a training loop into phases.

    On a GPU it records events and resolves them when asked, so that the loop never waits; on a CPU it reads the host's
    clock. Steps with `enabled=False`, in turns with others, show what the timer itself costs.

    Args:
        device: the device that trains.
        enabled: False makes `phase` do nothing.
    """

    def __init__(self, device: "torch.device", *, enabled: bool = True) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._enabled = enabled
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time of the block to one of `PHASES`.

        Raises:
            ValueError: if there is no such phase.
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
        """Waits for the device, and returns the times of each phase in the order taken."""
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
        host_s: seconds by the host's clock between two synchronisations; on a GPU they hold the hold too.
        issue_s: seconds until the host had queued the window; on a CPU those of the window.
    """

    device_s: float
    host_s: float
    issue_s: float


class GpuHold:
    """Keeps a GPU busy while the host queues a window, so that no launch is waited for within it.

    How long it must take is found by trial: a window that began before all of it was queued is timed again behind a
    hold twice as long. An operation that itself waits for the device is never ahead of it: then there is no hold.

    Attributes:
        cycles: length of the wait in cycles of the GPU; 0 for none.
    """

    LONGEST_CYCLES = 1 << 27  # about 70 ms

    def __init__(self) -> None:
        self.cycles = 1 << 16

    def begin(self) -> None:
        """Queues the wait."""
        if self.cycles:
            import torch

            torch.cuda._sleep(self.cycles)

    def was_long_enough(self, first: Any) -> bool:
        """Returns whether the window counts; called when all of it is queued, with the event at its beginning."""
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

    Args:
        window: the work.
        device: the device that the work runs on.
        before: called first, and not timed by the device's clock.
        hold: keeps a GPU waiting until all of the window is queued.
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
