"""The recipes, by the names they have on the command line and in the records."""

import difflib
from collections.abc import Callable, Mapping
from typing import TypeVar

from wallclock.models.recipes.cifar10 import RECIPES
from wallclock.models.recipes.recipe import Recipe

__all__ = ["RECIPES", "find_recipe", "get_recipe"]
AnyRecipe = TypeVar("AnyRecipe")


def get_recipe(name: str, device_type: str) -> Recipe:
    """Returns the CIFAR-10 recipe of that name; see `find_recipe`."""
    return find_recipe(RECIPES, name, device_type)


def find_recipe(recipes: Mapping[str, Callable[[str], AnyRecipe]], name: str, device_type: str) -> AnyRecipe:
    """Returns the recipe of that name.

    Args:
        recipes: makers of recipes by name, such as `RECIPES`; each takes "cuda" or "cpu".
        name: a key of `recipes`.
        device_type: "cuda" or "cpu".

    Raises:
        ValueError: if there is none of that name; names the nearest one and all others.
    """
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"no recipe '{name}'; {hint}recipes: {', '.join(recipes)}")
    return recipes[name](device_type)
