"""Turns of contenders: all in each round, in changing order, each in a process of its own that ends with the run."""

import multiprocessing
import os
from pathlib import Path

import psutil
import pytest

from wallclock.bench.measure.turns import ContenderFailed, interleaved


@pytest.fixture
def contenders(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import turns_contenders

    return turns_contenders


def test_every_contender_has_one_turn_a_round_in_a_process_of_its_own(contenders, tmp_path):
    log = tmp_path / "log"
    names = ["a", "b", "c"]
    taken = list(interleaved({name: contenders.Counting(name, log) for name in names}, 6, first=2))
    assert [(t.round, t.slot) for t in taken] == [(r, s) for r in range(2, 6) for s in range(3)]
    orders = [tuple(t.name for t in taken if t.round == r) for r in range(2, 6)]
    assert all(sorted(order) == names for order in orders) and len(set(orders)) > 1
    assert [t.result[0] for t in taken] == [t.name for t in taken]
    processes = {t.result[1] for t in taken}
    assert len(processes) == 3 and os.getpid() not in processes
    assert {t.result[2] for t in taken if t.round == 5} == {4}  # turns of one that lives on
    lines = log.read_text().splitlines()
    assert [line.split()[0] for line in lines if "turn" in line] == [t.name for t in taken]  # one at a time
    assert sorted(line for line in lines if "closed" in line) == [f"{name} closed" for name in names]
    assert not any(psutil.pid_exists(process) for process in processes)
    again = [t.name for t in interleaved({name: contenders.Counting(name, log) for name in names}, 3, first=2)]
    assert tuple(again) == orders[0]  # the order is the seed's and the round's


def test_one_that_fails_is_named_and_the_others_are_ended(contenders, tmp_path):
    steady = contenders.Counting("steady", tmp_path / "log")
    for failing, says in (
        (contenders.Raising(0), "wrong: ValueError: cannot get ready"),
        (contenders.Raising(2), "wrong: ValueError: cannot go on"),
        (contenders.Dying(), "wrong: its process died, killed or out of memory"),
    ):
        with pytest.raises(ContenderFailed, match=says):
            list(interleaved({"steady": steady, "wrong": failing}, 3))
    assert multiprocessing.active_children() == []


def test_a_run_that_is_broken_off_ends_its_processes(contenders, tmp_path):
    turns = interleaved({"a": contenders.Counting("a", tmp_path / "log")}, 100)
    process = next(turns).result[1]
    turns.close()
    assert not psutil.pid_exists(process)
