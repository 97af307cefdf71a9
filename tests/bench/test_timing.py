"""The timer against durations that are known: other processes share these cores, so medians and best cases count."""

import math
import statistics
import time
from collections.abc import Callable

import pytest
import torch

from bench.environment import last_level_cache_bytes
from bench.timing import (
    Deadline,
    Measurement,
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
