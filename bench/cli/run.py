"""`wallclock run`: one command for each benchmark. A command imports what it needs when it runs."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallclock.bench.cli.options import RUNS, Device, Json, Out, Resume
from wallclock.bench.cli.output import REPORT_PAGE, end_run, interruptible, print_progress, typed_command
from wallclock.bench.cli.requests import COMMON, execute, make_command, make_option, make_request, request_options
from wallclock.bench.runs.select import chosen_texts
from wallclock.bench.runs.task import Task
from wallclock.bench.tasks.registry import TASKS

if TYPE_CHECKING:
    from wallclock.bench.runs.cases import CaseDone

run_app = typer.Typer(help="Run one benchmark.", no_args_is_help=True, rich_markup_mode=None)


def _add_task(task: Task) -> None:
    """Adds the subcommand that trains a recipe of a task."""

    def run(
        *, recipe: str, device: str, set_: list[str] | None, resume: Path | None, out: Path, json_: bool, **given: Any
    ) -> None:
        from wallclock.bench.engine.ranks import Ranks, join_ranks
        from wallclock.bench.measure.environment import resolve_device
        from wallclock.bench.runs.training import new_run, resumed_run

        command = f"wallclock run {task.name}"
        if resume is not None:
            execute(resumed_run(task, task.request, resume), command, as_json=json_)
            return
        chosen = {name: given.pop(name) for name in task.recipe_options}
        changes = [*(f"{name}={value}" for name, value in chosen.items() if value), *(set_ or ())]
        join = join_ranks(resolve_device(device)) if task.distributed else nullcontext(Ranks())
        with join as ranks, TemporaryDirectory() as aside:
            request = make_request(task, task.request, recipe, changes, device, given)
            ranks.share(request.recipe.batch_size)
            together: dict[str, Any] = {"ranks": ranks} if ranks.world > 1 else {}
            made = new_run(task, request, out if ranks.first else Path(aside), typed_command(), **together)
            if ranks.first:
                execute(made, command, as_json=json_)
            else:
                made.execute(lambda event: None)

    *most, last = task.recipes
    names = f"{', '.join(most)} or {last}" if most else last
    options = [
        make_option("recipe", str, task.usual, f"{names}; `wallclock list` describes them."),
        *request_options(task.request),
        *(make_option(name, str, None, help) for name, help in task.recipe_options.items()),
        *COMMON,
    ]
    run_app.command(task.name)(make_command(task.summary, options, run))


for each in TASKS.values():
    _add_task(each)


@run_app.command("kernels")
def run_kernels(
    only: Annotated[
        list[str] | None, typer.Option(help="Words of operation, case and variant; repeat it for more.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32.")] = "bf16",
    device: Device = "auto",
    sample_budget: Annotated[
        float, typer.Option(help="Seconds for each measurement of a variant, direction and state of the cache.")
    ] = 0.5,
    static: Annotated[
        bool, typer.Option("--static", help="Compile for sm_80, sm_90 and sm_100 instead, without a GPU.")
    ] = False,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="With --static: make what was compiled the committed baseline.")
    ] = False,
    resume: Resume = None,
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Time every operation at every shape.

    Against its other implementations, eager and compiled ones among them.
    """
    if static:
        if resume is not None or dtype != "bf16" or device != "auto":
            raise ValueError("--static chooses the types and runs nothing; leave out --dtype, --device and --resume")
        _run_static(chosen_texts(only), out, update_baseline=update_baseline, as_json=json_)
        return
    if update_baseline:
        raise ValueError("--update-baseline is about what is compiled; give it with --static")
    fields = {"dtype": dtype, "sample_budget_s": sample_budget}
    _run_cases("kernels", resume, only, device, lambda: fields, out, as_json=json_)


@run_app.command("loaders")
def run_loaders(
    data: Annotated[str, typer.Option(help="Path of the data set, or 'synthetic' for the embedded one.")] = "synthetic",
    only: Annotated[
        list[str] | None, typer.Option(help="Words of form, batch size, pipeline and regime; repeat it for more.")
    ] = None,
    batch_size: Annotated[list[int] | None, typer.Option(help="Images in a batch; may be repeated.")] = None,
    images: Annotated[int | None, typer.Option(help="Use the first so many training images; 10000 by default.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of all pipelines in turn.")] = 5,
    steps: Annotated[int, typer.Option(help="Steps of training in each round.")] = 3,
    device: Device = "auto",
    resume: Resume = None,
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Measure every pipeline over every form of a data set.

    One image, alone, its first batch, and training on it.
    """

    def fields() -> dict[str, Any]:
        from wallclock.bench.cases.loaders.run import default_images

        sizes = tuple(batch_size or (128, 500))
        count = default_images(data) if images is None else images
        return {"data": data, "batch_sizes": sizes, "images": count, "rounds": rounds, "steps": steps}

    _run_cases("loaders", resume, only, device, fields, out, as_json=json_)


@run_app.command("upsampling")
def run_upsampling(
    only: Annotated[
        list[str] | None, typer.Option(help="Words such as speed, training, deconv, bf16, nchw; repeat it for more.")
    ] = None,
    data: Annotated[
        str, typer.Option(help="Path of the images to train on, or 'synthetic' for the embedded ones.")
    ] = "synthetic",
    seeds: Annotated[int, typer.Option(help="How many short trainings of each; 0 for none.")] = 1,
    device: Device = "auto",
    resume: Resume = None,
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Time transposed convolution against upsampling + conv.

    At DCGAN's stages, with scores of their checkerboards.
    """
    fields = {"data": data, "seeds": seeds}
    _run_cases("upsampling", resume, only, device, lambda: fields, out, as_json=json_, page=True)


def _run_cases(
    benchmark: str,
    resume: Path | None,
    only: list[str] | None,
    device: str,
    fields: Callable[[], dict[str, Any]],
    out: Path,
    *,
    as_json: bool,
    page: bool = False,
) -> None:
    """Executes a new run or a resumed one with a line for each case, and ends with its tables and its exit code.

    `fields` returns the fields of a new run's request besides `device` and `only`; it, too, is left alone when a run is
    resumed. `page` says whether the HTML page goes into the run's directory.
    """
    from wallclock.bench.cases import case_run
    from wallclock.bench.measure.environment import resolve_device

    kind = case_run(benchmark)
    if resume is not None:
        run = kind.resume(resume)
    else:
        request = kind.kind(device=resolve_device(device), only=chosen_texts(only), **fields())
        run = kind.new(request, out, typed_command())

    def show(done: "CaseDone") -> None:
        print_progress(done.line(), style="yellow" if done.why_not else "")

    path = run.writer.path
    with interruptible(path, f", go on with `wallclock run {benchmark} --resume {path}`"):
        status = run.execute(show)
    end_run(path, status, as_json=as_json, html=path / REPORT_PAGE if page else None)


def _run_static(only: tuple[str, ...], out: Path, *, update_baseline: bool, as_json: bool) -> None:
    from wallclock.bench.cases.kernels import static

    run = static.StaticRun(out, typed_command(), only=only, update_baseline=update_baseline)
    path = run.writer.path
    with interruptible(path):
        status, _, remarks = run.execute()
    for remark in remarks:
        print_progress(remark, style="yellow")
    end_run(path, status, as_json=as_json)
