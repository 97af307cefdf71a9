"""`wallclock compare` and `gate`: verdicts on two sides, from runs in turns or from stored runs."""

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallclock.bench.cli.options import RUNS, Json, Out, Repository, Timeout, Tolerance, seconds
from wallclock.bench.cli.output import (
    INVALID_RESULT,
    consoles,
    interruptible,
    print_json,
    print_progress,
    typed_command,
)

if TYPE_CHECKING:
    import pandas as pd

# Python's own instructions vary by less than 0.1% from run to run; two rounds show whether other counts vary more.
COUNTING_ROUNDS, COUNTING_TOLERANCE = 2, 0.005
GATE_STYLES = {0: "green", 1: "bold red", 3: "bold red"}  # of the gate's last line, by exit code

Only = Annotated[list[str] | None, typer.Option("--benchmark", help="Declared benchmark to run; repeat it for more.")]
Command = Annotated[
    list[str] | None,
    typer.Option(help="Run this on both sides instead of what pyproject.toml declares; NAME=COMMAND names it."),
]
Counts = Annotated[
    bool,
    typer.Option("--counts", help="Compare what is counted instead of times: for runners whose clocks say nothing."),
]
Rounds = Annotated[int | None, typer.Option(help="Exactly so many rounds, in each of which every side has a turn.")]
Budget = Annotated[
    str | None,
    typer.Option(help="Measure until it is clear, at most this long, such as 10m; 45s a benchmark by default."),
]
Metric = Annotated[
    list[str] | None,
    typer.Option(help="Judge this figure alone: process_s, process_cpu_s, or what is printed; repeat it for more."),
]
AcceptChanged = Annotated[
    bool,
    typer.Option(
        "--accept-changed-benchmarks", help="Measure what the head declares otherwise too, each by its own command."
    ),
]


def compare(
    base: Annotated[str, typer.Argument(help="Stored runs, a git revision, '.', a recipe, or a command.")],
    head: Annotated[str, typer.Argument(help="What is proposed, named in the same ways.")],
    only: Only = None,
    command: Command = None,
    tolerance: Tolerance = None,
    metric: Metric = None,
    accept_changed: AcceptChanged = False,
    rounds: Rounds = None,
    budget: Budget = None,
    counts: Counts = False,
    again: Annotated[bool, typer.Option(help="Measure the base twice in each round, to judge the machine.")] = True,
    warm_up: Annotated[bool, typer.Option(help="Run both sides before the first round.")] = True,
    timeout: Timeout = 600.0,
    repository: Repository = Path(),
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run of the same command; its whole rounds count.")
    ] = None,
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Say whether HEAD is slower or faster than BASE.

    In turns, with an interval, a verdict and its reason.
    """
    rows = _compare_sides(
        base, head, only=only or (), commands=command or (), tolerance=tolerance, rounds=rounds, budget=budget,
        again=again and not counts, timeout=timeout, repository=repository, out=out, warm_up=warm_up, resume=resume,
        accept_changed=accept_changed, counts=counts, metrics=metric or (),
    )  # fmt: skip
    _print_verdicts(rows, as_json=json_)
    if not len(rows):
        print_progress("wallclock: nothing was compared: neither side has such a figure")
    if (rows["verdict"] == "invalid").all():  # or there is none
        raise typer.Exit(INVALID_RESULT)


def gate(
    base: Annotated[str, typer.Argument(help="Revision to compare with, or stored runs.")] = "main",
    head: Annotated[str, typer.Argument(help="What is proposed: '.' for the tree as it is.")] = ".",
    only: Only = None,
    command: Command = None,
    tolerance: Tolerance = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail, with 4, where a verdict is inconclusive.")] = False,
    counts: Counts = False,
    metric: Metric = None,
    accept_changed: AcceptChanged = False,
    rounds: Rounds = None,
    budget: Budget = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Append Markdown here; $GITHUB_STEP_SUMMARY by default.")] = None,
    timeout: Timeout = 600.0,
    repository: Repository = Path(),
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Pass or fail a change in CI.

    Exit code 0 fine, 1 regression, 2 usage, 3 invalid, 4 inconclusive (--strict).
    """
    from wallclock.bench.compare.gate import NOT_SHOWN, exit_code, step_summary
    from wallclock.bench.compare.gate import junit as junit_xml
    from wallclock.reports.format import text as tables
    from wallclock.reports.views.comparison import comparison_rows

    def leave(records: list[dict[str, Any]], table: str, message: str, trouble: str = "") -> None:
        if junit is not None:
            junit.parent.mkdir(parents=True, exist_ok=True)
            junit.write_text(junit_xml(records, strict=strict, trouble=trouble), encoding="utf-8")
        if where := summary or os.environ.get("GITHUB_STEP_SUMMARY"):
            with open(where, "a", encoding="utf-8") as file:
                file.write(step_summary(records, table, message))

    try:
        rows = _compare_sides(
            base, head, only=only or (), commands=command or (), tolerance=tolerance, rounds=rounds, budget=budget,
            again=not counts, timeout=timeout, repository=repository, out=out, counts=counts,
            accept_changed=accept_changed, metrics=metric or (),
        )  # fmt: skip
    except BaseException as error:  # also Ctrl-C: whoever reads the files learns why there is no verdict
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{error}"
        leave([], "", f"no verdict: {why}", trouble=why)
        raise
    records = [{str(k): v for k, v in row.items()} for row in rows.to_dict("records")]
    code, message = exit_code(records, strict=strict)
    _print_verdicts(rows, as_json=json_)
    leave(records, tables.markdown(comparison_rows(rows)), message)
    style = "bold yellow" if message.startswith(NOT_SHOWN) else GATE_STYLES[code]
    consoles()[1].print(f"wallclock gate: {message}", style=style, markup=False, soft_wrap=True)
    if code:
        raise typer.Exit(code)


def _compare_sides(
    base: str,
    head: str,
    *,
    only: Sequence[str],
    commands: Sequence[str],
    tolerance: float | None,
    rounds: int | None,
    budget: str | None,
    again: bool,
    timeout: float,
    repository: Path,
    out: Path,
    metrics: Sequence[str] = (),
    counts: bool = False,
    accept_changed: bool = False,
    warm_up: bool = True,
    resume: Path | None = None,
) -> "pd.DataFrame":
    """Checks the options, compares the two sides, measured now or stored, and returns the verdicts."""
    from wallclock import reports
    from wallclock.bench.compare.plan import Plan
    from wallclock.bench.compare.rounds import Comparison
    from wallclock.bench.compare.sides import choose_benchmarks, parse_subject, prepare_side, settings_of
    from wallclock.bench.measure.timing import Deadline
    from wallclock.reports.stats.verdicts import Rule
    from wallclock.reports.views.comparison import stored_summary

    sides = [parse_subject(text, repository) for text in (base, head)]
    settings = settings_of(sides[0], repository)
    rule = Rule(tolerance=settings.tolerance if tolerance is None else tolerance)
    stored = [side.kind == "run" for side in sides]
    if any(stored):
        if not all(stored):
            raise ValueError(
                "one side is stored and the other is not: they would be measured apart; store both, or none"
            )
        if rounds or budget or only or commands or resume:
            raise ValueError(
                "stored runs are measured already; leave out --rounds, --budget, --benchmark, --command and --resume"
            )
        before, after = (reports.load(Path(side.text)) for side in sides)
        return stored_summary(before, after, rule)
    benchmarks = choose_benchmarks(sides, only, commands, timeout, repository)
    benchmarks = [b for b in benchmarks if b.counted != ("never" if counts else "printed")]
    if not benchmarks:
        raise ValueError(f"no benchmark is one of {'counts' if counts else 'times'}; see counted in docs/ci.md")
    if counts:
        if budget is not None:
            raise ValueError("counts need no time budget: they hardly vary; leave out --budget")
        rounds = rounds or COUNTING_ROUNDS
        if tolerance is None:  # that of times allows for a clock
            rule = replace(rule, tolerance=COUNTING_TOLERANCE)
    if metrics:
        benchmarks = [replace(b, metrics=tuple(metrics)) for b in benchmarks]
    if tolerance is not None:  # this tolerance replaces those that benchmarks declare
        benchmarks = [replace(b, tolerance=None) for b in benchmarks]
    if rounds is not None and rounds < 1:
        raise ValueError(f"rounds is {rounds}; expected at least 1")
    if rounds is not None and budget is not None:
        raise ValueError("rounds are fixed, or as many as a budget holds; give --rounds or --budget")
    plan = Plan(
        rule=replace(rule, spend=rounds is None),
        rounds=rounds or 0,
        again=again,
        counts=counts,
        warm_up=warm_up,
        accept_changed=accept_changed,
    )
    deadline = None if budget is None else Deadline(seconds(budget))
    with ExitStack() as stack:
        of_head = [b.of_head or b for b in benchmarks]
        first = stack.enter_context(prepare_side(sides[0], benchmarks, repository, settings.data))
        second = stack.enter_context(prepare_side(sides[1], of_head, repository, settings.data))
        run = Comparison(benchmarks, first, second, plan, out, typed_command(), deadline=deadline, resume=resume)
        path = run.writer.path
        try:
            with interruptible(path, f", or go on: the same command with --resume {path}"):
                run.execute(print_progress)
        except KeyboardInterrupt:
            _print_verdicts(run.verdicts(), as_json=False)
            raise
    print_progress(f"records: {path}", soft_wrap=True)
    return run.verdicts()


def _print_verdicts(rows: "pd.DataFrame", *, as_json: bool) -> None:
    from wallclock.reports.format import text as tables
    from wallclock.reports.views.comparison import comparison_rows

    if as_json:
        print_json(json.loads(rows.to_json(orient="records")))
        return
    out, _ = consoles()
    out.print(tables.terminal(comparison_rows(rows)))
