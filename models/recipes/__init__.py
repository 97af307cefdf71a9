"""The CIFAR-10 recipes, by their names on the command line and in the records."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from wallclock.models.recipes.cifar10 import RECIPES
from wallclock.models.recipes.levers import unknown
from wallclock.models.recipes.recipe import Recipe

__all__ = ["RECIPES", "find_recipe", "get_recipe"]
AnyRecipe = TypeVar("AnyRecipe")


def get_recipe(name: str, device_type: str) -> Recipe:
    """Returns the CIFAR-10 recipe of that name; see `find_recipe`."""
    return find_recipe(RECIPES, name, device_type)


def find_recipe(recipes: Mapping[str, Callable[[str], AnyRecipe]], name: str, device_type: str) -> AnyRecipe:
    """Returns a recipe by its name in a registry of recipes.

    Args:
        recipes: functions that make a recipe from "cuda" or "cpu", by the recipe's name, such as `RECIPES`.
        name: a key of `recipes`.
        device_type: type of the device, "cuda" or "cpu".

    Raises:
        ValueError: if no recipe has that name; names the nearest one and all others.
    """
    if name not in recipes:
        raise ValueError(unknown("recipe", name, recipes))
    return recipes[name](device_type)
