"""Printing and exit codes that all commands share. This module does not import torch."""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

USAGE_ERROR, INVALID_RESULT = 2, 3
REPORT_PAGE = "report.html"


def consoles() -> "tuple[Console, Console]":
    """Returns standard output for results and standard error for progress, 80 columns wide outside a terminal."""
    from rich.console import Console

    width = None if sys.stderr.isatty() or "COLUMNS" in os.environ else 80
    out, progress = (Console(stderr=e, soft_wrap=False, highlight=False, width=width) for e in (False, True))
    return out, progress


def print_progress(text: str, *, style: str = "", soft_wrap: bool = False) -> None:
    """Prints a line of progress to standard error."""
    consoles()[1].print(text, style=style, markup=False, soft_wrap=soft_wrap)


def print_json(document: Any) -> None:
    """Prints a document as JSON to standard output; values of types unknown to JSON become strings."""
    typer.echo(json.dumps(document, indent=2, default=str))


def print_table(rows: Iterable[Sequence[Any]], *headers: str) -> None:
    """Prints rows of texts under headers to standard output, without a border."""
    from rich.table import Table

    table = Table(*headers, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    consoles()[0].print(table)


def typed_command() -> str:
    """Returns the command line as the user typed it, for the records."""
    return shlex.join(["wallclock", *sys.argv[1:]])


def print_report(
    paths: list[Path], *, as_json: bool, html: Path | None = None, csv: Path | None = None, markdown: Path | None = None
) -> None:
    """Prints the tables of the runs in `paths`, and writes an HTML, CSV or Markdown file where a path is given."""
    from wallclock.reports.format import text as tables
    from wallclock.reports.report import Report

    out, _ = consoles()
    made = Report(paths)
    for problem in made.samples.attrs["skipped"]:
        print_progress(f"skipped: {problem}", style="yellow")
    if html is not None:
        made.page(html)
    if csv is not None:
        _write(csv, made.summaries["summary"].to_csv(index=False))
    if markdown is not None:
        _write(markdown, made.markdown())
    if as_json:
        print_json({name: json.loads(frame.to_json(orient="records")) for name, frame in made.summaries.items()})
        return
    for title, rows in made.tables().items():
        out.print(title, style="bold")
        out.print(tables.terminal(rows))
        out.print()
    for row in made.runs[made.runs["run_status"] != "done"].to_dict("records"):
        why = "; ".join([*([row["error"]] if row["error"] else []), *row["notes"]])
        out.print(f"{row['run_id']}: {row['run_status']}. {why}".rstrip(". ") + ".", markup=False)
    if html is not None:
        out.print(f"report: {html}", markup=False, soft_wrap=True)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def interruptible(records: Path, then: str = "") -> Iterator[None]:
    """Prints after Ctrl-C where the records are and what to do next (`then`); typer exits with 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"wallclock: interrupted; what was measured is in {records}", err=True)
        typer.echo(f"look at it with `wallclock report {records}`{then}", err=True)
        raise


def exit_for(statuses: list[str]) -> None:
    """Exits with `INVALID_RESULT` if any status is "diverged" or "failed"."""
    if any(status in ("diverged", "failed") for status in statuses):
        raise typer.Exit(INVALID_RESULT)


def end_run(path: Path, status: str, *, as_json: bool, html: Path | None = None) -> None:
    """Prints the tables of one run and the path of its records, and exits with the code of its status."""
    print_report([path], as_json=as_json, html=html)
    if not as_json:
        typer.echo(f"records: {path}")
    exit_for([status])
