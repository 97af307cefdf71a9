"""Levers: fields of a recipe that differ from what they are in the plain loop it is measured against. No torch here."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from models.recipes.resolving import Resolvable

AnyRecipe = TypeVar("AnyRecipe", bound=Resolvable)
Plain = Mapping[str, bool | str]  # dotted names of fields, and what they are in the plain loop


def field_of(recipe: Resolvable, name: str) -> bool | str:
    """Returns a field by its dotted name."""
    owner, _, inner = name.rpartition(".")
    return getattr(getattr(recipe, owner) if owner else recipe, inner)


def levers_of(recipe: Resolvable, plain: Plain) -> tuple[str, ...]:
    """Returns the fields that differ from the plain loop's, as `--set` names them."""
    return tuple(name for name, value in plain.items() if field_of(recipe, name) != value)


def without(recipe: AnyRecipe, plain: Plain, *levers: str) -> AnyRecipe:
    """Returns the recipe with these fields as they are in the plain loop.

    Raises:
        ValueError: if one is no lever; names the nearest.
    """
    for name in levers:
        if name not in plain:
            near = difflib.get_close_matches(name, plain, n=1, cutoff=0.5)
            raise ValueError(
                f"no lever '{name}'; {f'did you mean {near[0]}? ' if near else ''}levers: {', '.join(plain)}"
            )
        owner, _, inner = name.rpartition(".")
        part: Any = dataclasses.replace(getattr(recipe, owner), **{inner: plain[name]}) if owner else plain[name]
        change: dict[str, Any] = {owner or inner: part}
        recipe = dataclasses.replace(recipe, **change)  # type: ignore[type-var]
    return recipe


def variant_of(recipe: Resolvable, plain: Plain) -> str:
    """Returns the name of a recipe's levers in the records: `plain`, or such as `channels_last+bf16`."""

    def short(name: str) -> str:
        value, last = field_of(recipe, name), name.rpartition(".")[2]
        if name == "precision":
            return str(value)
        return f"no {last}" if value is False else last if value is True else f"{value} {last}"

    return "+".join(short(name) for name in levers_of(recipe, plain)) or "plain"


def changes_of(recipe: Resolvable, plain: Plain, inexact: Mapping[str, str]) -> tuple[str, ...]:
    """Returns in words what a recipe computes otherwise than the plain loop.

    Args:
        recipe: of which the levers are looked at.
        plain: what they are in the plain loop.
        inexact: levers whose numbers are others, and what they change.
    """
    return tuple(
        f"{name}={field_of(recipe, name)}: {inexact[name]}" for name in levers_of(recipe, plain) if name in inexact
    )
