"""`wallclock tune`: searches a recipe's fields for the least training time that reaches a target."""

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallclock.bench.cli.options import RUNS, Cpus, Device, Json, On, Out, Set
from wallclock.bench.cli.output import consoles, interruptible, print_json, print_progress, typed_command

if TYPE_CHECKING:
    from wallclock.bench.runs.training import Observer
    from wallclock.bench.tasks.cifar.tuning import TuningRequest


class TunedTask(enum.StrEnum):
    """A task whose recipes can be tuned."""

    cifar = "cifar"


def tune(
    task: Annotated[TunedTask, typer.Argument(help="Task to train.")],
    recipe: Annotated[str, typer.Option(help="Recipe whose fields are searched.")] = "sprint",
    data: Annotated[str, typer.Option(help="As for `run`; the test images are left out.")] = "synthetic",
    trials: Annotated[int, typer.Option(help="Trials that all processes of the study make together.")] = 20,
    search: Annotated[
        list[str] | None,
        typer.Option(help="field=low:high, field=low:high:log or field=a,b,c; budget and rates by default."),
    ] = None,
    target: Annotated[
        float | None, typer.Option(help="Accuracy to reach on the tuning split, a tenth of the training set.")
    ] = None,
    reach: Annotated[float, typer.Option(help="Probability of reaching the target that a trial must have.")] = 0.5,
    seeds: Annotated[int, typer.Option(help="Seeds that each trial trains.")] = 1,
    study: Annotated[
        Path | None, typer.Option(help="Folder of a study: made, joined, or gone on with; a new one by default.")
    ] = None,
    on: On = None,
    cpus: Cpus = 2,
    device: Device = "auto",
    set_: Set = None,
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Search a recipe's fields for the least time to a target.

    By Optuna, on the tuning split alone: a tenth of the training set, held out.
    """
    from wallclock.bench.measure.environment import resolve_device
    from wallclock.bench.tasks.cifar import tuning as cifar_tuning
    from wallclock.models.recipes import get_recipe
    from wallclock.models.recipes.override import override
    from wallclock.models.recipes.search import dimension, usual
    from wallclock.reports.store.write import new_run_id

    if trials < 1:
        raise ValueError(f"--trials is {trials}; expected at least 1")
    if why_not := cifar_tuning.unavailable():
        raise ValueError(why_not)
    resolved = override(get_recipe(recipe, device_type := resolve_device(device)), *(set_ or ()))
    request = cifar_tuning.TuningRequest(
        recipe=resolved,
        data=data,
        target=resolved.target if target is None else target,
        device=device_type,
        dimensions=tuple(map(dimension, search)) if search else usual(resolved),
        seeds=seeds,
        reach=reach,
        settings=tuple(set_ or ()),
    )
    folder = study or out / new_run_id(f"study-{recipe}")
    with cifar_tuning.quiet(), interruptible(folder, f", go on with the same command and `--study {folder}`"):
        opened = cifar_tuning.open_study(request, folder)
        try:
            _work(opened, request, folder, trials, on_ray=on is not None, cpus=cpus)
        finally:
            cifar_tuning.write_results(opened, folder)
        _print_trials(opened, request, folder, as_json=json_)


def _work(study: Any, request: "TuningRequest", folder: Path, trials: int, *, on_ray: bool, cpus: int) -> None:
    from wallclock.bench.tasks.cifar import tuning as cifar_tuning
    from wallclock.bench.tasks.cifar.progress import Display

    def print_trial(trial: Any) -> None:
        accuracies = trial.user_attrs.get("accuracies")
        how = trial.user_attrs.get("why") or f"{trial.value:.4g} s, {100 * sum(accuracies) / len(accuracies):.2f}%"
        print_progress(f"trial {trial.number}: {how}", soft_wrap=True)

    if on_ray:
        from wallclock.bench.tasks.cifar.tuning_on_ray import work_on_ray

        work_on_ray(study, request, folder, typed_command(), trials, cpus=cpus, observe=print_trial)
        return
    _, progress = consoles()
    with Display(progress, "", request.target) as display:

        def then(number: int) -> "Observer":
            display.title = f"trial {number}"
            return display if progress.is_terminal else cifar_tuning.unseen

        objective = cifar_tuning.Objective(request=request, folder=folder, command=typed_command(), then=then)
        cifar_tuning.work(study, objective, trials, print_trial)


def _print_trials(study: Any, request: "TuningRequest", folder: Path, *, as_json: bool) -> None:
    from wallclock.bench.tasks.cifar import tuning as cifar_tuning
    from wallclock.reports.format import text as tables

    rows, advice = cifar_tuning.trial_rows(study), cifar_tuning.advice(study, request)
    if as_json:
        same = {"study": str(folder), "target": request.target, "reach": request.reach}
        print_json({**same, "trials": rows, "next": advice})
        return
    out, _ = consoles()
    out.print(f"Trials on the tuning split, the best first; target {tables.percent(request.target)}", style="bold")
    shown = [
        [
            str(row["trial"]),
            f"{row['seconds']:.4g}" if row["seconds"] is not None else "",
            f"{100 * row['accuracy']:.2f}%" if row["accuracy"] is not None else "",
            "yes" if row["reaches"] else row["why"] or "no",
            ", ".join(f"{name.rpartition('.')[2]} {_short(value)}" for name, value in row["values"].items()),
        ]
        for row in rows
    ]
    out.print(tables.terminal((["trial", "s", "accuracy", "reaches it", "with"], shown)))
    if advice:
        out.print("\nTrials took turns with nothing, and one of many is best by luck too; see whether it holds:")
        for line in advice:
            out.print(line, markup=False, soft_wrap=True)
    else:
        out.print("\nNo trial reaches the target: search more, or a wider range.")
    out.print(f"study: {folder}", markup=False, soft_wrap=True)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
