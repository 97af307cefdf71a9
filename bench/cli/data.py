"""`wallclock data`: fetches, converts and checks data sets."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from wallclock.bench.cli.options import Json
from wallclock.bench.cli.output import consoles, print_json

data_app = typer.Typer(
    help="Fetch data sets, and check what lies on the disk.", no_args_is_help=True, rich_markup_mode=None
)


class Fetched(enum.StrEnum):
    """A data set that `wallclock data fetch` can download."""

    cifar10 = "cifar10"
    horse2zebra = "horse2zebra"


@data_app.command("check")
def data_check(path: Annotated[Path, typer.Argument(help="Path of the data set.")], json_: Json = False) -> None:
    """Read a data set whole and say what it is."""
    from wallclock.loaders.data.cifar10 import describe

    description = describe(path)
    if json_:
        print_json(description)
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

    with Progress(console=consoles()[1]) as bar:
        task = bar.add_task(source.name, total=None)
        convert(
            source, to, size=size, fraction=fraction, workers=workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    _print_use(to, as_json=json_)


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
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=consoles()[1]) as bar:
        task = bar.add_task(name.value, total=None)
        given = {} if url is None else {"url": url}
        found = fetch(to, progress=lambda done, total: bar.update(task, completed=done, total=total), **given)
    _print_use(found, as_json=json_)


def _print_use(data: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({"data": str(data)})
    else:
        typer.echo(f"use it with --data {data}")
