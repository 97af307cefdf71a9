"""`wallclock run`: one benchmark each. What a command needs is imported when it runs."""

import enum
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from wallclock.bench.cli.options import (
    REPORT_PAGE,
    RUNS,
    Device,
    Json,
    Out,
    Resume,
    Set,
    consoles,
    end_run,
    interruptible,
    typed_command,
)
from wallclock.bench.runs.select import chosen_texts

if TYPE_CHECKING:
    from rich.console import Console

    from wallclock.bench.runs.cases import CaseDone
    from wallclock.bench.tasks.cifar.run import CifarRun
    from wallclock.reports.store.write import RunWriter

    class Recorded(Protocol):
        """A run that is recorded as it goes; `observe` is told what is done."""

        writer: RunWriter

        def execute(self, observe: Callable[[Any], None]) -> str:
            """Returns how it ended."""


run_app = typer.Typer(help="Run one benchmark.", no_args_is_help=True, rich_markup_mode=None)


class SplitName(enum.StrEnum):
    """Which images a run is scored on."""

    test = "test"
    tune = "tune"


@run_app.command("cifar")
def run_cifar(
    recipe: Annotated[str, typer.Option(help="sprint, wrn22 or darknet; `wallclock list` describes them.")] = "sprint",
    data: Annotated[str, typer.Option(help="Path of the data set, or 'synthetic' for the embedded one.")] = "synthetic",
    target: Annotated[float | None, typer.Option(help="Accuracy to reach, such as 0.94.")] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds to train; 0 measures the phases only.")] = 1,
    device: Device = "auto",
    split: Annotated[
        SplitName, typer.Option(help="tune: score on a tenth of the training set instead.")
    ] = SplitName.test,
    pipeline: Annotated[
        str | None, typer.Option(help="What makes the batches: device, dataloader, dali or webdataset.")
    ] = None,
    set_: Set = None,
    resume: Resume = None,
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Train CIFAR-10 for a recipe's fixed budget, and score it.

    Under torchrun on many devices.
    """
    from wallclock.bench.engine.ranks import join_ranks
    from wallclock.bench.measure.environment import resolve_device
    from wallclock.bench.tasks.cifar import run as cifar
    from wallclock.models.recipes import get_recipe
    from wallclock.models.recipes.override import override

    if resume is not None:
        _run_cifar(cifar.resumed_run(resume), as_json=json_)
        return
    with join_ranks(device_type := resolve_device(device)) as ranks, TemporaryDirectory() as aside:
        chosen = [f"pipeline={pipeline}"] if pipeline else []
        resolved = override(get_recipe(recipe, device_type), *chosen, *(set_ or ()))
        request = cifar.CifarRequest(
            recipe=resolved,
            data=data,
            target=resolved.target if target is None else target,
            seeds=seeds,
            device=device_type,
            split=split.value,
        )
        ranks.share(resolved.batch_size)
        run = cifar.new_run(request, out if ranks.first else Path(aside), typed_command(), ranks=ranks)
        if ranks.first:
            _run_cifar(run, as_json=json_)
        else:
            run.execute(lambda event: None)


def _run_cifar(run: "CifarRun", *, as_json: bool) -> None:
    from wallclock.bench.tasks.cifar.progress import Display

    _, progress = consoles()
    then = f", go on with `wallclock run cifar --resume {run.writer.path}`"
    shown = Display(progress, run.request.recipe.name, run.request.target)
    with shown as display, interruptible(run.writer.path, then):
        outcome = run.execute(display)
    end_run(outcome.path, outcome.verdict, as_json=as_json)


@run_app.command("wgan")
def run_wgan(
    recipe: Annotated[str, typer.Option(help="lesson, paper or gp; `wallclock list` describes them.")] = "lesson",
    data: Annotated[
        str, typer.Option(help="Images: a converted LSUN, CIFAR-10, a folder; or 'synthetic' for the embedded set.")
    ] = "synthetic",
    only_class: Annotated[str, typer.Option("--class", help="Train on this class alone.")] = "",
    generator_iterations: Annotated[
        int, typer.Option(help="Stop after so many generator steps; 0 for the recipe's whole budget.")
    ] = 0,
    look_every: Annotated[int, typer.Option(help="Generator steps between looks: distance, samples, checkpoint.")] = 25,
    seed: Annotated[int, typer.Option(help="Of weights, order and noise.")] = 0,
    device: Device = "auto",
    set_: Set = None,
    resume: Resume = None,
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Train a WGAN and measure critic iterations per second."""
    from wallclock.bench.measure.environment import resolve_device
    from wallclock.bench.tasks.wgan import run as wgan
    from wallclock.models.recipes import get_wgan_recipe
    from wallclock.models.recipes.override import override

    _, progress = consoles()
    if resume is not None:
        run = wgan.resumed_run(resume)
    else:
        resolved = override(get_wgan_recipe(recipe, device_type := resolve_device(device)), *(set_ or ()))
        request = wgan.WganRequest(
            recipe=resolved,
            data=data,
            only_class=only_class,
            device=device_type,
            seed=seed,
            generator_iterations=generator_iterations,
            look_every=look_every,
            window_cycles=20 if device_type == "cuda" else 1,  # some seconds on a CPU, and a second on a GPU
        )
        run = wgan.new_run(request, out, typed_command())
    _execute(run, "wgan", lambda text: progress.print(text, markup=False), as_json=json_)


@run_app.command("cyclegan")
def run_cyclegan(
    recipe: Annotated[str, typer.Option(help="lesson or paper; `wallclock list` describes them.")] = "lesson",
    data: Annotated[
        str, typer.Option(help="Folder with trainA, trainB, testA and testB, or 'synthetic' for the embedded domains.")
    ] = "synthetic",
    iterations: Annotated[int, typer.Option(help="Stop after so many; 0 for the recipe's whole budget.")] = 0,
    look_every: Annotated[
        int, typer.Option(help="Iterations between looks: cycles' errors, pictures, checkpoint.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Of weights, batches and pools.")] = 0,
    device: Device = "auto",
    set_: Set = None,
    resume: Resume = None,
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Train a CycleGAN and measure iterations per second."""
    from wallclock.bench.measure.environment import resolve_device
    from wallclock.bench.tasks.cyclegan import run as cyclegan
    from wallclock.models.recipes import get_cyclegan_recipe
    from wallclock.models.recipes.override import override

    _, progress = consoles()
    if resume is not None:
        run = cyclegan.resumed_run(resume)
    else:
        resolved = override(get_cyclegan_recipe(recipe, device_type := resolve_device(device)), *(set_ or ()))
        request = cyclegan.CycleGanRequest(
            recipe=resolved,
            data=data,
            device=device_type,
            seed=seed,
            iterations=iterations,
            look_every=look_every,
            window_iterations=20 if device_type == "cuda" else 1,  # some seconds on a CPU, and a second on a GPU
        )
        run = cyclegan.new_run(request, out, typed_command())
    _execute(run, "cyclegan", lambda text: progress.print(text, markup=False), as_json=json_)


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
    texts = chosen_texts(only)
    if static:
        if resume is not None or dtype != "bf16" or device != "auto":
            raise ValueError("--static chooses the types and runs nothing; leave out --dtype, --device and --resume")
        _run_static(texts, out, update_baseline=update_baseline, as_json=json_)
        return
    if update_baseline:
        raise ValueError("--update-baseline is about what is compiled; give it with --static")
    from wallclock.bench.cases.kernels import run as kernels
    from wallclock.bench.measure.environment import resolve_device

    _, progress = consoles()
    if resume is not None:
        run = kernels.resumed_run(resume)
    else:
        request = kernels.KernelsRequest(
            dtype=dtype, device=resolve_device(device), only=texts, sample_budget_s=sample_budget
        )
        run = kernels.new_run(request, out, typed_command())
    _execute(run, "kernels", lambda done: _print_case(progress, done), as_json=json_)


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
    from wallclock.bench.cases.loaders import run as loaders
    from wallclock.bench.measure.environment import resolve_device

    _, progress = consoles()
    if resume is not None:
        run = loaders.resumed_run(resume)
    else:
        request = loaders.LoadersRequest(
            data=data,
            device=resolve_device(device),
            only=chosen_texts(only),
            batch_sizes=tuple(batch_size or (128, 500)),
            images=loaders.default_images(data) if images is None else images,
            rounds=rounds,
            steps=steps,
        )
        run = loaders.new_run(request, out, typed_command())

    _execute(run, "loaders", lambda done: _print_case(progress, done), as_json=json_)


@run_app.command("upsampling")
def run_upsampling(
    only: Annotated[
        list[str] | None,
        typer.Option(help="Words such as speed, training, deconv, bf16, nchw; repeat it for more."),
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
    from wallclock.bench.cases.upsampling import run as upsampling
    from wallclock.bench.measure.environment import resolve_device

    _, progress = consoles()
    if resume is not None:
        run = upsampling.resumed_run(resume)
    else:
        request = upsampling.UpsamplingRequest(
            device=resolve_device(device), data=data, seeds=seeds, only=chosen_texts(only)
        )
        run = upsampling.new_run(request, out, typed_command())
    page = run.writer.path / REPORT_PAGE
    _execute(run, "upsampling", lambda done: _print_case(progress, done), as_json=json_, html=page)


def _execute(
    run: "Recorded", benchmark: str, observe: Callable[[Any], None], *, as_json: bool, html: Path | None = None
) -> None:
    """Runs it, tells on Ctrl-C how to go on, prints its tables, and exits by how it ended."""
    path = run.writer.path
    with interruptible(path, f", go on with `wallclock run {benchmark} --resume {path}`"):
        status = run.execute(observe)
    end_run(path, status, as_json=as_json, html=html)


def _print_case(progress: "Console", done: "CaseDone") -> None:
    progress.print(done.line(), style="yellow" if done.why_not else "", markup=False)


def _run_static(only: tuple[str, ...], out: Path, *, update_baseline: bool, as_json: bool) -> None:
    from wallclock.bench.cases.kernels import static

    _, progress = consoles()
    run = static.new_run(out, typed_command(), only=only, update_baseline=update_baseline)
    path = run.writer.path
    with interruptible(path):
        status, _, remarks = run.execute()
    for remark in remarks:
        progress.print(remark, style="yellow", markup=False)
    end_run(path, status, as_json=as_json)
