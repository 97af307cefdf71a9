"""`wallclock ablate`: measures in turns how much each lever of a task's recipe gains."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from wallclock.bench.cli.options import Cpus, On
from wallclock.bench.cli.output import end_run, interruptible, print_progress, typed_command
from wallclock.bench.cli.requests import (
    COMMON,
    execute,
    make_choice,
    make_command,
    make_option,
    make_request,
    request_options,
)
from wallclock.bench.runs.task import Task
from wallclock.bench.tasks.registry import TASKS
from wallclock.models.recipes.studies import STUDIES

if TYPE_CHECKING:
    from wallclock.bench.ablation.variants import Variants

HELP = """Measure what each lever of a recipe gives.

Or each of a field's values; every variant has a turn in each round."""
LEAVE_ONE_OUT = "The plain loop, all levers, and all but each; the default."
ADD_ONE_IN = "The plain loop, each lever alone, and all of them."
CHOICES = (
    make_option("leave_one_out", bool, False, LEAVE_ONE_OUT, "--leave-one-out"),
    make_option("add_one_in", bool, False, ADD_ONE_IN, "--add-one-in"),
    make_option("grid", list[str], None, "The recipe as it is, and with each of a field's values: field=a,b."),
)

ablate_app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None)


def _add_task(task: Task) -> None:
    """Adds the subcommand that measures the levers of a task's recipes."""

    def ablate(
        *,
        recipe: str | None,
        leave_one_out: bool,
        add_one_in: bool,
        grid: list[str] | None,
        study: str | None = None,
        on: Any,
        cpus: int,
        device: str,
        set_: list[str] | None,
        resume: Path | None,
        out: Path,
        json_: bool,
        **given: Any,
    ) -> None:
        from wallclock.bench.runs.training import new_run, resumed_run

        command = f"wallclock ablate {task.name}"
        if resume is not None:
            execute(resumed_run(task, task.ablation, resume), command, as_json=json_)
            return
        given["choice"] = _choice(leave_one_out=leave_one_out, add_one_in=add_one_in, grid=grid or [], study=study)
        usual = task.studies[study] if study else task.usual
        request = make_request(task, task.ablation, recipe or usual, set_ or [], device, given)
        if on is not None:
            _on_ray(task, request, out, cpus, as_json=json_)
            return
        execute(new_run(task, request, out, typed_command()), command, as_json=json_)

    options = [
        make_option("recipe", str, None, "Recipe to take apart; `wallclock list` describes them."),
        *CHOICES,
        *request_options(task.ablation),
        make_option("on", On, None),
        make_option("cpus", Cpus, 2),
        *COMMON,
    ]
    if task.studies:
        help = " ".join(STUDIES[name].help for name in task.studies)
        options.append(make_option("study", make_choice("Study", task.studies), None, help))
    ablate_app.command(task.name)(make_command(HELP, options, ablate))


for each in TASKS.values():
    _add_task(each)


def _choice(*, leave_one_out: bool, add_one_in: bool, grid: list[str], study: str | None) -> "Variants":
    from wallclock.bench.ablation.variants import Variants

    if leave_one_out + add_one_in + bool(grid) + (study is not None) > 1:
        raise ValueError("--leave-one-out, --add-one-in, --grid and --study exclude each other; give one")
    if grid:
        return Variants(how="grid", grid=tuple(grid))
    if study is not None:
        return Variants(how="study", grid=(str(study),))
    return Variants(how="add-one-in" if add_one_in else "leave-one-out")


def _on_ray(task: Task, request: Any, out: Path, cpus: int, *, as_json: bool) -> None:
    """Runs the rounds on a Ray cluster; each node writes a run of its own, all into one folder."""
    from wallclock.bench.ablation.on_ray import ClusterRun
    from wallclock.bench.ablation.run import Ablation
    from wallclock.bench.runs.training import plan_run
    from wallclock.reports.store.write import new_run_id

    folder = out / new_run_id("cluster")
    data, record = plan_run(task, request, typed_command())
    run = ClusterRun(Ablation(task, request, data), record, folder, cpus=cpus)
    with interruptible(folder):
        status = run.execute(print_progress)
    end_run(folder, status, as_json=as_json)
