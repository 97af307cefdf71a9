"""`wallclock bisect`: finds the commit that made a benchmark slower."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from wallclock.bench.cli.options import RUNS, Json, Out, Repository, Timeout, Tolerance, seconds
from wallclock.bench.cli.output import interruptible, print_json, print_progress, typed_command


def bisect(
    good: Annotated[str, typer.Argument(help="A revision that was fast.")],
    bad: Annotated[str, typer.Argument(help="A later one that is slow.")] = "HEAD",
    benchmark: Annotated[str | None, typer.Option(help="Declared benchmark that became slower.")] = None,
    command: Annotated[str | None, typer.Option(help="Run this in each commit's tree instead.")] = None,
    metric: Annotated[str | None, typer.Option(help="What it prints that became worse; its time otherwise.")] = None,
    tolerance: Tolerance = None,
    budget: Annotated[str, typer.Option(help="Time for each commit, such as 5m.")] = "5m",
    timeout: Timeout = 600.0,
    repository: Repository = Path(),
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Find the commit that made a benchmark slower. Exit code 0 found, 4 where commits had to be skipped."""
    from wallclock.bench.compare.benchmarks import Benchmark, read_settings
    from wallclock.bench.compare.bisect import Bisection
    from wallclock.bench.compare.gate import INCONCLUSIVE
    from wallclock.bench.compare.git import git
    from wallclock.bench.compare.sides import parse_subject
    from wallclock.reports.stats.verdicts import Rule
    from wallclock.reports.store.write import new_run_id

    sides = [parse_subject(f"git:{text}", repository) for text in (good, bad)]
    if (benchmark is None) == (command is None):
        raise ValueError("give one of --benchmark NAME and --command COMMAND")
    settings = read_settings(repository)
    if command is not None:
        chosen = Benchmark(name="command", command=command, timeout_s=timeout)
    else:
        chosen = settings.named(str(benchmark))
    chosen = replace(chosen, metrics=(metric or "process_s",))
    usual = settings.tolerance if chosen.tolerance is None else chosen.tolerance
    rule = Rule(tolerance=usual if tolerance is None else tolerance)
    folder = out / new_run_id("bisect")
    search = Bisection(
        repository=repository,
        data=settings.data,
        benchmark=chosen,
        rule=rule,
        step_s=seconds(budget),
        out=folder,
        command=typed_command(),
    )
    with interruptible(folder):
        found = search.find(sides[0], sides[1], print_progress)
    lines = [git(repository, "show", "-s", "--format=%h %an %as: %s", revision) for revision in found.candidates]
    if json_:
        print_json({**asdict(found), "described": lines})
    else:
        known = len(lines) == 1
        typer.echo("the first slow commit:" if known else "it is one of these; the rest could not be judged:")
        for line in lines:
            typer.echo(f"  {line}")
        typer.echo(f"records: {folder}")
    if len(lines) > 1:
        raise typer.Exit(INCONCLUSIVE)
