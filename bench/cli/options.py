"""Options that several commands share. This module does not import torch."""

import enum
from pathlib import Path
from typing import Annotated

import typer

RUNS = Path("runs")

Paths = Annotated[list[Path], typer.Argument(help="Runs, or folders that hold some.")]
Html = Annotated[Path | None, typer.Option(help="Write the HTML page here.")]
Out = Annotated[Path, typer.Option(help="Folder that runs are written to, each in a directory of its own.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Resume = Annotated[Path | None, typer.Option(help="Go on with this run; no other option but --json applies.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto for the GPU where there is one.")]

Set = Annotated[list[str] | None, typer.Option("--set", help="Change a recipe field, such as epochs=2.")]
Tolerance = Annotated[
    float | None, typer.Option(help="A change up to this share is no matter; 0.02 by default, or as declared.")
]
Timeout = Annotated[float, typer.Option(help="Seconds after which a command has failed.")]
Repository = Annotated[Path, typer.Option("--repository", help="The repository, and where commands run.")]


class Engine(enum.StrEnum):
    """A place other than this process in which rounds and trials can run."""

    ray = "ray"


On = Annotated[Engine | None, typer.Option(help="ray: each is a task of a Ray cluster, with a whole GPU or some CPUs.")]
Cpus = Annotated[int, typer.Option(help="With --on ray and --device cpu: cores for each Ray task.")]


def seconds(text: str) -> float:
    """Converts a time such as 90s, 8m or 1h to seconds.

    Raises:
        ValueError: if the text is not a positive, finite time in this form.
    """
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        found = float(number) * units[unit]
    except ValueError:
        found = -1.0
    if not 0 < found < float("inf"):
        raise ValueError(f"budget is '{text}'; expected a time such as 90s, 8m or 1h")
    return found
