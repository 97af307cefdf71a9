"""Steady-state sampling on a clock that only the tests move, and of a GPU that is simulated; where timed, for real."""

import statistics
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from wallclock.bench.measure.environment import last_level_cache_bytes
from wallclock.bench.measure.sampling import measure
from wallclock.bench.measure.timing import now_s, time_window

CPU = torch.device("cpu")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; torch finds none")


@pytest.mark.parametrize("seconds", [2e-4, 1e-3, 5e-3])
def test_a_known_duration_is_measured(clock, seconds: float) -> None:
    measured = measure(clock.taking(seconds), device=CPU, budget_s=0.5)
    assert measured.median_s == measured.issue_median_s == pytest.approx(seconds)
    assert measured.launches_per_sample == 1 or seconds == 2e-4
    assert not measured.queued


@pytest.mark.slow
@pytest.mark.timed
def test_a_known_duration_is_measured_on_the_real_clock() -> None:
    def spin() -> None:
        end = now_s() + 1e-3
        while now_s() < end:
            pass

    assert measure(spin, device=CPU, budget_s=0.5).median_s == pytest.approx(1e-3, rel=0.03)


def test_a_microsecond_shares_its_window_and_is_still_measured(clock) -> None:
    measured = measure(clock.taking(1.5e-6), device=CPU, max_count=200)
    assert 10 <= measured.launches_per_sample <= 50
    assert measured.median_s == pytest.approx(1.5e-6, rel=0.01)


def test_a_narrow_interval_ends_the_sampling(clock) -> None:
    measured = measure(clock.taking(2.5e-4, 3e-4, 3.5e-4), device=CPU, relative_ci=0.1, min_count=12)
    assert measured.stopped_by == "ci"
    assert 12 <= len(measured.samples_s) < 100


def test_the_count_ends_the_sampling(clock) -> None:
    measured = measure(clock.taking(2e-3, 1e-3), device=CPU, relative_ci=0.0, min_count=7, max_count=7)
    assert measured.stopped_by == "count"
    assert len(measured.samples_s) == 7


def test_the_budget_ends_the_sampling(clock) -> None:
    measured = measure(clock.taking(0.01, 0.011), device=CPU, relative_ci=0.0, budget_s=0.2)
    assert measured.stopped_by == "budget"
    assert 0.2 <= sum(measured.samples_s) <= 0.211
    assert 0.1 <= measured.warmup_s <= 0.121  # half of the budget, and the call that was begun


def test_one_call_longer_than_the_budget_is_not_made_six_times_to_warm_up(clock) -> None:
    start = clock.at_s
    measured = measure(clock.taking(0.1), device=CPU, budget_s=0.05)
    assert clock.at_s - start == pytest.approx(0.2)  # two calls
    assert measured.samples_s == pytest.approx((0.1,)) and measured.warmup_s == pytest.approx(0.1)


def test_warm_up_lasts_until_the_times_stand_still(clock) -> None:
    settling = clock.settling(*(1e-3 + 4e-3 * 0.8**call for call in range(60)))
    measured = measure(settling, device=CPU, relative_ci=0.0, min_count=5, max_count=20)
    assert max(measured.samples_s) < 1.1e-3
    assert measured.warmup_s > 0.03


def test_compilation_in_the_first_call_is_warm_up(clock) -> None:
    measured = measure(clock.settling(0.1, 1e-3), device=CPU, max_count=50)
    assert measured.warmup_s > 0.1
    assert measured.median_s == pytest.approx(1e-3)
    assert measured.launches_per_sample == 1


def test_an_outlier_is_kept(clock) -> None:
    measured = measure(
        clock.settling(*[1e-3] * 40, 0.05, 1e-3), device=CPU, relative_ci=0.0, min_count=60, max_count=60
    )
    assert len(measured.samples_s) == 60 and max(measured.samples_s) == pytest.approx(0.05)
    assert measured.median_s == pytest.approx(1e-3)


def test_the_median_is_of_the_samples(clock) -> None:
    measured = measure(clock.taking(1e-3), device=CPU, max_count=20)
    assert replace(measured, samples_s=(3.0, 1.0, 2.0, 9.0)).median_s == 2.5


def test_a_cold_sample_is_one_call_after_the_cache_is_overwritten(clock, monkeypatch) -> None:
    monkeypatch.setattr("wallclock.bench.measure.sampling.last_level_cache_bytes", lambda: 100)
    flushes, empty = [], torch.empty

    def watched(size: int, **options: object) -> torch.Tensor:
        buffer = empty(size, **options)
        flushes.append(size)
        return buffer.fill_(1)

    monkeypatch.setattr(torch, "empty", watched)
    measured = measure(clock.taking(1e-6), device=CPU, cold=True, max_count=20)
    assert flushes == [150] and measured.launches_per_sample == 1
    assert measured.median_s == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.slow
@pytest.mark.timed
def test_cold_finds_the_cache_empty() -> None:
    """A MiB lies in the second-level cache when hot: 14 us against 40 us from memory on one core of an EPYC."""
    assert last_level_cache_bytes() > 1 << 20
    numbers, threads = torch.ones(1 << 18), torch.get_num_threads()
    torch.set_num_threads(1)  # with two, a busy neighbour holds up either by milliseconds
    try:
        hot = measure(numbers.sum, device=CPU, max_count=200, budget_s=1)
        cold = measure(numbers.sum, device=CPU, max_count=200, budget_s=1, cold=True)
    finally:
        torch.set_num_threads(threads)
    assert cold.median_s > 1.5 * hot.median_s


@pytest.mark.parametrize(("least", "most"), [(0, 10), (11, 10)])
def test_impossible_counts_are_refused(least: int, most: int) -> None:
    with pytest.raises(ValueError, match=f"min_count is {least} and max_count {most}"):
        measure(lambda: pytest.fail("was called"), device=CPU, min_count=least, max_count=most)


class SimulatedGPU:
    """A queue that works beside the host: what `measure` sees of a GPU, for machines that have none.

    Its clock is its own, and moves with each reading: a host that others use launches now faster, now slower.
    """

    KERNEL_S, LAUNCH_S, READING_S = 20e-6, 200e-6, 50e-9

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host_s = self.free_s = 0.0
        self.holds: list[float] = []
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at_s = gpu.queue(0.0)

            def query(self) -> bool:
                return gpu.now_s() >= self.at_s

            def elapsed_time(self, other: "Event") -> float:
                return 1e3 * (other.at_s - self.at_s)

        def hold(cycles: int) -> None:
            self.holds.append(cycles)
            self.queue(cycles / 2e9)

        monkeypatch.setattr("wallclock.bench.measure.timing.now_s", self.now_s)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", hold)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.wait())

    def queue(self, seconds: float) -> float:
        """Queues work and returns when it will be done."""
        self.free_s = max(self.now_s(), self.free_s) + seconds
        return self.free_s

    def now_s(self) -> float:
        self.host_s += self.READING_S
        return self.host_s

    def wait(self) -> None:
        self.host_s = max(self.host_s, self.free_s)

    def launch(self) -> None:
        self.host_s += self.LAUNCH_S
        self.queue(self.KERNEL_S)


@pytest.mark.parametrize("queued", [False, True])
def test_a_launch_that_outlasts_its_kernel_is_not_waited_for_when_queued(
    queued: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = SimulatedGPU(monkeypatch)
    measured = measure(gpu.launch, device=torch.device("cuda"), budget_s=0.3, queued=queued)
    assert measured.queued == queued and bool(gpu.holds) == queued
    assert measured.median_s == pytest.approx(gpu.KERNEL_S if queued else gpu.LAUNCH_S, rel=0.2)
    assert measured.issue_median_s == pytest.approx(gpu.LAUNCH_S, rel=0.2)


def test_what_waits_for_the_device_is_timed_without_a_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimulatedGPU(monkeypatch)
    monkeypatch.setattr("wallclock.bench.measure.timing.GpuHold.LONGEST_CYCLES", 1 << 20)

    def waits() -> None:
        gpu.launch()
        gpu.wait()

    measured = measure(waits, device=torch.device("cuda"), budget_s=0.3, queued=True)
    assert not measured.queued and len(gpu.holds) == 5  # doubled from 2**16 to 2**20, and then given up
    assert measured.median_s == pytest.approx(gpu.LAUNCH_S + gpu.KERNEL_S, rel=0.2)


def product() -> tuple[torch.device, Callable[[], torch.Tensor], float]:
    """A float32 product on the GPU, and the time below which no GPU of today gets: 137 GFLOP at 2 PFLOP/s."""
    device = torch.device("cuda")
    x = torch.randn(4096, 4096, device=device)
    return device, lambda: x @ x, 2 * 4096**3 / 2e15


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("cold", [False, True])
def test_gpu_events_agree_with_the_synchronised_host_clock(cold: bool) -> None:
    device, multiply, floor_s = product()
    measured = measure(multiply, device=device, cold=cold)
    host = statistics.median(time_window(multiply, device).host_s for _ in range(20))
    assert floor_s <= measured.median_s <= host < 1.5 * measured.median_s + 50e-6
    assert measured.issue_median_s < measured.median_s


@pytest.mark.gpu
@needs_gpu
def test_gpu_time_of_a_short_kernel_is_not_that_of_its_launch() -> None:
    x = torch.zeros(1024, device="cuda")
    queued = measure(lambda: x.add_(0), device=x.device, queued=True)
    assert queued.queued and queued.median_s < 5e-6  # on an H200 1.9 us, and 1.2 within a graph
    assert queued.median_s < queued.issue_median_s
