"""The command line. Every command imports what it needs when it runs, so that `--help` and `report` need no torch."""

import contextlib
import enum
import json
import os
import shlex
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bench.cases.kernels import CaseDone
    from bench.registry import Context, Job, Plan

USAGE_ERROR, INVALID_RESULT = 2, 3
RUNS = Path("runs")
REPORT_PAGE = "report.html"
SUITE_MARGIN_S = 10.0  # for the tables and the page

app = typer.Typer(
    name="wallclock",
    help="Benchmark deep-learning training by wall-clock time, not FLOPs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
run_app = typer.Typer(help="Run one benchmark.", no_args_is_help=True, rich_markup_mode=None)
data_app = typer.Typer(
    help="Fetch data sets, and check what lies on the disk.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(run_app, name="run")
app.add_typer(data_app, name="data")


class SplitName(enum.StrEnum):
    """Which images a run is scored on."""

    test = "test"
    tune = "tune"


Out = Annotated[Path, typer.Option(help="Folder that runs are written to, each in a directory of its own.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Resume = Annotated[Path | None, typer.Option(help="Go on with this run; no other option but --json applies.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto for the GPU where there is one.")]


def _consoles() -> "tuple[Console, Console]":
    """Standard output for results and standard error for progress, 80 columns wide where no terminal says otherwise."""
    from rich.console import Console

    return tuple(Console(stderr=e, soft_wrap=False, highlight=False, width=_width()) for e in (False, True))  # type: ignore[return-value]


def _width() -> int | None:
    return None if sys.stderr.isatty() or "COLUMNS" in os.environ else 80


def _command() -> str:
    return shlex.join(["wallclock", *sys.argv[1:]])


def _print_report(
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
    from reports.kernels import failed_rows, kernel_detail_rows, kernel_rows, kernel_summary, static_rows
    from reports.loaders import loader_failures, loader_summary, loader_tables
    from reports.upsampling import checkerboard_rows, stage_rows, upsampling_summary, winner_rows
    from reports.wgan import ablation_rows, ablation_summary

    out, progress = _consoles()
    samples, runs = reports.load(paths, on_damage="skip"), reports.load_runs(paths, on_damage="skip")
    for problem in samples.attrs["skipped"]:
        progress.print(f"skipped: {problem}", style="yellow", markup=False)
    scores = reports.time_to_target(samples)
    summary = reports.summarise(samples[~samples["metric"].isin(tables.CURVES)])
    kernels, upsampling = kernel_summary(samples), upsampling_summary(samples)
    loaders = loader_summary(samples)
    titled = {
        "Time to accuracy": tables.accuracy_rows(scores),
        "Kernels: us, hot cache; MB kept for backward": kernel_rows(kernels),
        "Kernels, whole: us hot (95% interval) and cold; MB kept besides the output": kernel_detail_rows(kernels),
        "Upsampling: forward and backward; which is fastest, and which lays no grid": winner_rows(upsampling),
        "Upsampling: ms; MB kept for backward": stage_rows(upsampling),
        "Checkerboards at (0, pi), (pi, 0), (pi, pi), before and after training": checkerboard_rows(samples),
        "Kernels that failed, and are left out above": failed_rows(samples),
        "Compiled kernels: the worst of n forms, in bytes, and bytes a thread": static_rows(samples),
        "Convolutions, forward and backward, measured to choose what carries them out": tables.choice_rows(samples),
        "WGAN: critic iterations/s by variant, in turns; * computes other numbers": ablation_rows(samples),
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
            "wgan_levers": json.loads(ablation_summary(samples).to_json(orient="records")),
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
def _interruptible(records: Path, then: str = "") -> Iterator[None]:
    """Says after Ctrl-C where the records are, and what may be done then; typer exits with 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"wallclock: interrupted; what was measured is in {records}", err=True)
        typer.echo(f"look at it with `wallclock report {records}`{then}", err=True)
        raise


def _exit_for(statuses: list[str]) -> None:
    if any(status in ("diverged", "failed") for status in statuses):
        raise typer.Exit(INVALID_RESULT)


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
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a recipe field, such as epochs=2.")] = None,
    resume: Resume = None,
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Train CIFAR-10 to a target accuracy for a recipe's fixed budget, and score it."""
    from bench.display import Display
    from bench.environment import resolve_device
    from bench.tasks import cifar
    from models.recipes import get_recipe
    from models.recipes.override import override

    _, progress = _consoles()
    if resume is not None:
        run = cifar.resumed_run(resume)
    else:
        resolved = get_recipe(recipe, device_type := resolve_device(device))
        for assignment in (*([f"pipeline={pipeline}"] if pipeline else ()), *(set_ or ())):
            resolved = override(resolved, assignment)
        request = cifar.CifarRequest(
            recipe=resolved,
            data=data,
            target=resolved.target if target is None else target,
            seeds=seeds,
            device=device_type,
            split=split.value,
        )
        run = cifar.new_run(request, out, _command())
    then = f", go on with `wallclock run cifar --resume {run.writer.path}`"
    shown = Display(progress, run.request.recipe.name, run.request.target)
    with shown as display, _interruptible(run.writer.path, then):
        outcome = run.execute(display)
    _print_report([outcome.path], as_json=json_)
    if not json_:
        typer.echo(f"records: {outcome.path}")
    _exit_for([outcome.verdict])


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
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Measure the plain loop, all levers, and all but each, in turns.")
    ] = False,
    rounds: Annotated[int, typer.Option(help="With --ablate: turns of each variant.")] = 12,
    device: Device = "auto",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a recipe field, such as precision=bf16.")
    ] = None,
    resume: Resume = None,
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Train a WGAN and measure critic iterations per second; or what each lever of its recipe gives."""
    from bench.environment import resolve_device
    from bench.tasks import wgan, wgan_ablation
    from models.recipes import get_wgan_recipe
    from models.recipes.override import override

    _, progress = _consoles()

    def line(text: str) -> None:
        progress.print(text, markup=False)

    if resume is not None:
        run = wgan_ablation.resumed_run(resume) if wgan_ablation.is_ablation(resume) else wgan.resumed_run(resume)
    else:
        resolved = get_wgan_recipe(recipe, device_type := resolve_device(device))
        for assignment in set_ or ():
            resolved = override(resolved, assignment)
        asked: dict[str, Any] = {
            "recipe": resolved,
            "data": data,
            "only_class": only_class,
            "device": device_type,
            "seed": seed,
        }
        cycles = 20 if device_type == "cuda" else 1  # some seconds on a CPU, and a second on a GPU
        if ablate:
            run = wgan_ablation.new_run(
                wgan_ablation.AblationRequest(rounds=rounds, cycles=cycles, **asked), out, _command()
            )
        else:
            plan: dict[str, Any] = {
                "generator_iterations": generator_iterations,
                "look_every": look_every,
                "window_cycles": cycles,
            }
            run = wgan.new_run(wgan.WganRequest(**asked, **plan), out, _command())
    path = run.writer.path
    with _interruptible(path, f", go on with `wallclock run wgan --resume {path}`"):
        status = run.execute(line)
    _print_report([path], as_json=json_)
    if not json_:
        typer.echo(f"records: {path}")
    _exit_for([status])


@run_app.command("kernels")
def run_kernels(
    only: Annotated[
        list[str] | None, typer.Option(help="Words that operation, case and variant must hold; may be repeated.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32.")] = "bf16",
    device: Device = "auto",
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
    """Time every operation at every shape against its other implementations, eager and compiled ones among them."""
    words = tuple(word for text in only or () for word in text.split())
    if only and not words:
        raise ValueError("--only holds no word; give some, such as --only 'residual darknet', or leave it out for all")
    if static:
        if resume is not None or dtype != "bf16" or device != "auto":
            raise ValueError("--static chooses the types and runs nothing; leave out --dtype, --device and --resume")
        _run_static(words, out, update_baseline=update_baseline, as_json=json_)
        return
    if update_baseline:
        raise ValueError("--update-baseline is about what is compiled; give it with --static")
    from bench.cases import kernels
    from bench.environment import resolve_device

    _, progress = _consoles()
    if resume is not None:
        run = kernels.resumed_run(resume)
    else:
        request = kernels.KernelsRequest(dtype=dtype, device=resolve_device(device), only=words)
        run = kernels.new_run(request, out, _command())
    path = run.writer.path

    with _interruptible(path, f", go on with `wallclock run kernels --resume {path}`"):
        status = run.execute(lambda done: _print_case(progress, done))
    _print_report([path], as_json=json_)
    if not json_:
        typer.echo(f"records: {path}")
    _exit_for([status])


@run_app.command("loaders")
def run_loaders(
    data: Annotated[str, typer.Option(help="Path of the data set, or 'synthetic' for the embedded one.")] = "synthetic",
    only: Annotated[
        list[str] | None, typer.Option(help="Words that form, batch size, pipeline and regime must hold; repeatable.")
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
    """Measure every pipeline over every form of a data set: one image, alone, its first batch, and training on it."""
    from bench.cases import loaders
    from bench.cases.loader_request import LoadersRequest
    from bench.environment import resolve_device

    _, progress = _consoles()
    if resume is not None:
        run = loaders.resumed_run(resume)
    else:
        request = LoadersRequest(
            data=data,
            device=resolve_device(device),
            only=tuple(word for text in only or () for word in text.split()),
            batch_sizes=tuple(batch_size or (128, 500)),
            images=loaders.default_images(data) if images is None else images,
            rounds=rounds,
            steps=steps,
        )
        run = loaders.new_run(request, out, _command())
    path = run.writer.path

    def show(done: loaders.PipelineDone) -> None:
        style = "yellow" if done.why_not else ""
        progress.print(f"{done.case}, {done.pipeline}, {done.regime}: {done.told()}", style=style, markup=False)

    with _interruptible(path, f", go on with `wallclock run loaders --resume {path}`"):
        status = run.execute(show)
    _print_report([path], as_json=json_)
    if not json_:
        typer.echo(f"records: {path}")
    _exit_for([status])


@run_app.command("upsampling")
def run_upsampling(
    only: Annotated[
        list[str] | None,
        typer.Option(help="Words such as speed, training, deconv, bf16, nchw that must apply; may be repeated."),
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
    """Time transposed convolution against upsampling + convolution at DCGAN's stages; score their checkerboards."""
    from bench.cases import upsampling
    from bench.environment import resolve_device

    _, progress = _consoles()
    if resume is not None:
        run = upsampling.resumed_run(resume)
    else:
        words = tuple(word for text in only or () for word in text.split())
        request = upsampling.UpsamplingRequest(device=resolve_device(device), data=data, seeds=seeds, only=words)
        run = upsampling.new_run(request, out, _command())
    path = run.writer.path
    with _interruptible(path, f", go on with `wallclock run upsampling --resume {path}`"):
        status = run.execute(lambda done: _print_case(progress, done))
    _print_report([path], as_json=json_, html=path / REPORT_PAGE)
    if not json_:
        typer.echo(f"records: {path}")
    _exit_for([status])


def _print_case(progress: "Console", done: "CaseDone") -> None:
    times = ", ".join(f"{way} {1e6 * seconds:,.1f} us" for way, seconds in done.latencies_s.items()) or "done"
    style = "yellow" if done.why_not else ""
    progress.print(f"{done.case}, {done.variant}: {done.why_not or times}", style=style, markup=False)


def _run_static(only: tuple[str, ...], out: Path, *, update_baseline: bool, as_json: bool) -> None:
    from bench.cases import static

    _, progress = _consoles()
    run = static.new_run(out, _command(), only=only, update_baseline=update_baseline)
    path = run.writer.path
    with _interruptible(path):
        status, _, remarks = run.execute()
    for remark in remarks:
        progress.print(remark, style="yellow", markup=False)
    _print_report([path], as_json=as_json)
    if not as_json:
        typer.echo(f"records: {path}")
    _exit_for([status])


@app.command()
def quick(out: Out = RUNS, device: Device = "auto", json_: Json = False) -> None:
    """Run everything, small, on embedded data: tables, and an HTML report. At most 3 minutes on 2 CPU cores."""
    from bench.registry import quick_plan

    _run_plan(quick_plan(), out, None, device, None, as_json=json_)


@app.command()
def suite(
    budget: Annotated[str, typer.Option(help="Time to stay within: 90s, 8m, 1h.")],
    data: Annotated[Path | None, typer.Option(help="Path of the real data set.")] = None,
    out: Out = RUNS,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Run everything this machine can at real sizes, most informative first, within a time budget."""
    from bench.registry import suite_plan

    _run_plan(suite_plan(), out, None if data is None else str(data), device, _seconds(budget), as_json=json_)


def _seconds(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"budget is '{text}'; expected a time such as 90s, 8m or 1h")
    return seconds


def _run_plan(plan: "Plan", out: Path, data: str | None, device: str, budget_s: float | None, *, as_json: bool) -> None:
    from bench.environment import resolve_device
    from bench.registry import Context
    from bench.timing import Deadline

    _, progress = _consoles()
    deadline = Deadline(None if budget_s is None else budget_s - SUITE_MARGIN_S)
    folder = out / _plan_folder(plan.name)
    context = Context(folder, data, resolve_device(device), deadline, progress, _command())
    with _interruptible(folder):
        ended = {job.name: _run_job(job, context) for job in plan.jobs}
    if not folder.exists():
        why = "; ".join(f"{name}: {how}" for name, how in ended.items())
        raise ValueError(f"nothing could be measured. {why}")
    _print_report([folder], as_json=as_json, html=folder / REPORT_PAGE)
    _exit_for(list(ended.values()))


def _plan_folder(name: str) -> str:
    from reports.store import new_run_id

    return new_run_id(name)


def _run_job(job: "Job", context: "Context") -> str:
    """Runs one job of a plan, whatever becomes of it; returns how it ended, with the reason if it did not run."""
    why_not = job.unavailable(context)
    if not why_not and context.deadline.remaining_s() < max(job.at_least_s, 1.0):
        why_not = f"the budget has {max(0.0, context.deadline.remaining_s()):.0f} s left"
    if why_not:
        context.console.print(f"{job.name}: skipped, {why_not}", style="yellow", markup=False)
        return f"skipped, {why_not}"
    context.console.print(f"{job.name}: {job.summary}", style="bold", markup=False)
    try:
        return job.run(context)
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
    _print_report(paths, as_json=json_, html=html, csv=csv, markdown=markdown)


@app.command("list")
def list_(json_: Json = False) -> None:
    """List recipes and benchmarks."""
    from rich.table import Table

    from bench.registry import quick_plan, suite_plan
    from models.recipes import RECIPES, WGAN_RECIPES

    recipes = [RECIPES[name]("cpu") for name in RECIPES]
    wgan_recipes = [WGAN_RECIPES[name]("cpu") for name in WGAN_RECIPES]
    plans = [quick_plan(), suite_plan()]
    if json_:
        document = {
            "recipes": {recipe.name: recipe.resolved() for recipe in recipes},
            "wgan_recipes": {recipe.name: recipe.resolved() for recipe in wgan_recipes},
            **{plan.name: {job.name: job.summary for job in plan.jobs} for plan in plans},
        }
        typer.echo(json.dumps(document, indent=2))
        return
    out, _ = _consoles()
    table = Table("recipe", "epochs", "batch", "what it is", box=None, padding=(0, 2, 0, 0))
    for recipe in recipes:
        table.add_row(recipe.name, f"{recipe.epochs:g}", str(recipe.batch_size), recipe.summary)
    out.print(table)
    table = Table("WGAN recipe", "epochs", "batch", "what it is", box=None, padding=(0, 2, 0, 0))
    for each in wgan_recipes:
        epochs = sum(stage.epochs for stage in each.stages)
        table.add_row(each.name, f"{epochs:g}", str(each.batch_size), each.summary)
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
    """Say what this machine can run, what it cannot and why, and what to install."""
    from dataclasses import asdict

    from bench.environment import capabilities, machine

    found = capabilities()
    if json_:
        typer.echo(json.dumps({"machine": machine(), "capabilities": [asdict(c) for c in found]}, indent=2))
        return
    out, _ = _consoles()
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
    from loaders.cifar10 import describe

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
) -> None:
    """Convert LSUN's LMDB once to images of one size; goes on where it was stopped."""
    from rich.progress import Progress

    from loaders.lsun import convert

    _, progress = _consoles()
    with Progress(console=progress) as bar:
        task = bar.add_task(source.name, total=None)
        convert(
            source, to, size=size, fraction=fraction, workers=workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    typer.echo(f"use it with --data {to}")


@data_app.command("fetch")
def data_fetch(
    to: Annotated[Path, typer.Option(help="Folder to put it in.")] = Path("data"),
    url: Annotated[str | None, typer.Option(help="Another source of the same archive.")] = None,
) -> None:
    """Fetch CIFAR-10's python batches, with resume and checksum."""
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    from loaders.download import CIFAR10_URL, fetch_cifar10

    _, progress = _consoles()
    with Progress(*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn(), console=progress) as bar:
        task = bar.add_task("cifar-10", total=None)
        archive = fetch_cifar10(
            to, url or CIFAR10_URL, lambda done, total: bar.update(task, completed=done, total=total)
        )
    typer.echo(f"use it with --data {archive}")


def _fail(message: str, code: int = USAGE_ERROR) -> NoReturn:
    typer.echo(f"wallclock: {message}", err=True)
    raise SystemExit(code)


def main() -> None:
    """Runs the command line.

    Exit codes: 0 a result (a missed target is one), 2 a request that cannot be met, 3 a run that diverged or failed,
    130 Ctrl-C.
    """
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
