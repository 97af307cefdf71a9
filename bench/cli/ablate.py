"""`wallclock ablate`: what each lever of a recipe gives, in turns."""

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from wallclock.bench.cli.options import (
    RUNS,
    Cpus,
    Device,
    Json,
    On,
    Out,
    Resume,
    Set,
    consoles,
    end_run,
    interruptible,
    typed_command,
)


class Task(enum.StrEnum):
    """What is trained."""

    cifar = "cifar"
    wgan = "wgan"
    cyclegan = "cyclegan"


class Study(enum.StrEnum):
    """A choice of variants that has a name."""

    wide_resnet = "wide-resnet"
    devices = "devices"
    schedule = "schedule"


def ablate(
    task: Annotated[Task, typer.Argument(help="What is trained.")],
    recipe: Annotated[str | None, typer.Option(help="Of the task; `wallclock list` describes them.")] = None,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="The plain loop, all levers, and all but each; the default.")
    ] = False,
    add_one_in: Annotated[
        bool, typer.Option("--add-one-in", help="The plain loop, each lever alone, and all of them.")
    ] = False,
    grid: Annotated[
        list[str] | None, typer.Option(help="The recipe as it is, and with each of a field's values: field=a,b.")
    ] = None,
    study: Annotated[
        Study | None,
        typer.Option(
            help="wide-resnet: the lesson's widths, kernels and depths, FLOPs against seconds. devices: what 2, 4 and "
            "8 would make of a step, a projection. schedule: a run's steps, small images and frozen groups among them."
        ),
    ] = None,
    data: Annotated[str, typer.Option(help="As `wallclock run` takes it.")] = "synthetic",
    only_class: Annotated[str, typer.Option("--class", help="Of a WGAN's images.")] = "",
    seed: Annotated[int, typer.Option(help="Of weights, batches and noise.")] = 0,
    rounds: Annotated[int, typer.Option(help="Turns of each variant.")] = 12,
    on: On = None,
    cpus: Cpus = 2,
    device: Device = "auto",
    set_: Set = None,
    resume: Resume = None,
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Measure what each lever of a recipe gives.

    Or each of a field's values; every variant has a turn in each round.
    """
    from importlib import import_module

    _, progress = consoles()
    module: Any = import_module(f"wallclock.bench.tasks.{task.value}.ablation")
    if resume is not None:
        run = module.TASK.resumed_run(resume)
    else:
        choice = _choice(leave_one_out=leave_one_out, add_one_in=add_one_in, grid=grid or [], study=study)
        if study is not None and task != Task.cifar:
            raise ValueError(f"--study {study.value} is of cifar")
        if only_class and task != Task.wgan:
            raise ValueError("--class is of wgan's images")
        request = _request(module, task, recipe or _usual(task, study), set_ or [], device, choice)
        asked = {"data": data, "seed": seed, "rounds": rounds} | ({"only_class": only_class} if only_class else {})
        if on is not None:
            _on_ray(module, request(**asked), out, cpus, as_json=json_)
            return
        run = module.TASK.new_run(request(**asked), out, typed_command())
    path = run.writer.path
    with interruptible(path, f", go on with `wallclock ablate {task.value} --resume {path}`"):
        status = run.execute(lambda text: progress.print(text, markup=False))
    end_run(path, status, as_json=json_)


def _on_ray(module: Any, request: Any, out: Path, cpus: int, *, as_json: bool) -> None:
    """Runs the rounds on a cluster; each node's are a run of their own, all in one folder."""
    from wallclock.bench.ablation.on_ray import ClusterRun
    from wallclock.reports.store.write import new_run_id

    _, progress = consoles()
    folder = out / new_run_id("cluster")
    ablation, template = module.TASK.planned(request, typed_command())
    run = ClusterRun(ablation, template, folder, cpus=cpus)
    with interruptible(folder):
        status = run.execute(lambda text: progress.print(text, markup=False))
    end_run(folder, status, as_json=as_json)


def _usual(task: Task, study: Study | None) -> str:
    if task != Task.cifar:
        return "lesson"
    return "sprint" if study in (None, Study.schedule) else "wrn22"


def _choice(*, leave_one_out: bool, add_one_in: bool, grid: list[str], study: Study | None) -> Any:
    from wallclock.bench.ablation.variants import Variants

    if leave_one_out + add_one_in + bool(grid) + (study is not None) > 1:
        raise ValueError("--leave-one-out, --add-one-in, --grid and --study exclude each other; give one")
    if grid:
        return Variants(how="grid", grid=tuple(grid))
    if study is not None:
        return Variants(how="study", grid=(study.value,))
    return Variants(how="add-one-in" if add_one_in else "leave-one-out")


def _request(module: Any, task: Task, name: str, changes: list[str], device: str, choice: Any) -> Any:
    """A request that lacks nothing but what the caller adds."""
    import functools

    from wallclock.bench.compare.recipe_turn import GETTERS
    from wallclock.bench.measure.environment import resolve_device
    from wallclock.models.recipes.override import override

    device_type = resolve_device(device)
    recipe = override(GETTERS[task.value](name, device_type), *changes)
    # A turn takes some seconds on a CPU, and a second on a GPU.
    length = {} if device_type == "cpu" else {"turn_length": 20}
    fields = {"recipe": recipe, "device": device_type, "choice": choice, **length}
    return functools.partial(module.AblationRequest, **fields)
