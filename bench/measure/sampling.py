"""Steady-state sampling of one operation: warm-up until its times stand still, then samples until they agree."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from wallclock.bench.measure import timing
from wallclock.bench.measure.environment import last_level_cache_bytes
from wallclock.bench.measure.timing import Deadline, GpuHold, time_window
from wallclock.reports.stats.intervals import median_interval

# Events resolve about 0.5 us and perf_counter 0.1 us: a window of 50 us keeps either at 1% or below.
WINDOW_S = 50e-6
MAX_LAUNCHES = 1000


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Steady-state times of one operation; every sample is kept.

    Attributes:
        samples_s: seconds of one call, in the order taken.
        launches_per_sample: calls that share one sample's window, for operations shorter than the clock can resolve.
        issue_median_s: median seconds until the host had queued a call; on a CPU those of the call.
        warmup_s: seconds of the warm-up, compilation included.
        stopped_by: "ci" when the interval was narrow enough, else "count" or "budget".
        queued: whether each window began only when all of it was queued.
    """

    samples_s: tuple[float, ...]
    launches_per_sample: int
    issue_median_s: float
    warmup_s: float
    stopped_by: str
    queued: bool

    @property
    def median_s(self) -> float:
        """The median sample."""
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
        fn: the operation; takes nothing, and leaves its inputs as they were.
        device: the device that it runs on.
        relative_ci: sampling stops when the 95% interval of the median is narrower than this share of the median.
        min_count: samples before the interval may stop it.
        max_count: samples at most.
        budget_s: seconds for warm-up (half of them) and for sampling; a sample that was begun is finished.
        cold: whether the last-level cache is overwritten before every sample, outside its window; then a sample is one
            call.
        queued: whether a GPU begins each window only when all of it is queued: the device's time alone, as in a loop
            whose host is ahead, where a short operation otherwise seems to last as long as its launch.

    Raises:
        ValueError: if the counts cannot be.
    """
    if not 1 <= min_count <= max_count:
        raise ValueError(f"min_count is {min_count} and max_count {max_count}; expected 1 <= min_count <= max_count")
    flush = _cache_flusher(device) if cold else None
    hold = GpuHold() if queued and device.type == "cuda" else None
    warmup_s, one_s = _warm_up(fn, device, budget_s / 2)
    launches = 1 if cold or one_s >= 20 * WINDOW_S else _find_launches(fn, device, hold)
    window = _repeat(fn, launches)
    samples: list[float] = []
    issue: list[float] = []
    deadline, stopped_by = Deadline(budget_s), "count"
    while len(samples) < max_count:
        elapsed = time_window(window, device, before=flush, hold=hold)
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


def _cache_flusher(device: torch.device) -> Callable[[], object]:
    """Returns a call that overwrites 1.5 times the last-level cache of `device`."""
    on_gpu = device.type == "cuda"
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size if on_gpu else last_level_cache_bytes()
    return torch.empty(int(1.5 * cache_bytes), dtype=torch.int8, device=device).zero_


def _repeat(fn: Callable[[], object], count: int) -> Callable[[], object]:
    def window() -> None:
        for _ in range(count):
            fn()

    return window


def _find_launches(fn: Callable[[], object], device: torch.device, hold: GpuHold | None) -> int:
    """Returns how many calls of `fn` make a window long enough for the clock.

    The calls are timed together: alone, a small GPU kernel seems to last as long as its launch.
    """
    launches = 1
    while True:
        window = _repeat(fn, launches)
        elapsed = min(time_window(window, device, hold=hold).device_s for _ in range(3))
        if elapsed >= 0.8 * WINDOW_S or launches == MAX_LAUNCHES:
            return launches
        launches = min(MAX_LAUNCHES, max(launches + 1, math.ceil(launches * WINDOW_S / max(elapsed, 1e-9))))


def _warm_up(fn: Callable[[], object], device: torch.device, budget_s: float) -> tuple[float, float]:
    """Calls `fn` until the medians of five calls and of the next five agree within 5%: (time spent, time of a call)."""
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
