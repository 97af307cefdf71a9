"""`wallclock quick` and `suite`: plans of many jobs, run one after the other into one folder."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wallclock.bench.cli.options import RUNS, Device, Json, Out, seconds
from wallclock.bench.cli.output import REPORT_PAGE, consoles, exit_for, interruptible, print_report, typed_command

if TYPE_CHECKING:
    from wallclock.bench.runs.job import Context, Job, Plan

SUITE_MARGIN_S = 10.0  # seconds of the budget kept for the tables and the page


def quick(out: Out = RUNS, device: Device = "auto", json_: Json = False) -> None:
    """Run everything, small, on embedded data.

    Tables, and an HTML report; at most 3 minutes on 2 CPU cores.
    """
    from wallclock.bench.suite import make_plan

    _run_plan(make_plan("quick"), out, None, device, None, as_json=json_)


def suite(
    budget: Annotated[str, typer.Option(help="Time to stay within: 90s, 8m, 1h.")],
    data: Annotated[Path | None, typer.Option(help="Path of the real data set.")] = None,
    out: Out = RUNS,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Run everything at real sizes, within a time budget.

    Whatever this machine can, most informative first.
    """
    from wallclock.bench.suite import make_plan

    _run_plan(make_plan("suite"), out, None if data is None else str(data), device, seconds(budget), as_json=json_)


def _run_plan(plan: "Plan", out: Path, data: str | None, device: str, budget_s: float | None, *, as_json: bool) -> None:
    from wallclock.bench.measure.environment import resolve_device
    from wallclock.bench.measure.timing import Deadline
    from wallclock.bench.runs.job import Context
    from wallclock.reports.store.write import new_run_id

    _, progress = consoles()
    deadline = Deadline(None if budget_s is None else budget_s - SUITE_MARGIN_S)
    folder = out / new_run_id(plan.name)
    context = Context(folder, data, resolve_device(device), deadline, progress, typed_command())
    with interruptible(folder):
        statuses = {job.name: run_job(job, context) for job in plan.jobs}
    if not folder.exists():
        why = "; ".join(f"{name}: {status}" for name, status in statuses.items())
        raise ValueError(f"nothing could be measured. {why}")
    print_report([folder], as_json=as_json, html=folder / REPORT_PAGE)
    exit_for(list(statuses.values()))


def run_job(job: "Job", context: "Context") -> str:
    """Runs one job of a plan; returns its status, "failed", or "skipped" with the reason, so that the plan goes on."""
    from wallclock.bench.measure.timing import Deadline

    why_not = job.unavailable(context)
    left_s = context.deadline.remaining_s()
    if not why_not and left_s < job.begins_with_s(context.device):
        why_not = f"the budget has {max(0.0, left_s):.0f} s left"
    if why_not:
        context.console.print(f"{job.name}: skipped, {why_not}", style="yellow", markup=False)
        return f"skipped, {why_not}"
    context.console.print(f"{job.name}: {job.summary}", style="bold", markup=False)
    try:
        return job.run(replace(context, deadline=Deadline(job.share * left_s)))
    except (RuntimeError, MemoryError) as error:  # out of memory, or an error of a compiler or driver; other jobs go on
        context.console.print(f"{job.name}: failed, {type(error).__name__}: {error}", style="red", markup=False)
        return "failed"
