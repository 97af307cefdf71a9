"""What every command shares: its options, what it prints, and how it ends. No torch here."""

import contextlib
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
    import reports
    from reports import tables
    from reports.ablation import ablation_rows, ablation_summary, flop_rows
    from reports.calibration import calibration_rows, calibration_summary
    from reports.comparison import comparison_rows, comparison_summary
    from reports.kernels import failed_rows, kernel_detail_rows, kernel_rows, kernel_summary, static_rows
    from reports.loaders import loader_failures, loader_summary, loader_tables
    from reports.upsampling import checkerboard_rows, stage_rows, upsampling_summary, winner_rows

    out, progress = consoles()
    samples, runs = reports.load(paths, on_damage="skip"), reports.load_runs(paths, on_damage="skip")
    for problem in samples.attrs["skipped"]:
        progress.print(f"skipped: {problem}", style="yellow", markup=False)
    scores = reports.time_to_target(samples)
    summary = reports.summarise(samples[~samples["metric"].isin(tables.CURVES)])
    kernels, upsampling = kernel_summary(samples), upsampling_summary(samples)
    loaders, comparisons = loader_summary(samples), comparison_summary(samples, runs)
    calibrations = calibration_summary(samples, runs)
    titled = {
        "Head against base: ratios of medians of rounds, with intervals": comparison_rows(comparisons),
        "Verdicts whose truth is known, alone and of 20 at once; power stated": calibration_rows(calibrations),
        "Time to accuracy": tables.accuracy_rows(scores),
        "Kernels: us, hot cache; MB kept for backward": kernel_rows(kernels),
        "Kernels, whole: us hot (95% interval) and cold; MB kept besides the output": kernel_detail_rows(kernels),
        "Upsampling: forward and backward; which is fastest, and which lays no grid": winner_rows(upsampling),
        "Upsampling: ms; MB kept for backward": stage_rows(upsampling),
        "Checkerboards at (0, pi), (pi, 0), (pi, pi), before and after training": checkerboard_rows(samples),
        "Kernels that failed, and are left out above": failed_rows(samples),
        "Compiled kernels: the worst of n forms, in bytes, and bytes a thread": static_rows(samples),
        "Convolutions, forward and backward, measured to choose what carries them out": tables.choice_rows(samples),
        "Levers: iterations/s by variant, in turns; * computes other numbers": ablation_rows(samples),
        "FLOPs against seconds, fastest first": flop_rows(samples),
        **loader_tables(loaders),
        "Loaders that failed, and are left out above": loader_failures(samples),
        "Phases of a step, and evaluation, in ms for 1,000 images": tables.phase_rows(samples),
        "Other metrics": tables.summary_rows(
            summary[~summary["metric"].isin(tables.TABLED) & ~summary["benchmark"].isin(tables.OF_THEIR_OWN)]
        ),
    }
    titled = {title: rows for title, rows in titled.items() if rows[1]}
    if html is not None:
        reports.build_page(samples, runs, html, reports.load_pictures(paths, on_damage="skip"))
    if csv is not None:
        _write(csv, tables.csv(summary))
    if markdown is not None:
        _write(markdown, "\n".join(f"## {title}\n\n{tables.markdown(rows)}" for title, rows in titled.items()))
    if as_json:
        columns = ["run_id", "run_status", "error", "notes"]
        document = {
            "runs": json.loads(runs[columns].to_json(orient="records")),
            "time_to_target": json.loads(scores.to_json(orient="records")),
            "upsampling": json.loads(upsampling.to_json(orient="records")),
            "kernels": json.loads(kernels.to_json(orient="records")),
            "levers": json.loads(ablation_summary(samples).to_json(orient="records")),
            "calibration": json.loads(calibrations.to_json(orient="records")),
            "comparisons": json.loads(comparisons.to_json(orient="records")),
            "loaders": json.loads(loaders.to_json(orient="records")),
            "summary": json.loads(summary.to_json(orient="records")),
        }
        typer.echo(json.dumps(document, indent=2))
        return
    for title, rows in titled.items():
        out.print(title, style="bold")
        out.print(tables.terminal(rows))
        out.print()
    for row in runs[runs["run_status"] != "done"].to_dict("records"):
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
