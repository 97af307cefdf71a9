"""Clocks of a run, its phases and its budget, on a clock that only the tests move; on a GPU against the real one."""

import math
from collections.abc import Callable

import pytest
import torch

from wallclock.bench.measure.timing import (
    Deadline,
    PhaseTimer,
    RunClocks,
    TimingError,
    now_s,
    process_elapsed_s,
    synchronize,
)

CPU = torch.device("cpu")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; torch finds none")


@pytest.fixture
def clocks(clock) -> RunClocks:
    return RunClocks(CPU)


def all_three(clocks: RunClocks) -> tuple[float, float, float]:
    return clocks.process_s, clocks.resident_s, clocks.train_eval_s


def test_the_three_clocks_are_nested_and_lie_apart_by_the_time_between_their_starts(clock, clocks) -> None:
    clocks.start_resident()
    clock.advance(5.0)
    clocks.start_train_eval()
    clock.advance(2.0)
    clocks.stop()
    process, resident, train_eval = all_three(clocks)
    assert process > resident
    assert (resident, train_eval) == pytest.approx((7.0, 2.0))


def test_the_process_clock_starts_with_the_process() -> None:
    before, clocks = process_elapsed_s(), RunClocks(CPU)
    reading = clocks.process_s
    assert before - 0.05 < reading < process_elapsed_s() + 0.05  # two clocks of the system, which may be corrected
    assert before > 0.1  # Python and torch have been imported since


@pytest.mark.parametrize("name", ["resident_s", "train_eval_s"])
def test_a_clock_read_before_its_start_is_refused(clocks, name: str) -> None:
    with pytest.raises(TimingError, match="before it was started"):
        getattr(clocks, name)


def test_stop_freezes_all_three(clock, clocks) -> None:
    clocks.start_resident()
    clocks.start_train_eval()
    clocks.stop()
    before = all_three(clocks)
    clock.advance(1.0)
    with clocks.excluded():
        clock.advance(1.0)
    assert all_three(clocks) == before


@pytest.mark.parametrize("fails", [False, True])
def test_the_clocks_stand_while_an_exclusion_lasts_and_go_on_after_it(clock, clocks, fails: bool) -> None:
    """An evaluation on the way is recorded with the time at which it began."""
    clocks.start_resident()
    clocks.start_train_eval()
    clock.advance(3.0)
    before = all_three(clocks)
    try:
        with clocks.excluded(), clocks.excluded():  # one within another counts once
            clock.advance(5.0)
            assert all_three(clocks) == before
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert all_three(clocks) == pytest.approx(before)
    clock.advance(1.0)
    assert all_three(clocks) == pytest.approx([was + 1.0 for was in before])


def test_an_exclusion_does_not_come_off_a_clock_that_starts_after_it(clock, clocks) -> None:
    clocks.start_resident()
    with clocks.excluded():
        clock.advance(5.0)
    clocks.start_train_eval()
    clock.advance(2.0)
    assert (clocks.resident_s, clocks.train_eval_s) == pytest.approx((2.0, 2.0))


def test_a_clock_that_starts_within_an_exclusion_starts_at_its_end(clock, clocks) -> None:
    with clocks.excluded():
        clock.advance(5.0)
        clocks.start_train_eval()
        clock.advance(5.0)
    clock.advance(1.0)
    assert clocks.train_eval_s == pytest.approx(1.0)


def test_phases_add_up_to_the_whole_in_the_order_taken(clock) -> None:
    phases, whole = PhaseTimer(CPU), PhaseTimer(CPU)
    wanted = {"data": 2.0, "forward": 4.0, "backward": 8.0, "optimiser": 1.0}
    for step in range(5):
        with whole.phase("step"):
            for name, seconds in wanted.items():
                with phases.phase(name):
                    clock.advance(seconds + step)
            clock.advance(0.5)  # outside any phase
    times, steps = phases.times_s(), whole.times_s()["step"]
    assert list(times) == list(wanted)
    for name, seconds in wanted.items():
        assert times[name] == pytest.approx([seconds + step for step in range(5)])
    assert steps == pytest.approx([15.5 + 4 * step for step in range(5)])


def test_a_disabled_phase_timer_records_nothing_and_reads_no_clock(monkeypatch) -> None:
    phases = PhaseTimer(CPU, enabled=False)
    monkeypatch.setattr("wallclock.bench.measure.timing.now_s", lambda: pytest.fail("the clock was read"))
    with phases.phase("data"):
        pass
    assert phases.times_s() == {}


def test_an_unknown_phase_is_refused_and_the_phases_are_named() -> None:
    with pytest.raises(ValueError, match="no phase 'forwards'; phases: data, forward, backward"):
        PhaseTimer(CPU).phase("forwards").__enter__()


def test_a_deadline_runs_out(clock) -> None:
    deadline = Deadline(20.0)
    assert deadline.remaining_s() == 20.0 and not deadline.expired()
    clock.advance(30.0)
    assert deadline.remaining_s() == -10.0 and deadline.expired()
    assert Deadline(None).remaining_s() == math.inf and not Deadline(None).expired()
    assert Deadline(0.0).expired()


def product() -> tuple[torch.device, Callable[[], torch.Tensor], float]:
    """A float32 product on the GPU, and the time below which no GPU of today gets: 137 GFLOP at 2 PFLOP/s."""
    device = torch.device("cuda")
    x = torch.randn(4096, 4096, device=device)
    return device, lambda: x @ x, 2 * 4096**3 / 2e15


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
