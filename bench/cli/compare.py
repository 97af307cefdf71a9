"""`wallclock compare`, `gate`, `bisect` and `calibrate`: verdicts, and what they rest on."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallclock.bench.cli.options import RUNS, Json, Out, consoles, interruptible, seconds, typed_command
from wallclock.bench.compare.sides import Benchmark, Subject

if TYPE_CHECKING:
    import pandas as pd

    from wallclock.bench.compare.rounds import Plan
    from wallclock.reports.stats.verdicts import Rule

# Of counts: Python's own vary by less than a thousandth from run to run, and twice is enough to see whether they do.
COUNTING_ROUNDS, COUNTING_TOLERANCE = 2, 0.005

Tolerance = Annotated[
    float | None, typer.Option(help="A change up to this share is no matter; 0.02 by default, or as declared.")
]
Only = Annotated[list[str] | None, typer.Option("--benchmark", help="Declared benchmark to run; repeat it for more.")]
Command = Annotated[
    list[str] | None,
    typer.Option(help="Run this on both sides instead of what pyproject.toml declares; NAME=COMMAND names it."),
]
Rounds = Annotated[int | None, typer.Option(help="Rounds in which each side has a turn; 12 or more by default.")]
Budget = Annotated[
    str | None, typer.Option(help="Spend up to this long, such as 10m, on what is not yet clear; no fixed rounds then.")
]
Timeout = Annotated[float, typer.Option(help="Seconds after which a command has failed.")]
Folder = Annotated[Path, typer.Option("--repository", help="The repository, and where commands run.")]


def compare(
    base: Annotated[str, typer.Argument(help="Stored runs, a git revision, '.', a recipe, or a command.")],
    head: Annotated[str, typer.Argument(help="The same; what is proposed.")],
    only: Only = None,
    command: Command = None,
    tolerance: Tolerance = None,
    rounds: Rounds = None,
    budget: Budget = None,
    again: Annotated[bool, typer.Option(help="Measure the base twice in each round, to judge the machine.")] = True,
    warm_up: Annotated[bool, typer.Option(help="Run both sides before the first round.")] = True,
    timeout: Timeout = 600.0,
    repository: Folder = Path(),
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run of the same command; its whole rounds count.")
    ] = None,
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Say whether HEAD is slower or faster than BASE.

    In turns, with an interval, a verdict and its reason.
    """
    rows = _compared(
        base, head, only=only, commands=command, tolerance=tolerance, rounds=rounds, budget=budget, again=again,
        timeout=timeout, repository=repository, out=out, warm_up=warm_up, resume=resume,
    )  # fmt: skip
    _print(rows, as_json=json_)
    if len(rows) and (rows["verdict"] == "invalid").all():
        raise typer.Exit(3)


def gate(
    base: Annotated[str, typer.Argument(help="Revision to compare with, or stored runs.")] = "main",
    head: Annotated[str, typer.Argument(help="What is proposed: '.' for the tree as it is.")] = ".",
    only: Only = None,
    command: Command = None,
    tolerance: Tolerance = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail, with 4, where a verdict is inconclusive.")] = False,
    counts: Annotated[
        bool,
        typer.Option(
            "--counts", help="Compare what is counted instead of times: for runners whose clocks say nothing."
        ),
    ] = False,
    rounds: Rounds = None,
    budget: Budget = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Append Markdown here; $GITHUB_STEP_SUMMARY by default.")] = None,
    timeout: Timeout = 600.0,
    repository: Folder = Path(),
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Pass or fail a change in CI.

    Exit code 0 fine, 1 regression, 2 usage, 3 invalid, 4 inconclusive (--strict).
    """
    from wallclock.bench.compare.gate import exit_code, step_summary
    from wallclock.bench.compare.gate import junit as junit_xml
    from wallclock.reports.format import text as tables
    from wallclock.reports.views.comparison import comparison_rows

    rows = _compared(
        base, head, only=only, commands=command, tolerance=tolerance, rounds=rounds, budget=budget, again=not counts,
        timeout=timeout, repository=repository, out=out, counts=counts,
    )  # fmt: skip
    records = [{str(k): v for k, v in row.items()} for row in rows.to_dict("records")]
    code, message = exit_code(records, strict=strict)
    _print(rows, as_json=json_)
    if junit is not None:
        junit.parent.mkdir(parents=True, exist_ok=True)
        junit.write_text(junit_xml(records, strict=strict), encoding="utf-8")
    where = summary or (Path(os.environ["GITHUB_STEP_SUMMARY"]) if os.environ.get("GITHUB_STEP_SUMMARY") else None)
    if where is not None:
        with open(where, "a", encoding="utf-8") as file:
            file.write(step_summary(records, tables.markdown(comparison_rows(rows)), message))
    typer.echo(f"wallclock gate: {message}", err=True)
    if code:
        raise typer.Exit(code)


def _compared(
    base: str,
    head: str,
    *,
    only: Sequence[str] | None,
    commands: Sequence[str] | None,
    tolerance: float | None,
    rounds: int | None,
    budget: str | None,
    again: bool,
    timeout: float,
    repository: Path,
    out: Path,
    counts: bool = False,
    warm_up: bool = True,
    resume: Path | None = None,
) -> "pd.DataFrame":
    """Compares two subjects, live or stored; returns the verdicts."""
    from wallclock.bench.compare.rounds import Plan
    from wallclock.bench.compare.sides import parse_subject, settings
    from wallclock.reports.stats.verdicts import Rule

    sides = [parse_subject(text, repository) for text in (base, head)]
    declared = settings(repository)
    rule = Rule(tolerance=declared.get("tolerance", 0.02) if tolerance is None else tolerance)
    if any(side.stored for side in sides):
        if not all(side.stored for side in sides):
            raise ValueError(
                "one side is stored and the other is not: they would be measured apart; store both, or none"
            )
        if rounds or budget or only or commands or resume:
            raise ValueError(
                "stored runs are measured already; leave out --rounds, --budget, --benchmark, --command and --resume"
            )
        return _stored(sides, rule)
    benchmarks = _benchmarks(sides, only, commands, timeout, repository)
    if tolerance is not None:  # given here, it is everyone's
        benchmarks = [replace(b, tolerance=None) for b in benchmarks]
    benchmarks = [b for b in benchmarks if b.counted != ("never" if counts else "printed")]
    if not benchmarks:
        raise ValueError(f"no benchmark is one of {'counts' if counts else 'times'}; see counted in docs/ci.md")
    if counts:
        if budget is not None:
            raise ValueError("counts need no time budget: they hardly vary; leave out --budget")
        rounds = rounds or COUNTING_ROUNDS
        if tolerance is None:
            rule = replace(rule, tolerance=COUNTING_TOLERANCE)
            benchmarks = [replace(b, tolerance=None) for b in benchmarks]
    if rounds is not None and rounds < 1:
        raise ValueError(f"rounds is {rounds}; expected at least 1")
    if rounds is not None and budget is not None:
        raise ValueError("rounds are fixed, or as many as a budget holds; give --rounds or --budget")
    if budget is not None:
        rule = replace(rule, spend=True)
    plan = Plan(rule=rule, rounds=rounds or 0, again=again, counts=counts, warm_up=warm_up)
    return _live(sides, benchmarks, plan, budget, repository=repository, out=out, resume=resume)


def _stored(sides: Sequence[Subject], rule: "Rule") -> "pd.DataFrame":
    from wallclock import reports
    from wallclock.reports.views.comparison import stored_summary

    base, head = (reports.load(Path(side.text)) for side in sides)
    return stored_summary(base, head, rule)


def _benchmarks(
    sides: Sequence[Subject],
    only: Sequence[str] | None,
    commands: Sequence[str] | None,
    timeout: float,
    repository: Path,
) -> list[Benchmark]:
    """What both sides run: their own commands, those given, or those that the project declares."""
    from wallclock.bench.compare.sides import read_benchmarks

    kinds = {side.kind for side in sides}
    if kinds <= {"cmd", "recipe"}:
        if only or commands:
            raise ValueError("commands and recipes are what is measured; leave out --benchmark and --command")
        if kinds != {"recipe"}:
            return [Benchmark(name="command", command="", timeout_s=timeout)]
        from wallclock.bench.compare.recipe_turn import parse_recipe
        from wallclock.reports.format.text import ABLATIONS

        tasks = {parse_recipe(side.text, "cpu")[0].name for side in sides}
        if len(tasks) > 1:
            raise ValueError(f"{' and '.join(sorted(tasks))} have no figure in common; compare recipes of one task")
        (task,) = tasks
        return [Benchmark(name=task, command="", timeout_s=timeout, metrics=ABLATIONS[f"{task} ablation"][:1])]
    if kinds & {"cmd", "recipe"}:
        raise ValueError("a revision runs benchmarks, a command or a recipe is one; name two of one sort")
    if commands:
        return [
            Benchmark(name=name.strip() if rest else f"command {number}", command=rest or text, timeout_s=timeout)
            for number, text in enumerate(commands, start=1)
            for name, rest in [_named(text)]
        ]
    return read_benchmarks(repository, only or ())


def _named(text: str) -> tuple[str, str]:
    """A command's name and itself, of `NAME=COMMAND`; `A=1 command` sets a variable and has no name."""
    name, equals, rest = text.partition("=")
    if equals and name.replace("-", "").replace("_", "").isalnum() and not name.isupper() and " " not in name:
        return name, rest
    return "", ""


def _live(
    sides: Sequence[Subject],
    benchmarks: list[Benchmark],
    plan: "Plan",
    budget: str | None,
    *,
    repository: Path,
    out: Path,
    resume: Path | None,
) -> "pd.DataFrame":
    from wallclock import reports
    from wallclock.bench.compare.rounds import new_comparison
    from wallclock.bench.measure.timing import Deadline
    from wallclock.reports.views.comparison import comparison_summary

    deadline = Deadline(None if budget is None else seconds(budget))
    _, progress = consoles()
    with _both(sides, benchmarks, repository) as (base, head):
        run = new_comparison(
            benchmarks, base, head, plan, out, typed_command(), deadline=deadline, resume=resume
        )  # fmt: skip
        path = run.writer.path
        try:
            with interruptible(path, f", or go on: the same command with --resume {path}"):
                run.execute(lambda text: progress.print(text, markup=False))
        except KeyboardInterrupt:
            _print(comparison_summary(reports.load(path), reports.load_runs(path)), as_json=False)
            raise
    progress.print(f"records: {path}", markup=False, soft_wrap=True)
    return comparison_summary(reports.load(path), reports.load_runs(path))


@contextlib.contextmanager
def _both(sides: Sequence[Subject], benchmarks: list[Benchmark], repository: Path) -> Iterator[tuple[Any, Any]]:
    from wallclock.bench.compare.sides import prepared

    with prepared(sides[0], benchmarks, repository) as base, prepared(sides[1], benchmarks, repository) as head:
        yield base, head


def _print(rows: "pd.DataFrame", *, as_json: bool) -> None:
    from wallclock.reports.format import text as tables
    from wallclock.reports.views.comparison import comparison_rows

    if as_json:
        typer.echo(json.dumps(json.loads(rows.to_json(orient="records")), indent=2))
        return
    out, _ = consoles()
    out.print(tables.terminal(comparison_rows(rows)))


def calibrate(
    comparisons: Annotated[int, typer.Option(help="Comparisons of a program with itself, on this machine.")] = 200,
    planted: Annotated[int, typer.Option(help="Comparisons for each planted slow-down of 3, 5 and 10%.")] = 40,
    loaded: Annotated[int, typer.Option(help="Comparisons of each kind while a core is kept busy.")] = 20,
    simulated: Annotated[int, typer.Option(help="Comparisons of each kind of simulated noise.")] = 10_000,
    rounds: Annotated[int, typer.Option(help="Rounds of each comparison.")] = 12,
    tolerance: Annotated[float, typer.Option(help="A change up to this share is no matter.")] = 0.02,
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Check the verdicts by comparisons whose truth is known.

    Simulated, and on this machine; about 20 minutes.
    """
    from wallclock import reports
    from wallclock.bench.cli.options import REPORT_PAGE, print_report
    from wallclock.bench.compare.calibration import CalibrationRequest, new_calibration
    from wallclock.reports.stats.verdicts import Rule
    from wallclock.reports.views.calibration import calibration_summary, wrong

    request = CalibrationRequest(
        comparisons=comparisons, planted=planted, loaded=loaded, simulated=simulated, rounds=rounds,
        rule=Rule(tolerance=tolerance),
    )  # fmt: skip
    _, progress = consoles()
    run = new_calibration(request, out, typed_command())
    path = run.writer.path
    with interruptible(path):
        run.execute(lambda text: progress.print(text, markup=False))
    print_report([path], as_json=json_, html=path / REPORT_PAGE)
    found = wrong(calibration_summary(reports.load(path), reports.load_runs(path)), request.rule)
    for text in found:
        typer.echo(f"wallclock: too many false verdicts: {text}", err=True)
    if found:
        raise typer.Exit(3)


def bisect(
    good: Annotated[str, typer.Argument(help="A revision that was fast.")],
    bad: Annotated[str, typer.Argument(help="A later one that is slow.")] = "HEAD",
    benchmark: Annotated[str | None, typer.Option(help="Declared benchmark that became slower.")] = None,
    command: Annotated[str | None, typer.Option(help="Run this in each commit's tree instead.")] = None,
    metric: Annotated[str | None, typer.Option(help="What it prints that became worse; its time otherwise.")] = None,
    tolerance: Tolerance = None,
    budget: Annotated[str, typer.Option(help="Time for each commit, such as 5m.")] = "5m",
    timeout: Timeout = 600.0,
    repository: Folder = Path(),
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Find the commit that made a benchmark slower. Exit code 0 found, 4 where commits had to be skipped."""
    from wallclock.bench.compare.bisect import Bisection, described
    from wallclock.bench.compare.sides import parse_subject, read_benchmarks, settings
    from wallclock.reports.stats.verdicts import Rule
    from wallclock.reports.store.write import new_run_id

    sides = [parse_subject(f"git:{text}", repository) for text in (good, bad)]
    if (benchmark is None) == (command is None):
        raise ValueError("give one of --benchmark NAME and --command COMMAND")
    if command is not None:
        chosen = Benchmark(name="command", command=command, timeout_s=timeout)
    else:
        (chosen,) = read_benchmarks(repository, [str(benchmark)])
    chosen = replace(chosen, metrics=(metric or "process_s",))
    usual = settings(repository).get("tolerance", 0.02) if chosen.tolerance is None else chosen.tolerance
    rule = Rule(tolerance=usual if tolerance is None else tolerance)
    folder = out / new_run_id("bisect")
    _, progress = consoles()
    search = Bisection(repository, chosen, rule, seconds(budget), folder, typed_command())
    with interruptible(folder):
        found = search.find(sides[0], sides[1], lambda text: progress.print(text, markup=False))
    lines = described(repository, found.candidates)
    if json_:
        typer.echo(json.dumps({**asdict(found), "described": lines}, indent=2, default=str))
    else:
        known = len(lines) == 1
        typer.echo("the first slow commit:" if known else "it is one of these; the rest could not be judged:")
        for line in lines:
            typer.echo(f"  {line}")
        typer.echo(f"records: {folder}")
    if len(lines) > 1:
        raise typer.Exit(4)


def history(
    paths: Annotated[list[Path], typer.Argument(help="Runs, or folders that hold some.")],
    metric: Annotated[str | None, typer.Option(help="Show this one alone.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the HTML page here.")] = None,
    json_: Json = False,
) -> None:
    """Show how figures went from run to run.

    On one machine with one setting, and at which commits they changed.
    """
    from wallclock import reports
    from wallclock.reports.format import text as tables
    from wallclock.reports.views.history import history_rows, history_summary

    samples, runs = reports.load(paths, on_damage="skip"), reports.load_runs(paths, on_damage="skip")
    if metric is not None:
        if metric not in set(samples["metric"]):
            raise ValueError(f"no metric '{metric}' there; there are {', '.join(sorted(samples['metric'].unique()))}")
        samples = samples[samples["metric"] == metric]
    summary = history_summary(samples, runs)
    if html is not None:
        reports.build_page(samples, runs, html)
    if json_:
        typer.echo(summary.to_json(orient="records", indent=2))
        return
    if summary.empty:
        raise ValueError("no series of two runs or more: a series is one benchmark on one machine with one setting")
    out, progress = consoles()
    for problem in samples.attrs.get("skipped", ()):
        progress.print(f"skipped: {problem}", style="yellow", markup=False)
    out.print(tables.terminal(history_rows(summary)))
    if html is not None:
        out.print(f"report: {html}", markup=False, soft_wrap=True)
