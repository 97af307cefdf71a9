"""Steady-state timing of one operation: warm-up until its times settle, then samples until their median is certain."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from wallclock.bench.measure import timing
from wallclock.bench.measure.environment import last_level_cache_bytes
from wallclock.bench.measure.timing import Deadline, GpuHold, time_window
from wallclock.reports.stats.intervals import median_interval

# Events resolve about 0.5 us and perf_counter 0.1 us: a window of 50 us keeps either error at 1% or below.
WINDOW_S = 50e-6
MAX_LAUNCHES = 1000


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Steady-state times of one operation, with every sample.

    Attributes:
        samples_s: seconds per call of each sample, in the order taken.
        launches_per_sample: number of calls in one sample, above 1 for operations too short for the clock.
        issue_median_s: median seconds per call until the host had queued it; on a CPU the seconds of the call itself.
        warmup_s: seconds that the warm-up took, compilation included.
        stopped_by: reason for the end of sampling: "ci" if the interval was narrow enough, else "count" or "budget".
        queued: whether the GPU began each sample only after the host had queued all of its calls.
    """

    samples_s: tuple[float, ...]
    launches_per_sample: int
    issue_median_s: float
    warmup_s: float
    stopped_by: str
    queued: bool

    @property
    def median_s(self) -> float:
        """Median of the samples, in seconds per call."""
        return statistics.median(self.samples_s)


def measure(
    fn: Callable[[], object],
    *,
    device: torch.device,
    relative_ci: float = 0.02,
    min_count: int = 20,
    max_count: int = 1000,
    budget_s: float = 5.0,
    cold: bool = False,
    queued: bool = False,
) -> Measurement:
    """Times one operation in steady state.

    Args:
        fn: the operation; takes no arguments, and can be repeated because it leaves its inputs unchanged.
        device: the device that the operation runs on.
        relative_ci: sampling stops when the 95% interval of the median is narrower than this share of the median.
        min_count: number of samples before a narrow interval may end the sampling.
        max_count: largest number of samples.
        budget_s: seconds for sampling; the warm-up may take half as many. A sample that was begun is finished.
        cold: whether the last-level cache is overwritten, untimed, before every sample; a sample is then one call.
        queued: whether a GPU begins each sample only after the host has queued all of its calls. This measures the
            device's time alone; otherwise a short operation seems to last as long as its launch.

    Raises:
        ValueError: if `min_count` is below 1 or above `max_count`.
    """
    if not 1 <= min_count <= max_count:
        raise ValueError(f"min_count is {min_count} and max_count {max_count}; expected 1 <= min_count <= max_count")
    memory = torch.empty(int(1.5 * cache_bytes(device)), dtype=torch.int8, device=device) if cold else None
    hold = GpuHold() if queued and device.type == "cuda" else None
    warmup_s, one_s = _warm_up(fn, device, budget_s / 2)
    launches = 1 if cold or one_s >= 20 * WINDOW_S else _find_launches(fn, device, hold)
    window = _repeat(fn, launches)
    samples: list[float] = []
    issue: list[float] = []
    deadline, stopped_by = Deadline(budget_s), "count"
    while len(samples) < max_count:
        elapsed = time_window(window, device, before=None if memory is None else memory.zero_, hold=hold)
        samples.append(elapsed.device_s / launches)
        issue.append(elapsed.issue_s / launches)
        if len(samples) >= min_count and len(samples) % 5 == 0:
            middle = median_interval(samples)
            if middle.high - middle.low <= relative_ci * middle.value:
                stopped_by = "ci"
                break
        if deadline.expired():
            stopped_by = "budget"
            break
    return Measurement(
        samples_s=tuple(samples),
        launches_per_sample=launches,
        issue_median_s=statistics.median(issue),
        warmup_s=warmup_s,
        stopped_by=stopped_by,
        queued=hold is not None and hold.cycles > 0,
    )


def cache_bytes(device: torch.device) -> int:
    """Returns the size of a device's last-level cache."""
    on_gpu = device.type == "cuda"
    return torch.cuda.get_device_properties(device).L2_cache_size if on_gpu else last_level_cache_bytes()


def _repeat(fn: Callable[[], object], count: int) -> Callable[[], object]:
    def window() -> None:
        for _ in range(count):
            fn()

    return window


def _find_launches(fn: Callable[[], object], device: torch.device, hold: GpuHold | None) -> int:
    """Returns how many calls of `fn` last long enough for the clock to resolve.

    The calls are timed together, since a small GPU kernel by itself seems to last as long as its launch.
    """
    launches = 1
    while True:
        window = _repeat(fn, launches)
        elapsed = min(time_window(window, device, hold=hold).device_s for _ in range(3))
        if elapsed >= 0.8 * WINDOW_S or launches == MAX_LAUNCHES:
            return launches
        launches = min(MAX_LAUNCHES, max(launches + 1, math.ceil(launches * WINDOW_S / max(elapsed, 1e-9))))


def _warm_up(fn: Callable[[], object], device: torch.device, budget_s: float) -> tuple[float, float]:
    """Calls `fn` until the medians of successive groups of 5 agree within 5%; returns seconds in all and of a call."""
    start, deadline, previous = timing.now_s(), Deadline(budget_s), math.inf
    one = time_window(fn, device).host_s  # compilation, autotuning, first touch of memory
    while not deadline.expired():
        calls: list[float] = []
        while len(calls) < 5 and not deadline.expired():
            calls.append(time_window(fn, device).host_s)
        one = statistics.median(calls or [one])
        if abs(one - previous) <= 0.05 * one:
            break
        previous = one
    return timing.now_s() - start, one
