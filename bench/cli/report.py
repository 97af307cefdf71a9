"""`wallclock report`, `history` and `serve`: make tables and pages from stored runs."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from wallclock.bench.cli.options import Html, Json, Paths
from wallclock.bench.cli.output import consoles, print_progress, print_report


def report(
    paths: Paths,
    html: Html = None,
    csv: Annotated[Path | None, typer.Option(help="Write the summary of every metric as CSV here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as Markdown here.")] = None,
    json_: Json = False,
) -> None:
    """Make tables and pages from stored runs, finished or not."""
    print_report(paths, as_json=json_, html=html, csv=csv, markdown=markdown)


def history(
    paths: Paths,
    metric: Annotated[str | None, typer.Option(help="Show this one alone.")] = None,
    html: Html = None,
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
    if summary.empty:  # as on the first run in CI
        print_progress("no trend yet: it needs two runs of one benchmark on one machine with one setting")
        return
    for problem in samples.attrs.get("skipped", ()):
        print_progress(f"skipped: {problem}", style="yellow")
    out, _ = consoles()
    out.print(tables.terminal(history_rows(summary)))
    if html is not None:
        out.print(f"report: {html}", markup=False, soft_wrap=True)


def serve(
    paths: Annotated[list[Path], typer.Argument(help="Runs, or folders that hold some or will.")],
    port: Annotated[int, typer.Option(help="On this machine's own address; 0 for any free one.")] = 8710,
) -> None:
    """Show the page of a folder that is being written to.

    In a browser on this machine, refreshed as records arrive.
    """
    from wallclock.bench.cli.serve import LivePage, server

    if missing := [path for path in paths if not path.exists()]:
        raise ValueError(f"no such path: {missing[0]}; make it, or name a folder that holds runs")
    with server(LivePage(paths), port) as serving:
        typer.echo(f"http://{serving.server_address[0]!s}:{serving.server_port}/  (Ctrl-C ends it)")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            serving.serve_forever()
