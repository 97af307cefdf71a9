"""What every command shares: its options, what it prints, and how it ends. No torch here."""

import contextlib
import enum
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

USAGE_ERROR, INVALID_RESULT = 2, 3
RUNS = Path("runs")
REPORT_PAGE = "report.html"

Out = Annotated[Path, typer.Option(help="Folder that runs are written to, each in a directory of its own.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Resume = Annotated[Path | None, typer.Option(help="Go on with this run; no other option but --json applies.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto for the GPU where there is one.")]

Set = Annotated[list[str] | None, typer.Option("--set", help="Change a recipe field, such as epochs=2.")]


class Engine(enum.StrEnum):
    """What rounds or trials run on besides this process."""

    ray = "ray"


On = Annotated[Engine | None, typer.Option(help="ray: each is a task of a Ray cluster, with a whole GPU or some CPUs.")]
Cpus = Annotated[int, typer.Option(help="With --on ray and --device cpu: of each task.")]


def consoles() -> "tuple[Console, Console]":
    """Standard output for results and standard error for progress, 80 columns wide where no terminal says otherwise."""
    from rich.console import Console

    return tuple(Console(stderr=e, soft_wrap=False, highlight=False, width=_width()) for e in (False, True))  # type: ignore[return-value]


def _width() -> int | None:
    return None if sys.stderr.isatty() or "COLUMNS" in os.environ else 80


def typed_command() -> str:
    """Returns the command line as typed, for the records."""
    return shlex.join(["wallclock", *sys.argv[1:]])


def seconds(text: str) -> float:
    """Returns the seconds of a time such as 90s, 8m or 1h.

    Raises:
        ValueError: if it is none.
    """
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        found = float(number) * units[unit]
    except ValueError:
        found = -1.0
    if not 0 < found < float("inf"):
        raise ValueError(f"budget is '{text}'; expected a time such as 90s, 8m or 1h")
    return found


def print_report(
    paths: list[Path],
    *,
    as_json: bool,
    html: Path | None = None,
    csv: Path | None = None,
    markdown: Path | None = None,
) -> None:
    """Prints the tables of what lies at the paths, and writes the files asked for."""
    from wallclock.reports.format import text as tables
    from wallclock.reports.report import Report

    out, progress = consoles()
    made = Report(paths)
    for problem in made.samples.attrs["skipped"]:
        progress.print(f"skipped: {problem}", style="yellow", markup=False)
    if html is not None:
        made.page(html)
    if csv is not None:
        _write(csv, tables.csv(made.summaries["summary"]))
    if markdown is not None:
        _write(markdown, made.markdown())
    if as_json:
        document = {name: json.loads(frame.to_json(orient="records")) for name, frame in made.summaries.items()}
        typer.echo(json.dumps(document, indent=2))
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
    """Says after Ctrl-C where the records are, and what may be done then; typer exits with 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"wallclock: interrupted; what was measured is in {records}", err=True)
        typer.echo(f"look at it with `wallclock report {records}`{then}", err=True)
        raise


def exit_for(statuses: list[str]) -> None:
    """Exits with the code of an invalid result if any part diverged or failed."""
    if any(status in ("diverged", "failed") for status in statuses):
        raise typer.Exit(INVALID_RESULT)


def end_run(path: Path, status: str, *, as_json: bool, html: Path | None = None) -> None:
    """Prints the tables of one run and where its records are, and exits by how it ended."""
    print_report([path], as_json=as_json, html=html)
    if not as_json:
        typer.echo(f"records: {path}")
    exit_for([status])
