"""Two sides in turns: each round runs every benchmark once on either side, each time in a fresh process.

In each round, and in an order drawn for it, the base, the head and the base once more have a turn: what else the
machine does meets all of them alike, and base against base says whether this machine can tell anything at all.
"""

import itertools
import json
import math
import random
import re
import shutil
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from wallclock.bench.compare.sides import SHELL, Benchmark, Side, last_line, sources_hash
from wallclock.bench.measure.processes import ProcessDone, time_process
from wallclock.bench.measure.telemetry import ClockWatch, Telemetry
from wallclock.bench.measure.timing import Deadline
from wallclock.bench.runs.resume import begun_run, check_same_place
from wallclock.reports.stats.verdicts import Rule, next_look, rounds_needed
from wallclock.reports.store.read import load
from wallclock.reports.store.schema import Run, RunStatus, Sample
from wallclock.reports.store.write import RunWriter, StoreError, new_run_id, utc_now
from wallclock.reports.views.comparison import AGAIN, BASE, BENCHMARK, CONTEXT, COUNTED, HEAD, judge_rounds

ROUNDS = 12
WARM_UPS = 3  # at most; one where two in a row agree
CALLGRIND = ("valgrind", "--tool=callgrind", "--trace-children=yes", "--callgrind-out-file=/dev/null")
ROUND = "WALLCLOCK_ROUND"  # what tells a process which round it is of, from 0: a training may take it as its seed
STEADY = 0.1  # share by which two warm-ups in a row may differ


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a comparison is run.

    Attributes:
        rule: of the verdicts.
        rounds: in which each side has a turn; 0 for as many as the rule needs, or, where it spends, as are clear.
        again: whether the base has a second turn in each round, to judge the machine.
        seed: of the order of turns.
        counts: whether only what is counted is recorded, instructions through Callgrind among it; no time then.
        warm_up: whether each side runs before the first round, until two processes in a row take as long.
    """

    rule: Rule = field(default_factory=Rule)
    rounds: int = 0
    again: bool = True
    seed: int = 0
    counts: bool = False
    warm_up: bool = True


class Comparison:
    """One comparison: its rounds, recorded as they come.

    Args:
        benchmarks: that both sides run.
        base: what it is now.
        head: what is proposed.
        plan: how.
        writer: where records go; its request is from `new_request`.
        deadline: no round is begun that would not end before it.
        going_on: whether `writer` holds rounds already; whole ones count, and one that was begun is taken again.
    """

    def __init__(
        self,
        benchmarks: Sequence[Benchmark],
        base: Side,
        head: Side,
        plan: Plan,
        writer: RunWriter,
        deadline: Deadline | None = None,
        *,
        going_on: bool = False,
    ) -> None:
        request = writer.run.request
        apart = {*request["invalid"], *request["added"], *request["removed"]}
        self.benchmarks = {b.name: b for b in benchmarks if b.name not in apart}
        self.sides = {BASE: base, HEAD: head} | ({AGAIN: base} if plan.again else {})
        self.plan, self.writer, self.deadline = plan, writer, deadline or Deadline(None)
        self.times_s: dict[str, list[float]] = {name: [] for name in self.benchmarks}  # of one process
        self.rounds, self.judged = plan.rounds, set[tuple[str, str]]()
        self.rounds_done = self.attempt = 0
        if going_on:
            samples = load(writer.path)
            self.rounds_done = _rounds_done(samples, self.benchmarks, len(self.sides), bool(plan.rounds))
            self.attempt = 1 + int(samples["attempt"].max() if "attempt" in samples else 0)

    def execute(self, observe: Callable[[str], None]) -> RunStatus:
        """Runs all rounds and ends the records.

        Args:
            observe: is told the plan, and how each round went, in a line.

        Returns:
            "done", or "stopped" where the budget ended before every verdict was clear.

        Raises:
            KeyboardInterrupt: after the records have been ended as interrupted.
        """
        with self.writer, Telemetry() as self._telemetry:
            open_ = [name for name in self.benchmarks if not self.plan.warm_up or self._warmed_up(name, observe)]
            if not self.rounds and not self.plan.rule.spend:
                self.rounds = max(ROUNDS, rounds_needed(max(1, len(self.judged)), self.plan.rule))
            if open_:
                observe(self._told_plan(open_))
            number, status = self.rounds_done, "done"
            look = next_look(number)
            while open_ and (number < self.rounds or not self.rounds):
                order = random.Random(f"{self.plan.seed} {number}").sample(open_, len(open_))
                for name in order:
                    if self._round_s(name) > self.deadline.remaining_s():
                        status = "stopped"
                    elif not self._round(name, number):
                        open_.remove(name)
                number += 1
                if status == "stopped":
                    self.writer.note(f"stopped after {number - 1} whole rounds: the budget is spent")
                    break
                if not self.rounds and number == look:
                    open_, look = self._undecided(open_), next_look(number)
                observe(self._told_round(number, open_))
            self.writer.finish(status)  # type: ignore[arg-type]
        return status  # type: ignore[return-value]

    def _warmed_up(self, name: str, observe: Callable[[str], None]) -> bool:
        """Runs a benchmark on both sides until two processes in a row take as long; says whether it works."""
        for arm in (BASE, HEAD):
            previous = math.inf
            for index in range(1 if self.plan.counts else WARM_UPS):
                done = self._turn(name, arm, phase="warm-up", index=index)
                if done is None:
                    observe(f"{name}: failed on the {arm}'s side")
                    return False
                self.times_s[name].append(done.seconds)
                if abs(done.seconds - previous) <= STEADY * done.seconds:
                    break
                previous = done.seconds
        return True

    def _round(self, name: str, number: int) -> bool:
        """One turn of each arm; says whether all worked."""
        arms = list(self.sides)
        random.Random(f"{self.plan.seed} {number} {name}").shuffle(arms)
        for slot, arm in enumerate(arms):
            done = self._turn(name, arm, round=number, slot=slot)
            if done is None:
                return False
            self.times_s[name].append(done.seconds)
        return True

    def _turn(self, name: str, arm: str, **where: Any) -> ProcessDone | None:
        """Runs one process and records what it took and what it printed; None if it failed."""
        benchmark, side = self.benchmarks[name], self.sides[arm]
        common = {"benchmark": BENCHMARK, "case": name, "arm": arm, **where}
        try:
            environment = side.environment() | {ROUND: str(where.get("round", 0))}
            command = side.commands[name]
            # A warm-up writes bytecode; under Callgrind it would take fifty times as long to do no more.
            counted = self.plan.counts and benchmark.counted == "callgrind" and where.get("phase") != "warm-up"
            if counted:
                environment["PYTHONHASHSEED"] = "0"
            if shutil.which(command.split()[0], path=environment["PATH"]) and not set(command) & set(";&|\n"):
                command = f"exec {command}"  # one program: the process measured is its own, not a shell's
            with ClockWatch(self._telemetry) as watch:
                done = time_process(
                    [*(CALLGRIND if counted else ()), SHELL, "-c", command],
                    directory=side.directory,
                    environment=environment,
                    timeout_s=benchmark.timeout_s,
                )
            fields = watch.fields()
            if self.attempt:  # what a round had before it was interrupted is then left out
                fields["parameters"] = {**fields.get("parameters", {}), "attempt": self.attempt}
            common |= fields
            figures = list(printed_figures(done.output))
            why = _failure(done, benchmark)
        except (ValueError, OSError) as error:
            figures, done, why = [], None, str(error)
        if done is None or why:
            taken = math.nan if done is None else done.seconds
            self.writer.add(
                Sample(metric="process_s", unit="s", better="lower", value=taken, status="failed", error=why, **common)
            )
            return None
        if self.plan.counts:
            figures = [figure for figure in figures if figure["unit"] in COUNTED]
            whole = {"instructions": (instructions(done.errors), "instructions")} if counted else {}
        else:
            whole = {"process_s": (done.seconds, "s"), "process_cpu_s": (done.cpu_s, "s")}
            whole["process_peak_bytes"] = (float(done.peak_bytes), "bytes")
        samples = [Sample(metric=m, value=v, unit=u, better="lower", **common) for m, (v, u) in whole.items()]
        samples += [Sample(**figure, **common) for figure in figures]
        self.writer.add(*samples)
        self.judged |= {(name, sample.metric) for sample in samples if sample.metric not in CONTEXT}
        return done

    def _undecided(self, names: list[str]) -> list[str]:
        """The benchmarks of which a metric is still inconclusive: the time is spent on those."""
        rows = judge_rounds(load(self.writer.path), self.writer.run.request)
        unclear = {row["benchmark"] for row in rows if row["verdict"] == "inconclusive"}
        return [name for name in names if name in unclear]

    def _round_s(self, name: str) -> float:
        times = self.times_s[name]
        return statistics.median(times) * len(self.sides) if times else 0.0

    def _told_plan(self, names: list[str]) -> str:
        one_s = sum(self._round_s(name) for name in names)
        rounds = self.rounds
        how = (
            f"{rounds} rounds of {len(self.sides)} processes each" if rounds else "rounds until the verdicts are clear"
        )
        left = one_s * rounds if rounds else self.deadline.remaining_s()
        return f"{', '.join(names)}: {how}, {'about' if rounds else 'at most'} {spoken_s(left)}"

    def _told_round(self, number: int, names: list[str]) -> str:
        if not self.rounds:
            left = self.deadline.remaining_s()
            return f"round {number}, {len(names)} open, at most {spoken_s(left)} left"
        left = sum(self._round_s(name) for name in names) * (self.rounds - number)
        return f"round {number} of {self.rounds}, about {spoken_s(left)} left"


def instructions(errors: str) -> float:
    """Returns the instructions that Callgrind counted in a process and its children, from what it wrote to stderr."""
    return float(sum(map(int, re.findall(r"^==\d+== Collected : (\d+)", errors, re.MULTILINE))))


def _failure(done: ProcessDone, benchmark: Benchmark) -> str:
    if done.timed_out:
        return f"timeout: it took longer than {benchmark.timeout_s:g} s"
    if done.code:
        how = f"exit {done.code}" if done.code > 0 else f"killed by signal {-done.code}"
        return f"{how}: {last_line(done.errors) or last_line(done.output) or 'it says nothing'}"
    return ""


def printed_figures(output: str) -> Iterator[dict[str, Any]]:
    """Yields the figures that a program printed, as fields of `Sample`.

    Args:
        output: of the program; a line such as `{"metric": "step_s", "value": 0.125, "unit": "s"}` is a figure, with
            `better` "lower" or "higher", "higher" by default for units that end with "/s". Any other line is none.

    Raises:
        ValueError: if a figure is not whole.
    """
    for line in output.splitlines():
        if not line.lstrip().startswith("{"):
            continue
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict) or "metric" not in record:
            continue
        value, unit = record.get("value"), record.get("unit")
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"it printed {line.strip()[:120]}: a value is a finite number")
        if not unit or not isinstance(unit, str):
            raise ValueError(f'it printed {line.strip()[:120]}: a figure needs a unit, such as "s"')
        better = record.get("better", "higher" if unit.endswith("/s") else "lower")
        if better not in ("lower", "higher"):
            raise ValueError(f"it printed {line.strip()[:120]}: better is 'lower' or 'higher'")
        yield {"metric": str(record["metric"]), "value": float(value), "unit": unit, "better": better}


def new_request(benchmarks: Sequence[Benchmark], base: Side, head: Side, plan: Plan) -> dict[str, Any]:
    """Returns what a record keeps of a comparison: enough to judge it again, and to know what was compared."""
    invalid: dict[str, str] = {}
    declared = [base.declared, head.declared]
    added, removed = (
        [] if None in declared else [b.name for b in benchmarks if b.name in has and b.name not in lacks]
        for has, lacks in ((head.declared or (), base.declared or ()), (base.declared or (), head.declared or ()))
    )
    for benchmark in benchmarks:
        for arm, side in ((BASE, base), (HEAD, head)):
            if benchmark.name in side.broken:
                invalid[benchmark.name] = f"{side.broken[benchmark.name]} ({arm})"
        if benchmark.sources and sources_hash(base, benchmark) != sources_hash(head, benchmark):
            invalid[benchmark.name] = f"benchmark_differs: {', '.join(benchmark.sources)} is not the same on both sides"
    return {
        "benchmark": BENCHMARK,
        **{arm: _told_side(side) for arm, side in ((BASE, base), (HEAD, head))},
        "rule": asdict(plan.rule),
        "rounds": plan.rounds,
        "seed": plan.seed,
        "again": plan.again,
        "counts": plan.counts,
        "tolerances": {b.name: b.tolerance for b in benchmarks if b.tolerance is not None},
        "metrics": {b.name: list(b.metrics) for b in benchmarks if b.metrics},
        "invalid": {name: why for name, why in invalid.items() if name not in (*added, *removed)},
        "added": added,
        "removed": removed,
    }


def _told_side(side: Side) -> dict[str, Any]:
    told: dict[str, Any] = {"kind": side.subject.kind, "text": side.subject.text, "commands": dict(side.commands)}
    if side.subject.revision:
        told["revision"] = side.subject.revision
    if side.subject.kind == "tree":
        from wallclock.bench.compare.sides import git

        told["dirty"] = bool(git(side.directory, "status", "--porcelain")) if side.subject.revision else None
    return told


def new_comparison(
    benchmarks: Sequence[Benchmark],
    base: Side,
    head: Side,
    plan: Plan,
    out: Path,
    command: str,
    *,
    deadline: Deadline | None = None,
    resume: Path | None = None,
) -> Comparison:
    """Returns a comparison as a new run under `out`, or as one that was begun, ready to be executed.

    Args:
        benchmarks: that both sides run.
        base: what it is now.
        head: what is proposed.
        plan: how; without rounds, a deadline is needed.
        out: folder that holds runs.
        command: as typed.
        deadline: of the whole comparison.
        resume: a run of the same comparison that was interrupted, stopped by its budget or killed; its whole rounds
            count, and one that was begun is taken again.

    Raises:
        StoreError: if that run is of another comparison, or was begun under other conditions.
        ValueError: if instructions are to be counted and cannot be.
    """
    from wallclock.bench.measure.environment import provenance, resolve_device

    with Telemetry() as telemetry:
        device_type = "cpu" if telemetry.driver() is None else resolve_device("auto")  # which imports torch
    if plan.counts and shutil.which("valgrind") is None and any(b.counted == "callgrind" for b in benchmarks):
        raise ValueError("counting instructions needs valgrind; install it (Debian: apt install valgrind)")
    request, place = new_request(benchmarks, base, head, plan), provenance(device_type)
    if resume is not None:
        _check_same(resume, request, place)
        writer = RunWriter.resume(resume)
        return Comparison(benchmarks, base, head, plan, writer, deadline, going_on=True)
    run = Run(
        run_id=new_run_id("comparison"), started_utc=utc_now(), command=command, request=request, **place
    )  # fmt: skip
    return Comparison(benchmarks, base, head, plan, RunWriter.create(out, run), deadline)


def _check_same(path: Path, request: dict[str, Any], place: dict[str, Any]) -> None:
    """Refuses to go on with what was another comparison, or may have become one."""
    run = begun_run(path, BENCHMARK)
    now = json.loads(json.dumps(request))
    changed = [name for name in sorted({*run.request, *now}) if run.request.get(name) != now.get(name)]
    if changed:
        raise StoreError(f"{path} was begun with another {' and '.join(changed)}; give the same command, or begin anew")
    if any(now[arm].get("dirty") for arm in (BASE, HEAD)):
        raise StoreError(f"{path} is of a tree whose changes nobody committed, and may be others by now; begin anew")
    check_same_place(run, place, path)


def _rounds_done(samples: pd.DataFrame, names: Iterable[str], turns: int, fixed: bool) -> int:
    """Returns how many rounds a comparison need not take again.

    Args:
        samples: that it has.
        names: of its benchmarks.
        turns: of each in a round.
        fixed: whether there is a number of rounds, of which then none may lack a benchmark.
    """
    done = []
    for name in names:
        own = samples[(samples["case"] == name) & (samples["phase"] == "steady")] if len(samples) else samples
        arms: Mapping[Any, int] = dict(own.groupby("round")["arm"].nunique()) if len(own) else {}
        whole = {int(number) for number, count in arms.items() if count == turns}
        done.append(next(number for number in itertools.count() if number not in whole))
    return (min if fixed else max)(done, default=0)


def spoken_s(seconds: float) -> str:
    """Returns a time as one would say it."""
    if not math.isfinite(seconds):
        return "no limit"
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
