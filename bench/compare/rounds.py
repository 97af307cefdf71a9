"""Two sides in turns: each round runs every benchmark once on either side, each time in a fresh process.

In each round, and in an order drawn for it, the base, the head and the base once more have a turn: other work on the
machine meets all of them alike, and base against base shows whether this machine can tell anything at all.
"""

import itertools
import math
import random
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from wallclock.bench.compare.benchmarks import Benchmark
from wallclock.bench.compare.figures import count_instructions, failure_of, read_figures
from wallclock.bench.compare.plan import Plan, check_same_comparison, new_request
from wallclock.bench.compare.sides import SHELL, Side
from wallclock.bench.measure.environment import provenance, resolve_device
from wallclock.bench.measure.processes import ProcessDone, time_process
from wallclock.bench.measure.telemetry import ClockWatch, Telemetry
from wallclock.bench.measure.timing import Deadline
from wallclock.reports.stats.verdicts import next_look, rounds_needed
from wallclock.reports.store.read import load, load_runs
from wallclock.reports.store.schema import Run, RunStatus, Sample
from wallclock.reports.store.write import RunWriter, new_run_id, utc_now
from wallclock.reports.views.comparison import (
    AGAIN,
    BASE,
    BENCHMARK,
    CONTEXT,
    COUNTED,
    HEAD,
    comparison_summary,
    judge_rounds,
)

ROUNDS = 12
WARM_UPS = 3  # processes at most; fewer where two in a row take as long
CALLGRIND = ("valgrind", "--tool=callgrind", "--trace-children=yes", "--callgrind-out-file=/dev/null")
ROUND = "WALLCLOCK_ROUND"  # tells a process the number of its round, from 0: a training may take it as its seed
STEADY = 0.1  # share by which two warm-ups in a row may differ


class Comparison:
    """One comparison: its rounds, recorded as they come, as a new run or as one that was begun.

    Args:
        benchmarks: the commands that both sides run.
        base: the side as it is now.
        head: the side that is proposed.
        plan: rounds, warm-up and order of turns; without a number of rounds, a deadline is needed.
        out: folder that holds runs.
        command: the command line as typed.
        deadline: time by which it ends; a round that would end later is not begun.
        resume: a run of the same comparison that was interrupted, stopped by its budget or killed; its whole rounds
            count, and one that was begun is taken again.

    Raises:
        StoreError: if `resume` is of another comparison, or was begun under other conditions.
        ValueError: if instructions are to be counted and cannot be.
    """

    def __init__(
        self,
        benchmarks: Sequence[Benchmark],
        base: Side,
        head: Side,
        plan: Plan,
        out: Path,
        command: str,
        *,
        deadline: Deadline | None = None,
        resume: Path | None = None,
    ) -> None:
        with Telemetry() as telemetry:
            device_type = "cpu" if telemetry.driver() is None else resolve_device("auto")  # which imports torch
        if plan.counts and shutil.which("valgrind") is None and any(b.counted == "callgrind" for b in benchmarks):
            raise ValueError("counting instructions needs valgrind; install it (Debian: apt install valgrind)")
        request, place = new_request(benchmarks, base, head, plan), provenance(device_type)
        apart = {*request["invalid"], *request["added"], *request["removed"]}
        self.benchmarks = {b.name: b for b in benchmarks if b.name not in apart}
        self.sides = {BASE: base, HEAD: head} | ({AGAIN: base} if plan.again else {})
        self.plan, self.deadline = plan, deadline or Deadline(None)
        self.times_s: dict[str, list[float]] = {name: [] for name in self.benchmarks}  # of one process each
        self.rounds, self.judged = plan.rounds, set[tuple[str, str]]()
        self.rounds_done = self.attempt = 0
        if resume is None:
            same: dict[str, Any] = {"command": command, "request": request, **place}
            self.writer = RunWriter.create(out, Run(run_id=new_run_id("comparison"), started_utc=utc_now(), **same))
            return
        check_same_comparison(resume, request, place)
        self.writer, samples = RunWriter.resume(resume), load(resume)
        self.rounds_done = _count_rounds(samples, self.benchmarks, len(self.sides), bool(plan.rounds))
        self.attempt = 1 + int(samples["attempt"].max() if "attempt" in samples else 0)

    def verdicts(self) -> pd.DataFrame:
        """Returns the verdicts of the rounds so far; see `reports.views.comparison.comparison_summary`."""
        return comparison_summary(load(self.writer.path), load_runs(self.writer.path))

    def execute(self, observe: Callable[[str], None]) -> RunStatus:
        """Runs all rounds and ends the records.

        Args:
            observe: called with the plan, and with the progress after each round, in a line.

        Returns:
            "done", or "stopped" where the budget ended before every verdict was clear.

        Raises:
            KeyboardInterrupt: after the records have been ended as interrupted.
        """
        with self.writer, Telemetry() as self._telemetry:
            open_ = [name for name in self.benchmarks if not self.plan.warm_up or self._warm_up(name, observe)]
            if not self.rounds and not self.plan.rule.spend:
                self.rounds = max(ROUNDS, rounds_needed(max(1, len(self.judged)), self.plan.rule))
            if open_:
                observe(self._describe_plan(open_))
            status: RunStatus = "done"
            number = self.rounds_done
            look = next_look(number)
            while open_ and (number < self.rounds or not self.rounds):
                order = random.Random(f"{self.plan.seed} {number}").sample(open_, len(open_))
                for name in order:
                    if self._round_s(name) > self.deadline.remaining_s():
                        status = "stopped"
                    elif not self._take_round(name, number):
                        open_.remove(name)
                number += 1
                if status == "stopped":
                    self.writer.note(f"stopped after {number - 1} whole rounds: the budget is spent")
                    break
                if not self.rounds and number == look:
                    open_, look = self._undecided(open_), next_look(number)
                observe(self._describe_progress(number, open_))
            self.writer.finish(status)
        return status

    def _warm_up(self, name: str, observe: Callable[[str], None]) -> bool:
        """Runs a benchmark on both sides until two processes in a row take as long; returns whether it works."""
        for arm in (BASE, HEAD):
            previous = math.inf
            for index in range(1 if self.plan.counts else WARM_UPS):
                done = self._take_turn(name, arm, phase="warm-up", index=index)
                if done is None:
                    observe(f"{name}: failed on the {arm}'s side")
                    return False
                if abs(done.seconds - previous) <= STEADY * done.seconds:
                    break
                previous = done.seconds
        return True

    def _take_round(self, name: str, number: int) -> bool:
        """Takes one turn of each arm; returns whether all worked."""
        arms = list(self.sides)
        random.Random(f"{self.plan.seed} {number} {name}").shuffle(arms)
        return all(self._take_turn(name, arm, round=number, slot=slot) for slot, arm in enumerate(arms))

    def _take_turn(self, name: str, arm: str, **where: Any) -> ProcessDone | None:
        """Runs one process, and records its time and the figures that it printed; returns None if it failed."""
        benchmark, side = self.benchmarks[name], self.sides[arm]
        common = {"benchmark": BENCHMARK, "case": name, "arm": arm, **where}
        # A warm-up writes bytecode; under Callgrind it would take fifty times as long to do no more.
        counted = self.plan.counts and benchmark.counted == "callgrind" and where.get("phase") != "warm-up"
        done = None
        try:
            environment = side.environment() | {ROUND: str(where.get("round", 0))}
            if counted:
                environment["PYTHONHASHSEED"] = "0"
            command = side.commands[name]
            if shutil.which(command.split()[0], path=environment["PATH"]) and not set(command) & set(";&|\n"):
                command = f"exec {command}"  # one program: the process measured is its own, not a shell's
            with ClockWatch(self._telemetry) as watch:
                done = time_process(
                    [*(CALLGRIND if counted else ()), SHELL, "-c", command],
                    directory=side.directory,
                    environment=environment,
                    timeout_s=benchmark.timeout_s,
                )
            common |= watch.fields()
            if self.attempt:  # turns of the round that was interrupted are then left out
                common["parameters"] = {**common.get("parameters", {}), "attempt": self.attempt}
            figures = list(read_figures(done.output))
            why = failure_of(done, benchmark.timeout_s)
        except (ValueError, OSError) as error:
            done, why = None, str(error)
        if done is None or why:
            taken = math.nan if done is None else done.seconds
            self.writer.add(
                Sample(metric="process_s", unit="s", better="lower", value=taken, status="failed", error=why, **common)
            )
            return None
        if self.plan.counts:
            figures = [figure for figure in figures if figure["unit"] in COUNTED]
            whole = {"instructions": (count_instructions(done.errors), "instructions")} if counted else {}
        else:
            whole = {"process_s": (done.seconds, "s"), "process_cpu_s": (done.cpu_s, "s")}
            whole["process_peak_bytes"] = (float(done.peak_bytes), "bytes")
        samples = [Sample(metric=m, value=v, unit=u, better="lower", **common) for m, (v, u) in whole.items()]
        samples += [Sample(**figure, **common) for figure in figures]
        self.writer.add(*samples)
        self.judged |= {(name, sample.metric) for sample in samples if sample.metric not in CONTEXT}
        self.times_s[name].append(done.seconds)
        return done

    def _undecided(self, names: list[str]) -> list[str]:
        """Returns the benchmarks of which a metric is still inconclusive: the time is spent on those."""
        rows = judge_rounds(load(self.writer.path), self.writer.run.request)
        unclear = {row["benchmark"] for row in rows if row["verdict"] == "inconclusive"}
        return [name for name in names if name in unclear]

    def _round_s(self, *names: str) -> float:
        """Returns the seconds that one round of some benchmarks takes."""
        times = [self.times_s[name] for name in names if self.times_s[name]]
        return sum(map(statistics.median, times)) * len(self.sides)

    def _describe_plan(self, names: list[str]) -> str:
        if not self.rounds:
            left = format_s(self.deadline.remaining_s())
            return f"{', '.join(names)}: rounds until the verdicts are clear, at most {left}"
        left = format_s(self._round_s(*names) * self.rounds)
        return f"{', '.join(names)}: {self.rounds} rounds of {len(self.sides)} processes each, about {left}"

    def _describe_progress(self, number: int, names: list[str]) -> str:
        if not self.rounds:
            return f"round {number}, {len(names)} open, at most {format_s(self.deadline.remaining_s())} left"
        left = format_s(self._round_s(*names) * (self.rounds - number))
        return f"round {number} of {self.rounds}, about {left} left"


def _count_rounds(samples: pd.DataFrame, names: Iterable[str], turns: int, fixed: bool) -> int:
    """Returns how many rounds of a comparison are done and need not be taken again.

    Args:
        samples: the samples that it has.
        names: names of its benchmarks.
        turns: turns of each benchmark in a round.
        fixed: whether the number of rounds is fixed; then no round may lack a benchmark.
    """
    done = []
    for name in names:
        own = samples[(samples["case"] == name) & (samples["phase"] == "steady")] if len(samples) else samples
        arms: Mapping[Any, int] = dict(own.groupby("round")["arm"].nunique()) if len(own) else {}
        whole = {int(number) for number, count in arms.items() if count == turns}
        done.append(next(number for number in itertools.count() if number not in whole))
    return (min if fixed else max)(done, default=0)


def format_s(seconds: float) -> str:
    """Returns a time in the unit that suits it: "40 s", "12 min", "1.5 h"."""
    if not math.isfinite(seconds):
        return "no limit"
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
