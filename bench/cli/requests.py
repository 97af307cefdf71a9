"""Commands of tasks: makes options from the fields of a request, and a request from the options. Imports no torch."""

import enum
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from wallclock.bench.cli.options import RUNS, Device, Json, Out, Resume, Set
from wallclock.bench.cli.output import consoles, end_run, interruptible
from wallclock.bench.runs.request import Request
from wallclock.bench.runs.task import Task

if TYPE_CHECKING:
    from pathlib import Path

    from wallclock.bench.runs.training import TrainingRun


def make_choice(name: str, values: Iterable[str]) -> Any:
    """Returns an enumeration of the values that an option accepts, for use as its type."""
    make: Any = enum.StrEnum
    return make(name, {value: value for value in values})


def make_option(name: str, annotation: Any, default: Any, help: str = "", flag: str = "") -> inspect.Parameter:
    """Returns one option of a command, whose value the keyword argument `name` receives.

    A type that is already annotated for typer needs no `help`; without a `flag` such as "--class", the option as typed
    is derived from the name.
    """
    if help:
        if get_origin(annotation) is Literal:
            annotation = make_choice(name, get_args(annotation))
        if default is None:
            annotation = annotation | None
        annotation = Annotated[annotation, typer.Option(*([flag] if flag else []), help=help)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


COMMON = (
    make_option("device", Device, "auto"),
    make_option("set_", Set, None),
    make_option("resume", Resume, None),
    make_option("out", Out, RUNS),
    make_option("json_", Json, False),
)


def request_options(kind: type[Request]) -> list[inspect.Parameter]:
    """Returns the options of a class of requests, one for each field that `bench.runs.request.option` made."""
    types = get_type_hints(kind)
    return [
        make_option(f.name, types[f.name], f.default, f.metadata["help"], f.metadata["flag"])
        for f in fields(kind)
        if "help" in f.metadata
    ]


def make_command(help: str, options: Sequence[inspect.Parameter], call: Callable[..., None]) -> Callable[..., None]:
    """Returns a function that typer can turn into a command, and that calls `call` with the value of each option.

    The help is `help`, with the options in their order.
    """

    def command(**given: Any) -> None:
        call(**given)

    command.__doc__ = help
    command.__annotations__ = {each.name: each.annotation for each in options}
    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return command


def make_request(
    task: Task, kind: type[Request], recipe: str, changes: Iterable[str], device: str, given: Mapping[str, Any]
) -> Request:
    """Returns the request of a class that the options of a command describe.

    `changes` are new values of the recipe's fields as `--set` takes them, such as "epochs=2"; `given` are the request's
    other fields; `device` is "cpu", "cuda" or "auto".

    Raises:
        ValueError: if there is no such recipe, field or device, or a value is out of range.
    """
    from wallclock.bench.measure.environment import resolve_device
    from wallclock.models.recipes.override import override

    device_type = resolve_device(device)
    resolved = override(task.get_recipe(recipe, device_type), *changes)
    plain = {name: value.value if isinstance(value, enum.Enum) else value for name, value in given.items()}
    return kind.on_device(device_type, recipe=resolved, **plain)


def execute(run: "TrainingRun", command: str, *, as_json: bool) -> None:
    """Executes a run with progress on standard error, prints its tables, and exits with the code of its status.

    `command` is the command line that, with `--resume PATH` added, continues the run after Ctrl-C.
    """
    _, progress = consoles()
    path: Path = run.writer.path
    with run.display(progress) as observe, interruptible(path, f", go on with `{command} --resume {path}`"):
        status = run.execute(observe)
    end_run(path, status, as_json=as_json)
