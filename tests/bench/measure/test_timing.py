"""The timer against durations that are known: other processes share these cores, so medians and best cases count."""

import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from wallclock.bench.measure.environment import last_level_cache_bytes
from wallclock.bench.measure.timing import (
    Deadline,
    PhaseTimer,
    RunClocks,
    TimingError,
    measure,
    now_s,
    process_elapsed_s,
    synchronize,
)

CPU = torch.device("cpu")
PAUSE_S = 0.2  # long beside what a busy machine takes a process off the core for

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; torch finds none")


def spin(seconds: float) -> None:
    end = now_s() + seconds
    while now_s() < end:
        pass


def spinning(seconds: float) -> Callable[[], None]:
    return lambda: spin(seconds)


@pytest.fixture
def clocks() -> RunClocks:
    return RunClocks(CPU)


def all_three(clocks: RunClocks) -> tuple[float, float, float]:
    return clocks.process_s, clocks.resident_s, clocks.train_eval_s


def test_the_three_clocks_are_nested_and_lie_apart_by_what_happened_between_their_starts(clocks: RunClocks) -> None:
    clocks.start_resident()
    start = now_s()
    time.sleep(PAUSE_S)
    clocks.start_train_eval()
    between = now_s() - start
    time.sleep(PAUSE_S / 10)
    clocks.stop()
    process, resident, train_eval = all_three(clocks)
    assert process > resident > train_eval >= PAUSE_S / 10
    assert resident - train_eval == pytest.approx(between, abs=1e-3)


def test_the_process_clock_starts_with_the_process(clocks: RunClocks) -> None:
    assert clocks.process_s == pytest.approx(process_elapsed_s(), abs=0.05)
    assert process_elapsed_s() > 0.1  # Python and torch have been imported since


@pytest.mark.parametrize("name", ["resident_s", "train_eval_s"])
def test_a_clock_read_before_its_start_is_refused(clocks: RunClocks, name: str) -> None:
    with pytest.raises(TimingError, match="before it was started"):
        getattr(clocks, name)


def test_stop_freezes_all_three(clocks: RunClocks) -> None:
    clocks.start_resident()
    clocks.start_train_eval()
    clocks.stop()
    before = all_three(clocks)
    time.sleep(0.01)
    with clocks.excluded():
        time.sleep(0.01)
    assert all_three(clocks) == before


def test_an_exclusion_comes_off_every_running_clock(clocks: RunClocks) -> None:
    clocks.start_resident()
    clocks.start_train_eval()
    before = all_three(clocks)
    with clocks.excluded():
        time.sleep(PAUSE_S)
    for was, now in zip(before, all_three(clocks), strict=True):
        assert was < now < was + PAUSE_S / 2


def test_an_exclusion_does_not_come_off_a_clock_that_starts_after_it(clocks: RunClocks) -> None:
    clocks.start_resident()
    with clocks.excluded():
        time.sleep(PAUSE_S)
    clocks.start_train_eval()
    time.sleep(PAUSE_S / 10)
    assert clocks.resident_s >= clocks.train_eval_s >= PAUSE_S / 10


def test_a_clock_that_starts_within_an_exclusion_starts_at_its_end(clocks: RunClocks) -> None:
    with clocks.excluded():
        time.sleep(PAUSE_S)
        clocks.start_train_eval()
        time.sleep(PAUSE_S)
    spin(0.01)
    assert 0.01 <= clocks.train_eval_s < PAUSE_S / 2


def test_the_clocks_stand_while_an_exclusion_lasts(clocks: RunClocks) -> None:
    """An evaluation on the way is recorded with the time at which it began."""
    clocks.start_resident()
    clocks.start_train_eval()
    with clocks.excluded():
        first = all_three(clocks)
        time.sleep(0.01)
        assert all_three(clocks) == first
    assert clocks.train_eval_s > first[2]


def test_an_exclusion_within_another_counts_once(clocks: RunClocks) -> None:
    clocks.start_train_eval()
    with clocks.excluded(), clocks.excluded():
        time.sleep(PAUSE_S)
    assert 0 < clocks.train_eval_s < PAUSE_S / 2


def test_an_exclusion_ends_when_its_body_raises(clocks: RunClocks) -> None:
    clocks.start_train_eval()
    with pytest.raises(KeyError), clocks.excluded():
        time.sleep(PAUSE_S)
        raise KeyError
    before = clocks.train_eval_s
    spin(0.01)
    assert before + 0.01 <= clocks.train_eval_s < PAUSE_S / 2


def test_phases_add_up_to_the_whole() -> None:
    phases, whole = PhaseTimer(CPU), PhaseTimer(CPU)
    wanted = {"data": 0.002, "forward": 0.004, "backward": 0.008, "optimiser": 0.001}
    for _ in range(5):
        with whole.phase("step"):
            for name, seconds in wanted.items():
                with phases.phase(name):
                    spin(seconds)
    times, steps = phases.times_s(), whole.times_s()["step"]
    assert list(times) == list(wanted)
    for name, seconds in wanted.items():
        assert len(times[name]) == 5
        assert min(times[name]) == pytest.approx(seconds, rel=0.03)
    for step, parts in zip(steps, zip(*times.values(), strict=True), strict=True):
        assert sum(parts) <= step
    left_out = statistics.median(
        step - sum(parts) for step, parts in zip(steps, zip(*times.values(), strict=True), strict=True)
    )
    assert left_out < 0.01 * sum(wanted.values())


def test_phases_that_repeat_keep_their_order() -> None:
    phases = PhaseTimer(CPU)
    for seconds in (0.004, 0.001, 0.002):
        with phases.phase("data"):
            spin(seconds)
    first, second, third = phases.times_s()["data"]
    assert first > third > second


def test_a_disabled_phase_timer_records_nothing_and_costs_next_to_nothing() -> None:
    phases = PhaseTimer(CPU, enabled=False)

    def five_phases() -> None:
        for _ in range(5):
            with phases.phase("data"):
                pass

    assert measure(five_phases, device=CPU, budget_s=0.2).median_s < 50e-6
    assert phases.times_s() == {}


def test_an_unknown_phase_is_refused_and_the_phases_are_named() -> None:
    with pytest.raises(ValueError, match="no phase 'forwards'; phases: data, forward, backward"):
        PhaseTimer(CPU).phase("forwards").__enter__()


def test_a_deadline_runs_out() -> None:
    deadline = Deadline(0.02)
    assert 0 < deadline.remaining_s() <= 0.02
    assert not deadline.expired()
    time.sleep(0.03)
    assert deadline.expired()
    assert deadline.remaining_s() < 0


def test_no_budget_never_runs_out_and_an_empty_one_has() -> None:
    assert Deadline(None).remaining_s() == math.inf
    assert not Deadline(None).expired()
    assert Deadline(0.0).expired()


@pytest.mark.parametrize("seconds", [2e-4, 1e-3, 5e-3])
def test_a_known_duration_is_measured(seconds: float) -> None:
    measured = measure(spinning(seconds), device=CPU, budget_s=0.5)
    assert measured.median_s == pytest.approx(seconds, rel=0.03)
    assert measured.host_median_s == pytest.approx(seconds, rel=0.03)
    assert measured.launches_per_sample == 1
    assert not measured.cold and not measured.graph


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[], None]]:
    """Makes calls that take known times, on a clock that only they move: a shared machine's is not so steady."""
    at_s = [0.0]
    monkeypatch.setattr("wallclock.bench.measure.timing.now_s", lambda: at_s[0])

    def taking(*seconds: float) -> Callable[[], None]:
        turns = itertools.cycle(seconds)

        def call() -> None:
            at_s[0] += next(turns)

        return call

    return taking


def test_a_microsecond_shares_its_window_and_is_still_measured(ticking: Callable[..., Callable[[], None]]) -> None:
    measured = measure(ticking(1.5e-6), device=CPU, max_count=200)
    assert 10 <= measured.launches_per_sample <= 50
    assert measured.median_s == pytest.approx(1.5e-6, rel=0.01)


def test_a_narrow_interval_ends_the_sampling(ticking: Callable[..., Callable[[], None]]) -> None:
    measured = measure(ticking(2.5e-4, 3e-4, 3.5e-4), device=CPU, relative_ci=0.1, min_count=12)
    assert measured.stopped_by == "ci"
    assert 12 <= len(measured.samples_s) < 100


def test_the_count_ends_the_sampling() -> None:
    measured = measure(spinning(1e-4), device=CPU, relative_ci=0.0, min_count=7, max_count=7)
    assert measured.stopped_by == "count"
    assert len(measured.samples_s) == 7


def test_the_budget_ends_the_sampling() -> None:
    start = now_s()
    measured = measure(spinning(0.01), device=CPU, relative_ci=0.0, budget_s=0.2)
    assert measured.stopped_by == "budget"
    assert 3 <= len(measured.samples_s) <= 21
    assert sum(measured.samples_s) >= 0.15
    assert 0.01 <= measured.warmup_s <= now_s() - start - sum(measured.samples_s)


def test_one_call_longer_than_the_budget_is_not_made_six_times_to_warm_up() -> None:
    calls: list[float] = []

    def slow() -> None:
        calls.append(now_s())
        spin(0.1)

    measured = measure(slow, device=CPU, budget_s=0.05)
    assert len(calls) == 2
    assert measured.samples_s == pytest.approx((0.1,), rel=0.1)
    assert measured.warmup_s == pytest.approx(0.1, rel=0.1)


def test_warm_up_lasts_until_the_times_stand_still() -> None:
    calls: list[float] = []

    def settling() -> None:
        spin(5e-4 + 4e-3 * 0.8 ** len(calls))
        calls.append(now_s())

    measured = measure(settling, device=CPU, relative_ci=0.0, min_count=5, max_count=20)
    assert min(measured.samples_s[:3]) < 5.5e-4
    assert measured.warmup_s > 0.015


def test_compilation_in_the_first_call_is_warm_up() -> None:
    calls: list[float] = []

    def compiling() -> None:
        spin(1e-4 if calls else 0.1)
        calls.append(now_s())

    measured = measure(compiling, device=CPU, max_count=50)
    assert measured.warmup_s > 0.1
    assert measured.median_s == pytest.approx(1e-4, rel=0.1)
    assert measured.launches_per_sample == 1


def test_an_outlier_is_flagged_and_kept() -> None:
    calls: list[float] = []

    def with_one_slow_call() -> None:
        spin(0.05 if len(calls) == 40 else 1e-3)
        calls.append(now_s())

    measured = measure(with_one_slow_call, device=CPU, relative_ci=0.0, min_count=60, max_count=60)
    assert len(measured.samples_s) == 60
    slowest = max(range(60), key=lambda place: measured.samples_s[place])
    assert measured.samples_s[slowest] >= 0.05
    assert slowest in measured.outliers
    assert len(measured.outliers) < 30
    assert measured.median_s == pytest.approx(1e-3, rel=0.03)


def test_the_median_is_of_the_samples() -> None:
    measured = measure(lambda: None, device=CPU, max_count=20)
    assert replace(measured, samples_s=(3.0, 1.0, 2.0, 9.0)).median_s == 2.5


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
    assert cold.cold and cold.launches_per_sample == 1
    assert cold.median_s > 1.5 * hot.median_s


def test_a_time_below_the_physical_limit_is_refused_and_one_above_is_not() -> None:
    with pytest.raises(TimingError, match=r"below the physical limit of 0\.002 s"):
        measure(spinning(1e-3), device=CPU, max_count=20, floor_s=2e-3)
    assert measure(spinning(1e-3), device=CPU, max_count=20, floor_s=9e-4).median_s >= 9e-4


def test_a_graph_on_a_cpu_is_refused_without_a_call() -> None:
    with pytest.raises(ValueError, match="a CUDA graph needs a GPU"):
        measure(lambda: pytest.fail("was called"), device=CPU, graph=True)


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
    monkeypatch.setattr("wallclock.bench.measure.timing._Hold.LONGEST_CYCLES", 1 << 20)

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
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("cold", [False, True])
def test_gpu_events_agree_with_the_synchronised_host_clock(graph: bool, cold: bool) -> None:
    device, multiply, floor_s = product()
    measured = measure(multiply, device=device, graph=graph, cold=cold, floor_s=floor_s)
    assert measured.graph == graph and measured.cold == cold
    assert measured.median_s <= measured.host_median_s < 1.5 * measured.median_s + 50e-6
    assert measured.issue_median_s < measured.host_median_s


@pytest.mark.gpu
@needs_gpu
def test_gpu_time_of_a_short_kernel_is_not_that_of_its_launch() -> None:
    x = torch.zeros(1024, device="cuda")
    replayed = measure(lambda: x.add_(0), device=x.device, graph=True)
    queued = measure(lambda: x.add_(0), device=x.device, queued=True)
    assert queued.queued and queued.median_s < 2 * replayed.median_s  # on an H200 1.9 us, and 1.2 within a graph
    assert queued.median_s < queued.issue_median_s


@pytest.mark.gpu
@needs_gpu
def test_gpu_phases_wait_for_the_work_that_they_queued() -> None:
    device, multiply, floor_s = product()
    multiply()
    synchronize(device)
    phases, start = PhaseTimer(device), now_s()
    with phases.phase("forward"):
        for _ in range(20):
            multiply()
    queued_s = now_s() - start
    (forward,) = phases.times_s()["forward"]
    assert forward > 20 * floor_s
    assert queued_s < forward <= now_s() - start  # the loop was not made to wait


@pytest.mark.gpu
@needs_gpu
def test_run_clocks_wait_for_the_gpu() -> None:
    device, multiply, floor_s = product()
    clocks = RunClocks(device)
    clocks.start_train_eval()
    for _ in range(20):
        multiply()
    clocks.stop()
    assert clocks.train_eval_s > 20 * floor_s
