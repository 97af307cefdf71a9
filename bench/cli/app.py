"""The command line. Every command imports what it needs when it runs, so that `--help` and `report` need no torch."""

import contextlib
import enum
import json
import os
import sys
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from wallclock.bench.cli.ablate import ablate_app
from wallclock.bench.cli.compare import bisect, calibrate, compare, gate, history
from wallclock.bench.cli.options import (
    INVALID_RESULT,
    REPORT_PAGE,
    RUNS,
    USAGE_ERROR,
    Device,
    Json,
    Out,
    consoles,
    end_run,
    exit_for,
    interruptible,
    print_report,
    seconds,
    typed_command,
)
from wallclock.bench.cli.run import run_app
from wallclock.bench.cli.tune import tune

if TYPE_CHECKING:
    from wallclock.bench.runs.job import Context, Job, Plan

SUITE_MARGIN_S = 10.0  # for the tables and the page

app = typer.Typer(
    name="wallclock",
    help="Benchmark deep-learning training by wall-clock time, not FLOPs.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(
    help="Fetch data sets, and check what lies on the disk.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(run_app, name="run")
app.add_typer(data_app, name="data")
app.add_typer(ablate_app, name="ablate")
app.command()(tune)
app.command()(compare)
app.command()(gate)
app.command()(bisect)
app.command()(history)
app.command()(calibrate)


@app.command()
def quick(out: Out = RUNS, device: Device = "auto", json_: Json = False) -> None:
    """Run everything, small, on embedded data.

    Tables, and an HTML report; at most 3 minutes on 2 CPU cores.
    """
    from wallclock.bench.suite import quick_plan

    _run_plan(quick_plan(), out, None, device, None, as_json=json_)


@app.command()
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
    from wallclock.bench.suite import suite_plan

    _run_plan(suite_plan(), out, None if data is None else str(data), device, seconds(budget), as_json=json_)


def _run_plan(plan: "Plan", out: Path, data: str | None, device: str, budget_s: float | None, *, as_json: bool) -> None:
    from wallclock.bench.measure.environment import resolve_device
    from wallclock.bench.measure.timing import Deadline
    from wallclock.bench.runs.job import Context

    _, progress = consoles()
    deadline = Deadline(None if budget_s is None else budget_s - SUITE_MARGIN_S)
    folder = out / _plan_folder(plan.name)
    context = Context(folder, data, resolve_device(device), deadline, progress, typed_command())
    with interruptible(folder):
        ended = {job.name: _run_job(job, context) for job in plan.jobs}
    if not folder.exists():
        why = "; ".join(f"{name}: {how}" for name, how in ended.items())
        raise ValueError(f"nothing could be measured. {why}")
    print_report([folder], as_json=as_json, html=folder / REPORT_PAGE)
    exit_for(list(ended.values()))


def _plan_folder(name: str) -> str:
    from wallclock.reports.store.write import new_run_id

    return new_run_id(name)


def _run_job(job: "Job", context: "Context") -> str:
    """Runs one job of a plan, whatever becomes of it; returns how it ended, with the reason if it did not run."""
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
    except (RuntimeError, MemoryError) as error:  # out of memory, a compiler's or a driver's error: the others go on
        context.console.print(f"{job.name}: failed, {type(error).__name__}: {error}", style="red", markup=False)
        return "failed"


@app.command()
def report(
    paths: Annotated[list[Path], typer.Argument(help="Runs, or folders that hold some.")],
    html: Annotated[Path | None, typer.Option(help="Write the HTML page here.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the summary of every metric as CSV here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as Markdown here.")] = None,
    json_: Json = False,
) -> None:
    """Make tables and pages from stored runs, finished or not."""
    print_report(paths, as_json=json_, html=html, csv=csv, markdown=markdown)


@app.command()
def serve(
    paths: Annotated[list[Path], typer.Argument(help="Runs, or folders that hold some or will.")],
    port: Annotated[int, typer.Option(help="On this machine's own address; 0 for any free one.")] = 8710,
) -> None:
    """Show the page of a folder that is being written to.

    In a browser on this machine, refreshed as records arrive.
    """
    from wallclock.bench.cli.serve import LivePage, server

    if missing := [path for path in paths if not path.exists()]:
        raise ValueError(f"no such path: {missing[0]}; make it, or name a folder that holds runs")
    with server(LivePage(paths), port) as serving:
        typer.echo(f"http://{serving.server_address[0]!s}:{serving.server_port}/  (Ctrl-C ends it)")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            serving.serve_forever()


@app.command("list")
def list_(json_: Json = False) -> None:
    """List recipes and benchmarks."""
    from rich.table import Table

    from wallclock.bench.suite import quick_plan, suite_plan
    from wallclock.bench.tasks.registry import TASKS

    recipes = {task: [task.recipes[name]("cpu") for name in task.recipes] for task in TASKS.values()}
    plans = [quick_plan(), suite_plan()]
    if json_:
        document = {
            "recipes" if task.unnamed else f"{task.name}_recipes": {recipe.name: recipe.resolved() for recipe in made}
            for task, made in recipes.items()
        }
        document |= {plan.name: {job.name: job.summary for job in plan.jobs} for plan in plans}
        typer.echo(json.dumps(document, indent=2))
        return
    out, _ = consoles()
    for task, made in recipes.items():
        table = Table(f"{task.title} recipe".strip(), "epochs", "batch", "what it is", box=None, padding=(0, 2, 0, 0))
        for recipe in made:
            table.add_row(recipe.name, f"{recipe.epochs:g}", str(recipe.batch_size), recipe.summary)
        if not task.unnamed:
            out.print()
        out.print(table)
    for plan in plans:
        table = Table(f"wallclock {plan.name}", "", box=None, padding=(0, 2, 0, 0))
        for job in plan.jobs:
            table.add_row(job.name, job.summary)
        out.print()
        out.print(table)


@app.command()
def env(json_: Json = False) -> None:
    """Say what this machine can run, what not, and why.

    And what to install.
    """
    from dataclasses import asdict

    from wallclock.bench.measure.environment import capabilities, machine

    found = capabilities()
    if json_:
        typer.echo(json.dumps({"machine": machine(), "capabilities": [asdict(c) for c in found]}, indent=2))
        return
    out, _ = consoles()
    out.print(machine(), markup=False)
    from rich.table import Table
    from rich.text import Text

    table = Table("", "can use", "found", "to do", box=None, padding=(0, 2, 0, 0))
    for capability in found:
        mark = Text("yes", "green") if capability.available else Text("no", "yellow")
        table.add_row(mark, capability.name, Text(capability.detail), Text(capability.install))
    out.print(table)


@data_app.command("check")
def data_check(path: Annotated[Path, typer.Argument(help="Of the data set.")], json_: Json = False) -> None:
    """Read a data set whole and say what it is."""
    from wallclock.loaders.data.cifar10 import describe

    description = describe(path)
    if json_:
        typer.echo(json.dumps(description, indent=2))
        return
    for key, value in description.items():
        typer.echo(f"{key:14}{', '.join(value) if isinstance(value, list) else value}")


@data_app.command("convert")
def data_convert(
    source: Annotated[Path, typer.Argument(help="Folder of an LMDB, as LSUN's export unpacks to.")],
    to: Annotated[Path, typer.Option(help="Folder to put the images in.")],
    size: Annotated[int, typer.Option(help="Edge of an image, pixels.")] = 64,
    fraction: Annotated[float, typer.Option(help="Share of the images; the lesson's are 0.1 and 0.2.")] = 1.0,
    workers: Annotated[int, typer.Option(help="Processes that decode; 0 for this one.")] = 0,
    json_: Json = False,
) -> None:
    """Convert LSUN's LMDB once to images of one size.

    Goes on where it was stopped.
    """
    from rich.progress import Progress

    from wallclock.loaders.data.lsun import convert

    _, progress = consoles()
    with Progress(console=progress) as bar:
        task = bar.add_task(source.name, total=None)
        convert(
            source, to, size=size, fraction=fraction, workers=workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    _tell_use(to, as_json=json_)


def _tell_use(data: Path, *, as_json: bool) -> None:
    typer.echo(json.dumps({"data": str(data)}, indent=2) if as_json else f"use it with --data {data}")


class Fetched(enum.StrEnum):
    """A data set that can be fetched."""

    cifar10 = "cifar10"
    horse2zebra = "horse2zebra"


@data_app.command("fetch")
def data_fetch(
    name: Annotated[Fetched, typer.Argument(help="Which data set.")] = Fetched.cifar10,
    to: Annotated[Path, typer.Option(help="Folder to put it in.")] = Path("data"),
    url: Annotated[str | None, typer.Option(help="Another source of the same archive.")] = None,
    json_: Json = False,
) -> None:
    """Fetch CIFAR-10, or CycleGAN's horses and zebras.

    With resume and checks.
    """
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    from wallclock.loaders.data.download import fetch_cifar10, fetch_horse2zebra

    fetch = {Fetched.cifar10: fetch_cifar10, Fetched.horse2zebra: fetch_horse2zebra}[name]
    _, progress = consoles()
    with Progress(*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn(), console=progress) as bar:
        task = bar.add_task(name.value, total=None)
        given = {} if url is None else {"url": url}
        found = fetch(to, progress=lambda done, total: bar.update(task, completed=done, total=total), **given)
    _tell_use(found, as_json=json_)


@app.command()
def translate(
    checkpoint: Annotated[Path, typer.Argument(help="A run of `wallclock run cyclegan`, or its checkpoint.")],
    source: Annotated[Path, typer.Argument(help="An image, or a folder of them.", metavar="IN")],
    target: Annotated[Path, typer.Argument(help="Folder to write to.", metavar="OUT")],
    direction: Annotated[str, typer.Option(help="a-to-b or b-to-a.")] = "a-to-b",
    size: Annotated[int | None, typer.Option(help="Edge to scale images to; as in training by default.")] = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Translate images with a trained CycleGAN."""
    import torch

    from wallclock.bench.measure.environment import resolve_device
    from wallclock.bench.tasks.cyclegan import translate as translating

    _, progress = consoles()
    generator, recipe = translating.load_generator(checkpoint, direction)
    edge = recipe.image_size if size is None else size
    if edge < 8 or edge % 4:
        raise ValueError(f"--size is {edge}; expected a multiple of 4 from 8 up, pixels")
    done, skipped = translating.translate(
        generator,
        source,
        target,
        edge,
        device=torch.device(resolve_device(device)),
        observe=lambda text: progress.print(text, style="yellow", markup=False, soft_wrap=True),
    )
    if json_:
        typer.echo(json.dumps({"images": done, "unreadable": skipped, "folder": str(target)}, indent=2))
        return
    typer.echo(f"{done} images in {target}" + (f"; {skipped} files could not be read" if skipped else ""))


@app.command()
def judge(
    run: Annotated[Path, typer.Argument(help="A run of `wallclock run wgan` or `run cyclegan`.")],
    features: Annotated[
        Path | None, typer.Option(help="Weights of the feature extractor; without, a network of our own is trained.")
    ] = None,
    extractor: Annotated[
        str, typer.Option(help="With --features: its name in torch-fidelity, such as inception-v3-compat.")
    ] = "wallclock-sprint",
    samples: Annotated[int, typer.Option(help="Images that a WGAN makes.")] = 1000,
    device: Device = "auto",
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Judge what a trained network makes.

    FID, KID, precision, recall, coverage, memorisation, collapse.
    """
    import torch

    from wallclock.bench.measure.environment import resolve_device
    from wallclock.bench.quality import judge as judging

    if samples < 10:
        raise ValueError(f"--samples is {samples}; expected 10 or more")
    if features is None and extractor != "wallclock-sprint":
        raise ValueError(f"--extractor {extractor} needs its weights; give them with --features")
    _, progress = consoles()
    path = judging.judge(
        run,
        weights=features,
        extractor=extractor,
        samples=samples,
        device=torch.device(resolve_device(device)),
        out=out,
        command=typed_command(),
        observe=lambda text: progress.print(text, style="yellow", markup=False),
    )
    end_run(path, "done", as_json=json_)


def _fail(message: str, code: int = USAGE_ERROR) -> NoReturn:
    typer.echo(f"wallclock: {message}", err=True)
    raise SystemExit(code)


def main() -> None:
    """Runs the command line.

    Exit codes: 0 a result (a missed target is one), 2 a request that cannot be met, 3 a run that diverged or failed,
    130 Ctrl-C.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or PyTorch's profiler tells of its stages among the progress
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a locale without arrows and boxes gets question marks
            stream.reconfigure(errors="replace")
    try:
        app()
    except ValueError as error:  # bad input: DataError, StoreError, unknown names, values out of range
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror}; check the path, its permissions and the disk")
    except (RuntimeError, MemoryError) as error:  # of torch, a compiler or a driver, in the middle of a run
        kept = "; ".join(getattr(error, "__notes__", ()))
        if _out_of_memory(error):
            _fail(
                f"out of memory; use a smaller batch (--set batch_size=...) or a device with more; {kept}".rstrip("; ")
            )
        _fail(f"{type(error).__name__}: {error}; {kept}".rstrip("; "), INVALID_RESULT)


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's
        or any(words in text for words in ("out of memory", "can't allocate memory", "cannot allocate memory"))
    )


if __name__ == "__main__":
    main()
