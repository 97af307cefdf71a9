"""Two sides measured in turns: each round runs every benchmark on each side, each time in a fresh process.

In each round the base, the head and the base once more have a turn, in an order drawn for that round. Other work on the
machine affects all of them alike, and base against base shows which differences this machine's noise makes.
"""

import itertools
import math
import random
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from wallclock.bench.compare.benchmarks import Benchmark
from wallclock.bench.compare.figures import count_instructions, failure_of, read_figures, read_tool_figures
from wallclock.bench.compare.imports import foreign_import
from wallclock.bench.compare.plan import Plan, check_same_comparison, new_request
from wallclock.bench.compare.sides import SHELL, Side
from wallclock.bench.measure.environment import provenance, resolve_device
from wallclock.bench.measure.processes import ProcessDone, time_process
from wallclock.bench.measure.telemetry import ClockWatch, Telemetry
from wallclock.bench.measure.timing import Deadline
from wallclock.reports.stats.verdicts import LOOKS, early_share, rounds_needed, spent_share
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
    SPENT,
    comparison_summary,
    judge_rounds,
)

BUDGET_S = 45.0  # for each benchmark, where neither rounds nor a budget are given
AGAIN_EVERY = 3  # rounds, in the first of which the base has a second turn
WARM_UPS = 3  # processes at most; fewer once two in a row take equally long
CALLGRIND = ("valgrind", "--tool=callgrind", "--trace-children=yes", "--callgrind-out-file=/dev/null")
JSON = "WALLCLOCK_JSON"  # variable with the file that a benchmarking tool may write to
ROUND = "WALLCLOCK_ROUND"  # variable with the number of the round, from 0; a training may use it as its seed
STEADY = 0.1  # share by which two warm-ups in a row may differ


class Comparison:
    """One comparison, whose rounds are recorded as they are taken, in a new run or a resumed one.

    Args:
        benchmarks: the commands that both sides run.
        base: the side to compare with, such as the main branch.
        head: the side with the proposed change.
        plan: rounds, warm-up and order of turns.
        out: folder in which a new run's own directory is created.
        command: the command line as the user typed it, for the records.
        deadline: time by which the comparison ends; a round that would end later is not begun. Without one, and without
            rounds in the plan, it is `BUDGET_S` for each benchmark after the warm-up, and enough for a verdict.
        resume: directory of an interrupted, stopped or killed run of the same comparison; its complete rounds are kept,
            and an incomplete round is taken again. None begins a new run.

    Raises:
        StoreError: if the run in `resume` has another request, or was begun on another machine or with other software.
        ValueError: if the plan counts instructions and Valgrind is not installed.
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
        self.same_code, dirty = "", any(request[arm].get("dirty") for arm in (BASE, HEAD))
        if (revision := base.subject.revision) and revision == head.subject.revision and not dirty:
            self.same_code = f"base and head are the same commit, {revision[:12]}"
        apart = {*request["invalid"], *request["added"], *request["removed"]}
        self.benchmarks = {b.name: b for b in benchmarks if b.name not in apart}
        self.sides = {BASE: base, HEAD: head, AGAIN: base}
        self.plan, self.deadline = plan, deadline
        self.shares = dict.fromkeys(self.benchmarks, 0.0)  # of the error rate, used by looks so far
        self.times_s: dict[str, list[float]] = {name: [] for name in self.benchmarks}  # seconds of each process
        self.rounds, self.judged = plan.rounds, set[tuple[str, str]]()
        self.rounds_done = self.attempt = 0
        if resume is None:
            same: dict[str, Any] = {"command": command, "request": request, **place}
            self.writer = RunWriter.create(out, Run(run_id=new_run_id("comparison"), started_utc=utc_now(), **same))
            return
        check_same_comparison(resume, request, place)
        self.writer, samples = RunWriter.resume(resume), load(resume)
        self.rounds_done = _count_rounds(samples, self.benchmarks, lambda n: len(self._arms(n)), bool(plan.rounds))
        looks = samples.loc[samples["metric"] == SPENT, ["case", "value", "round"]]
        for name, share, seen in looks.itertuples(index=False):
            self.shares[str(name)] += 0.0 if share == early_share(int(seen)) else share
        self.attempt = 1 + int(samples["attempt"].max() if "attempt" in samples else 0)

    def verdicts(self) -> pd.DataFrame:
        """Returns the verdicts on the rounds so far; see `reports.views.comparison.comparison_summary`."""
        return comparison_summary(load(self.writer.path), load_runs(self.writer.path))

    def execute(self, observe: Callable[[str], None]) -> RunStatus:
        """Runs all rounds and closes the records.

        Args:
            observe: called with one line that describes the plan, and one line of progress after each round.

        Returns:
            "done", or "stopped" if the deadline came before a whole round was complete.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once the records are closed as "interrupted".
        """
        with self.writer, Telemetry() as self._telemetry:
            open_ = [name for name in self.benchmarks if not self.plan.warm_up or self._warm_up(name, observe)]
            if not self.rounds and not self.deadline:
                least = rounds_needed(max(1, len(self.judged)), self.plan.rule) + 2
                self.deadline = Deadline(max(BUDGET_S * len(open_), least * self._round_s(*open_)))
            if self.same_code:
                observe(self.same_code)
                self.writer.note(self.same_code)
            if open_:
                observe(self._describe_plan(open_))
            status: RunStatus = "done"
            number, looks = self.rounds_done, list(LOOKS)
            try:
                while open_ and (number < self.rounds or not self.rounds):
                    for name in random.Random(f"{self.plan.seed} {number}").sample(open_, len(open_)):
                        if self.deadline and self._round_s(name) > self.deadline.remaining_s():
                            status = "stopped"
                        elif not self._take_round(name, number):
                            open_.remove(name)
                    if status == "stopped":
                        self.writer.note(f"ended after {number} whole rounds: the budget is spent")
                        break
                    number += 1
                    if self.deadline and looks and self.deadline.spent() >= looks[0]:
                        open_ = self._look(open_, number, self.deadline.spent())
                        looks = [at for at in looks if at > self.deadline.spent()]
                    elif self.deadline and early_share(number):
                        open_ = self._look(open_, number, None)
                    observe(self._describe_progress(number, open_))
            except KeyboardInterrupt:
                if self.deadline:
                    self._look(open_, number, self.deadline.spent())
                raise
            if self.deadline and open_:
                self._look(open_, number, 1.0)
            status = "stopped" if status == "stopped" and not number else "done"
            self.writer.finish(status)
        return status

    def _warm_up(self, name: str, observe: Callable[[str], None]) -> bool:
        """Runs a benchmark on both sides until two processes in a row take equally long; returns whether it worked."""
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

    def _arms(self, number: int) -> list[str]:
        """Returns the sides that have a turn in a round; the base's second turn is in every third round."""
        return [BASE, HEAD] if number % AGAIN_EVERY or not self.plan.again else [BASE, HEAD, AGAIN]

    def _take_round(self, name: str, number: int) -> bool:
        """Takes one turn of each arm (base, head, base again); returns whether all worked."""
        arms = self._arms(number)
        random.Random(f"{self.plan.seed} {number} {name}").shuffle(arms)
        return all(self._take_turn(name, arm, round=number, slot=slot) for slot, arm in enumerate(arms))

    def _take_turn(self, name: str, arm: str, **where: Any) -> ProcessDone | None:
        """Runs one process and records its time and the figures that it printed; returns None if it failed."""
        benchmark, side = self.benchmarks[name], self.sides[arm]
        common = {"benchmark": BENCHMARK, "case": name, "arm": arm, **where}
        # A warm-up only writes bytecode, which would take fifty times as long under Callgrind.
        counted = self.plan.counts and benchmark.counted == "callgrind" and where.get("phase") != "warm-up"
        done = None
        with (
            tempfile.NamedTemporaryFile("r", encoding="utf-8") as imports,
            tempfile.NamedTemporaryFile(suffix=".json") as written,
        ):
            try:
                environment = side.environment(imports.name) | {ROUND: str(where.get("round", 0)), JSON: written.name}
                if counted:
                    environment["PYTHONHASHSEED"] = "0"
                command = side.commands[name]
                if shutil.which(command.split()[0], path=environment["PATH"]) and not set(command) & set(";&|\n"):
                    command = f"exec {command}"  # a single program replaces the shell, so that no shell is measured
                with ClockWatch(self._telemetry) as watch:
                    done = time_process(
                        [*(CALLGRIND if counted else ()), SHELL, "-c", command],
                        directory=side.directory,
                        environment=environment,
                        timeout_s=benchmark.timeout_s,
                    )
                common |= watch.fields()
                if self.attempt:  # readers then leave out the turns of the interrupted round
                    common["parameters"] = {**common.get("parameters", {}), "attempt": self.attempt}
                figures, of_tool = list(read_figures(done.output)), read_tool_figures(Path(written.name))
                why = failure_of(done, benchmark.timeout_s) or foreign_import(imports.read(), list(side.folders))
            except (ValueError, OSError) as error:
                done, why = None, str(error)
        if done is None or why:
            taken = math.nan if done is None else done.seconds
            self.writer.add(
                Sample(metric="process_s", unit="s", better="lower", value=taken, status="failed", error=why, **common)
            )
            return None
        if self.plan.counts:
            figures = [figure for figure in figures + of_tool if figure["unit"] in COUNTED]
            whole = {"instructions": (count_instructions(done.errors), "instructions")} if counted else {}
        elif of_tool:  # the process is the tool's
            figures, whole = figures + of_tool, {}
        else:
            whole = {"process_s": (done.seconds, "s"), "process_cpu_s": (done.cpu_s, "s")}
            whole["process_peak_bytes"] = (float(done.peak_bytes), "bytes")
        samples = [Sample(metric=m, value=v, unit=u, better="lower", **common) for m, (v, u) in whole.items()]
        samples += [Sample(**figure, **common) for figure in figures]
        self.writer.add(*samples)
        self.judged |= {(name, sample.metric) for sample in samples if sample.metric not in CONTEXT}
        self.times_s[name].append(done.seconds)
        return done

    def _look(self, names: list[str], number: int, elapsed: float | None) -> list[str]:
        """Looks at the verdicts, and returns the benchmarks that are inconclusive, which alone get further rounds.

        Args:
            names: the benchmarks to look at.
            number: number of whole rounds so far.
            elapsed: share of the budget that is spent; what it frees of the error rate, this look may use. None for an
                early look.
        """
        for name in names:
            share = early_share(number)
            if elapsed is not None:
                share = max(0.0, spent_share(elapsed, self.plan.rule) - self.shares[name])
                self.shares[name] += share
            same: dict[str, Any] = {"benchmark": BENCHMARK, "metric": SPENT, "unit": "fraction", "better": "lower"}
            self.writer.add(Sample(case=name, value=share, round=number, **same))
        rows = judge_rounds(load(self.writer.path), self.writer.run.request)
        unclear = {row["benchmark"] for row in rows if row["verdict"] == "inconclusive"}
        return [name for name in names if name in unclear]

    def _round_s(self, *names: str) -> float:
        """Returns the seconds that one round of the named benchmarks takes, from the medians so far."""
        times = [self.times_s[name] for name in names if self.times_s[name]]
        turns = 2 + self.plan.again / AGAIN_EVERY
        return sum(map(statistics.median, times)) * turns

    def _describe_plan(self, names: list[str]) -> str:
        if self.deadline:
            left = format_s(self.deadline.remaining_s())
            return f"{', '.join(names)}: rounds until the verdicts are clear, at most {left}"
        rounds = f"{', '.join(names)}: {self.rounds} rounds of base and head"
        if self.plan.counts:
            return f"{rounds}, which under Callgrind take about fifty times as long as alone"
        return f"{rounds}, about {format_s(self._round_s(*names) * self.rounds)}"

    def _describe_progress(self, number: int, names: list[str]) -> str:
        if self.deadline:
            return f"round {number}, {len(names)} open, at most {format_s(self.deadline.remaining_s())} left"
        left = format_s(self._round_s(*names) * (self.rounds - number))
        return f"round {number} of {self.rounds}, about {left} left"


def _count_rounds(samples: pd.DataFrame, names: Iterable[str], turns: Callable[[int], int], fixed: bool) -> int:
    """Returns how many rounds of a stored comparison are complete.

    Each of the named benchmarks has `turns(n)` turns in the n-th round. Where the number of rounds is fixed, a complete
    round holds every benchmark.
    """
    done = []
    for name in names:
        turn = (samples["case"] == name) & (samples["phase"] == "steady") & (samples["metric"] != SPENT)
        own = samples[turn] if len(samples) else samples
        arms: Mapping[Any, int] = dict(own.groupby("round")["arm"].nunique()) if len(own) else {}
        whole = {int(number) for number, count in arms.items() if count == turns(int(number))}
        done.append(next(number for number in itertools.count() if number not in whole))
    return (min if fixed else max)(done, default=0)


def format_s(seconds: float) -> str:
    """Returns a time as text in a unit of suitable size: "40 s", "12 min", "1.5 h"; "no limit" for infinity."""
    if not math.isfinite(seconds):
        return "no limit"
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
