"""`wallclock calibrate`: checks the verdicts with comparisons whose true answer is known."""

from typing import Annotated

import typer

from wallclock.bench.cli.options import RUNS, Json, Out
from wallclock.bench.cli.output import (
    INVALID_RESULT,
    REPORT_PAGE,
    interruptible,
    print_progress,
    print_report,
    typed_command,
)


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
    from wallclock.bench.compare.calibration import CalibrationRequest, CalibrationRun
    from wallclock.reports.stats.verdicts import Rule
    from wallclock.reports.views.calibration import calibration_summary, false_verdicts

    request = CalibrationRequest(
        comparisons=comparisons, planted=planted, loaded=loaded, simulated=simulated, rounds=rounds,
        rule=Rule(tolerance=tolerance),
    )  # fmt: skip
    run = CalibrationRun(request, out, typed_command())
    path = run.writer.path
    with interruptible(path):
        run.execute(print_progress)
    print_report([path], as_json=json_, html=path / REPORT_PAGE)
    found = false_verdicts(calibration_summary(reports.load(path), reports.load_runs(path)), request.rule)
    for text in found:
        typer.echo(f"wallclock: too many false verdicts: {text}", err=True)
    if found:
        raise typer.Exit(INVALID_RESULT)
