"""Changes to a recipe by name, as the command line and ablations write them: `optimizer.momentum=0.9`."""

import dataclasses
import difflib
import json
from typing import Any

from models.recipes.recipe import Recipe


def override(recipe: Recipe, assignment: str) -> Recipe:
    """Returns the recipe with one field changed.

    Args:
        recipe: to change.
        assignment: `field=value`, or `part.field=value`; the value as JSON, or as bare text for names.

    Raises:
        ValueError: if there is no such field (names the nearest), or the value has another type than the present one.
    """
    key, equals, text = assignment.partition("=")
    if not equals:
        raise ValueError(f"--set {assignment}: expected field=value, such as epochs=2 or implementations.compile=true")
    return _replaced(recipe, key.strip().split("."), _parsed(text.strip()), assignment)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _replaced(part: Any, path: list[str], value: Any, assignment: str) -> Any:
    names = [f.name for f in dataclasses.fields(part)]
    name, *rest = path
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"--set {assignment}: no field '{name}'; {hint}fields: {', '.join(names)}")
    present = getattr(part, name)
    if rest:
        if not dataclasses.is_dataclass(present):
            raise ValueError(f"--set {assignment}: '{name}' has no parts; write {name}=value")
        return dataclasses.replace(part, **{name: _replaced(present, rest, value, assignment)})
    return dataclasses.replace(part, **{name: _converted(present, value, assignment)})


def _converted(present: Any, value: Any, assignment: str) -> Any:
    if dataclasses.is_dataclass(present) and value is not None:
        raise ValueError(f"--set {assignment}: set one of its fields: {', '.join(vars(present))}")
    if isinstance(present, tuple) and value == []:
        return ()
    if isinstance(present, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    number = isinstance(present, int) and not isinstance(present, bool) and isinstance(value, float)
    if number or (value is not None and present is not None and type(value) is not type(present)):
        raise ValueError(f"--set {assignment}: got {value!r}, expected something like {present!r}")
    return value
