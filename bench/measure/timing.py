"""The one place that reads clocks.

Three clocks of a training run (`RunClocks`), its phases (`PhaseTimer`), and steady-state sampling of one operation
(`measure`). Whole processes are timed in `bench.measure.processes`. All times are seconds unless a name says otherwise.
"""

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wallclock.reports.stats.intervals import median_interval

if TYPE_CHECKING:
    import torch

# Events resolve about 0.5 us and perf_counter 0.1 us: a window of 50 us keeps either at 1% or below.
WINDOW_S = 50e-6
MAX_LAUNCHES = 1000

PHASES = ("data", "forward", "backward", "optimiser", "replay", "evaluation", "step")


class TimingError(RuntimeError):
    """A measured time cannot be true, or nothing could be measured."""


def now_s() -> float:
    """Returns a monotonic host time; only differences mean something."""
    return time.perf_counter()


def cpu_s() -> float:
    """Returns the time that this process's threads have had a core for; only differences mean something."""
    return time.process_time()


def process_elapsed_s() -> float:
    """Returns the time since this process was created, interpreter start and imports included."""
    import psutil

    return time.time() - psutil.Process().create_time()


def process_tree_cpu_s() -> float:
    """Returns the CPU time that this process and its children, living or gone, have used; differences mean a thing."""
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
    """Waits until everything queued on `device` is done; nothing to wait for on a CPU."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


class Deadline:
    """A time budget.

    Args:
        budget_s: from now on; None for no end.
    """

    def __init__(self, budget_s: float | None) -> None:
        self._end_s = math.inf if budget_s is None else now_s() + budget_s

    def remaining_s(self) -> float:
        """Returns what is left; infinite without a budget, negative when it is overspent."""
        return self._end_s - now_s()

    def expired(self) -> bool:
        """Returns whether nothing is left."""
        return self.remaining_s() <= 0


class RunClocks:
    """The three clocks of one training run.

    `process_s` runs from the creation of the process, `resident_s` from raw uint8 on the device, `train_eval_s` from
    the first step (or whitening) through the final evaluation. The device is synchronised at every mark and reading; a
    training loop in between reads no clock.

    Args:
        device: where the work runs.

    Attributes:
        cold: whether these are the first of the process: only then does `process_s` hold this run and nothing else.
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
        """Time since the process was created, less exclusions; stands still within one and from `stop` on."""
        for standing in (self._stopped_s, self._standing_s):
            if standing is not None:
                return standing
        synchronize(self._device)
        return now_s() + self._offset_s

    def start_resident(self) -> None:
        """Marks raw data on the device."""
        self._resident_start_s = self._running_s()

    def start_train_eval(self) -> None:
        """Marks the beginning of whitening or of the first step."""
        self._train_start_s = self._running_s()

    def stop(self) -> None:
        """Marks the end of the final evaluation; stops all three clocks."""
        self._stopped_s = self._running_s()

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Takes what happens inside (evaluations on the way, reporting) off all three clocks, which stand meanwhile."""
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

    On a GPU it records events and resolves them when asked, so that the loop is never made to wait; on a CPU it reads
    the host clock. What that costs is measured, not assumed: run steps with `enabled=False` in turn and compare.

    Args:
        device: where the work runs.
        enabled: False makes every call empty.
    """

    def __init__(self, device: "torch.device", *, enabled: bool = True) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._enabled = enabled
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Attributes what runs inside to one of `PHASES`.

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
        """Returns the times of each phase in order, waiting for the device first."""
        synchronize(self._device)
        times = defaultdict(list)
        for name, start, end in self._marks:
            times[name].append(start.elapsed_time(end) / 1e3 if self._cuda else end - start)
        return dict(times)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Steady-state times of one operation; every sample is kept.

    Attributes:
        samples_s: time of one call, in the order taken.
        launches_per_sample: calls that share one sample's window, for operations shorter than the clock can resolve.
        host_median_s: the same by a synchronised host clock, as a cross-check; on a GPU it holds flush and hold too.
        issue_median_s: until the host had queued a call; on a CPU, the call.
        warmup_s: what warm-up took, compilation included.
        stopped_by: "ci" when the interval was narrow enough, else "count" or "budget".
        cold: whether caches were flushed before every sample.
        graph: whether a CUDA graph was replayed.
        queued: whether every window began when all of it was queued.
        outliers: places of samples more than ten scaled median absolute deviations off: flagged, never dropped.
    """

    samples_s: tuple[float, ...]
    launches_per_sample: int
    host_median_s: float
    issue_median_s: float
    warmup_s: float
    stopped_by: str
    cold: bool
    graph: bool
    queued: bool
    outliers: tuple[int, ...]

    @property
    def median_s(self) -> float:
        """The median sample."""
        return statistics.median(self.samples_s)


def _cache_flusher(device: "torch.device") -> Callable[[], object]:
    """A call that overwrites 1.5 times the last-level cache of `device`."""
    import torch

    if device.type == "cuda":
        cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    else:
        from wallclock.bench.measure.environment import last_level_cache_bytes

        cache_bytes = last_level_cache_bytes()
    buffer = torch.empty(int(1.5 * cache_bytes), dtype=torch.int8, device=device)
    return buffer.zero_


def _window(fn: Callable[[], object], launches: int, device: "torch.device", *, graph: bool) -> Callable[[], object]:
    """`launches` calls of `fn` as one: a loop, or a CUDA graph that holds them all."""

    def looped() -> None:
        for _ in range(launches):
            fn()

    if not graph:
        return looped
    import torch

    side = torch.cuda.Stream(device)  # capture asks for a call on a stream other than the default one
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        fn()
    torch.cuda.current_stream(device).wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        looped()
    return captured.replay


class _Hold:
    """Keeps a GPU busy while the host queues a window, so that no launch is waited for within it.

    How long it takes is found out by trying: a window that began before all of it was queued is timed again behind a
    hold twice as long. An operation that itself waits for the device is never ahead of it: then there is no hold.
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
        """Returns whether the window may count; called when all is queued, with the event at its beginning."""
        if not self.cycles or not first.query():
            return True
        self.cycles = 0 if self.cycles >= self.LONGEST_CYCLES else 2 * self.cycles
        return False


@dataclass(frozen=True)
class _Elapsed:
    """One window's time by the device's clock, by the synchronised host's, and until the host had queued it."""

    device_s: float
    host_s: float
    issue_s: float


def _elapsed(
    window: Callable[[], object],
    device: "torch.device",
    flush: Callable[[], object] | None = None,
    hold: _Hold | None = None,
) -> _Elapsed:
    """Times one window; on a GPU the host's time holds the flush and the hold too."""
    synchronize(device)
    if flush is not None:
        flush()
    if device.type != "cuda":
        start = now_s()
        window()
        elapsed = now_s() - start
        return _Elapsed(elapsed, elapsed, elapsed)
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
        return _elapsed(window, device, flush, hold)
    return _Elapsed(first.elapsed_time(last) / 1e3, now_s() - start, issued)


def _resolved(
    fn: Callable[[], object], device: "torch.device", hold: _Hold | None, *, graph: bool
) -> tuple[Callable[[], object], int]:
    """A window long enough for the clock, and how many calls of `fn` it holds.

    Its length is that of the calls together: alone, a small GPU kernel seems to last as long as its launch.
    """
    launches = 1
    while True:
        window = _window(fn, launches, device, graph=graph)
        elapsed = min(_elapsed(window, device, hold=hold).device_s for _ in range(3))
        if elapsed >= 0.8 * WINDOW_S or launches == MAX_LAUNCHES:
            return window, launches
        launches = min(MAX_LAUNCHES, max(launches + 1, math.ceil(launches * WINDOW_S / max(elapsed, 1e-9))))


def _warm_up(fn: Callable[[], object], device: "torch.device", budget_s: float) -> tuple[float, float]:
    """Calls `fn` until the medians of five calls and of the next five agree within 5%: (time spent, time of a call)."""
    start, deadline, previous = now_s(), Deadline(budget_s), math.inf
    one = _elapsed(fn, device).host_s  # compilation, autotuning, first touch of memory
    while not deadline.expired():
        calls: list[float] = []
        while len(calls) < 5 and not deadline.expired():
            calls.append(_elapsed(fn, device).host_s)
        one = statistics.median(calls or [one])
        if abs(one - previous) <= 0.05 * one:
            break
        previous = one
    return now_s() - start, one


def measure(
    fn: Callable[[], object],
    *,
    device: "torch.device",
    relative_ci: float = 0.02,
    min_count: int = 20,
    max_count: int = 1000,
    budget_s: float = 5.0,
    cold: bool = False,
    graph: bool = False,
    queued: bool = False,
    floor_s: float = 0.0,
) -> Measurement:
    """Times one operation in steady state.

    Args:
        fn: the operation; takes nothing, and leaves its inputs as they were.
        device: where it runs.
        relative_ci: stop when the 95% interval of the median is narrower than this share of the median.
        min_count: samples before the interval may stop it.
        max_count: samples at most.
        budget_s: time for warm-up (half of it) and for sampling, each sample being finished.
        cold: overwrite the last-level cache before every sample, outside its window; one call a sample.
        graph: capture and replay a CUDA graph; GPU only.
        queued: on a GPU, begin each window when all of it is queued: the device's time alone, as in a loop whose host
            is ahead, where a short operation otherwise seems to last as long as its launch.
        floor_s: the physical limit of one call (bytes over bandwidth, operations over peak).

    Returns:
        Every sample, and how they were taken.

    Raises:
        ValueError: if `graph` is asked for on a CPU, or the counts cannot be.
        TimingError: if the median is below `floor_s`: then the work was not done, or the timer is wrong.
    """
    if graph and device.type != "cuda":
        raise ValueError("a CUDA graph needs a GPU; call measure(..., graph=False)")
    if not 1 <= min_count <= max_count:
        raise ValueError(f"min_count is {min_count} and max_count {max_count}; expected 1 <= min_count <= max_count")
    flush = _cache_flusher(device) if cold else None
    hold = _Hold() if queued and device.type == "cuda" else None
    warmup_s, one_s = _warm_up(fn, device, budget_s / 2)
    if cold or (one_s >= 20 * WINDOW_S and not graph):
        window, launches = _window(fn, 1, device, graph=graph), 1
    else:
        window, launches = _resolved(fn, device, hold, graph=graph)
    samples: list[float] = []
    host: list[float] = []
    issue: list[float] = []
    deadline, stopped_by = Deadline(budget_s), "count"
    while len(samples) < max_count:
        elapsed = _elapsed(window, device, flush, hold)
        samples.append(elapsed.device_s / launches)
        host.append(elapsed.host_s / launches)
        issue.append(elapsed.issue_s / launches)
        if len(samples) >= min_count and len(samples) % 5 == 0:
            middle = median_interval(samples)
            if middle.high - middle.low <= relative_ci * middle.value:
                stopped_by = "ci"
                break
        if deadline.expired():
            stopped_by = "budget"
            break
    median = statistics.median(samples)
    if median < floor_s:
        raise TimingError(
            f"measured {median:.3g} s a call, below the physical limit of {floor_s:.3g} s: the work was not done, "
            "or the clock is wrong; nothing was recorded"
        )
    return Measurement(
        samples_s=tuple(samples),
        launches_per_sample=launches,
        host_median_s=statistics.median(host),
        issue_median_s=statistics.median(issue),
        warmup_s=warmup_s,
        stopped_by=stopped_by,
        cold=cold,
        graph=graph,
        queued=hold is not None and hold.cycles > 0,
        outliers=_outliers(samples),
    )


def _outliers(samples: list[float]) -> tuple[int, ...]:
    """Places of samples more than ten scaled median absolute deviations off the median."""
    median = statistics.median(samples)
    spread = 1.4826 * statistics.median(abs(s - median) for s in samples)
    return tuple(i for i, s in enumerate(samples) if spread > 0 and abs(s - median) > 10 * spread)
