"""Commands of tasks: their options are made from a request's fields, and their request from the options. No torch."""

import enum
import inspect
from collections.abc import Callable, Iterable, Mapping
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

Options = dict[str, inspect.Parameter]


def make_choice(name: str, values: Iterable[str]) -> Any:
    """Returns the type of an option that takes one of some values."""
    make: Any = enum.StrEnum
    return make(name, {value: value for value in values})


def make_option(name: str, annotation: Any, default: Any, help: str = "", flag: str = "") -> inspect.Parameter:
    """Returns one option of a command.

    Args:
        name: of the keyword that the command is called with.
        annotation: its type; one that is annotated for typer already needs no help.
        default: its value where it is not given.
        help: one line.
        flag: the option; by default made from the name.
    """
    if help:
        if get_origin(annotation) is Literal:
            annotation = make_choice(name, get_args(annotation))
        if default is None:
            annotation = annotation | None
        annotation = Annotated[annotation, typer.Option(*([flag] if flag else []), help=help)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


COMMON: Options = {
    name: make_option(name, kind, default)
    for name, kind, default in (
        ("device", Device, "auto"),
        ("set_", Set, None),
        ("resume", Resume, None),
        ("out", Out, RUNS),
        ("json_", Json, False),
    )
}


def request_options(kind: type[Request]) -> Options:
    """Returns the options of a class of requests: fields made by `bench.runs.request.option`."""
    types = get_type_hints(kind)
    return {
        f.name: make_option(f.name, types[f.name], f.default, f.metadata["help"], f.metadata["flag"])
        for f in fields(kind)
        if "help" in f.metadata
    }


def make_command(help: str, options: Mapping[str, inspect.Parameter], call: Callable[..., None]) -> Callable[..., None]:
    """Returns a function that typer can make a command of.

    Args:
        help: what the command does.
        options: of the command, in order.
        call: is called with the value of each option by its name.
    """

    def command(**given: Any) -> None:
        call(**given)

    command.__doc__ = help
    command.__annotations__ = {name: each.annotation for name, each in options.items()}
    command.__signature__ = inspect.Signature(list(options.values()))  # type: ignore[attr-defined]
    return command


def make_request(
    task: Task, kind: type[Request], recipe: str, changes: Iterable[str], device: str, given: Mapping[str, Any]
) -> Request:
    """Returns a request as the options of its command ask for it.

    Args:
        task: what is trained.
        kind: the class of the request.
        recipe: the recipe's name.
        changes: of its fields, as `--set` takes them.
        device: as `--device` takes it.
        given: other fields of the request.

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
    """Runs it with its progress on standard error, prints its tables, and exits by how it ended.

    Args:
        run: ready to be executed.
        command: that goes on with it when `--resume` is added.
        as_json: whether to print JSON.
    """
    _, progress = consoles()
    path: Path = run.writer.path
    with run.display(progress) as observe, interruptible(path, f", go on with `{command} --resume {path}`"):
        status = run.execute(observe)
    end_run(path, status, as_json=as_json)
