"""Changes to a recipe by name, as the command line and ablations write them: `optimizer.momentum=0.9`."""

import dataclasses
import json
import math
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from wallclock.models.recipes.levers import Levered, unknown

AnyRecipe = TypeVar("AnyRecipe", bound=Levered)


def override(recipe: AnyRecipe, *assignments: str) -> AnyRecipe:
    """Returns the recipe with fields changed, one after the other.

    Args:
        recipe: the recipe to start from; it stays as it is.
        assignments: texts `field=value` or `part.field=value`; `parts.0.field` names a field of a tuple's first part.
            Values are JSON, or bare text for names.

    Raises:
        ValueError: if no field has that name (names the nearest), or the field does not take the value.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(
                f"--set {assignment}: expected field=value, such as epochs=2 or implementations.compile=true"
            )
        recipe = _replaced(recipe, key.strip().split("."), parsed(text.strip()), assignment)
    return recipe


def parsed(text: str) -> Any:
    """Returns the value that a text stands for: JSON, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _replaced(part: Any, path: list[str], value: Any, assignment: str) -> Any:
    name, *rest = path
    if isinstance(part, tuple):
        if name not in map(str, range(len(part))) or not rest:
            raise ValueError(f"--set {assignment}: got part '{name}' of {len(part)}; the first field is 0.field")
        place = int(name)
        return (*part[:place], _replaced(part[place], rest, value, assignment), *part[place + 1 :])
    names = [f.name for f in dataclasses.fields(part)]
    if name not in names:
        raise ValueError(f"--set {assignment}: {unknown('field', name, names)}")
    present = getattr(part, name)
    if rest:
        if not dataclasses.is_dataclass(present) and not isinstance(present, tuple):
            raise ValueError(f"--set {assignment}: '{name}' has no parts; write {name}=value")
        return dataclasses.replace(part, **{name: _replaced(present, rest, value, assignment)})
    return dataclasses.replace(part, **{name: _converted(get_type_hints(type(part))[name], present, value, assignment)})


def _converted(declared: Any, present: Any, value: Any, assignment: str) -> Any:
    if value is None and type(None) in get_args(declared):
        return None
    if dataclasses.is_dataclass(present):
        raise ValueError(f"--set {assignment}: set one of its fields: {', '.join(vars(present))}")
    if isinstance(present, tuple) and value == []:
        return ()
    if get_origin(declared) is Literal and value not in get_args(declared):
        raise ValueError(f"--set {assignment}: got {value!r}, expected one of {', '.join(get_args(declared))}")
    if declared is float and type(value) in (int, float) and math.isfinite(value):
        # 7 stays 7 where the recipe has a whole number: 7.0 would be another text in its record, and so another hash.
        return int(value) if type(present) is int and value == int(value) else float(value)
    if declared is float or type(value) is not type(present):
        raise ValueError(f"--set {assignment}: got {value!r}, expected something like {present!r}")
    return value
