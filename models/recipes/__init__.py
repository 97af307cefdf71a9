"""The recipes, by the names they have on the command line and in the records."""

import difflib
from collections.abc import Callable, Mapping
from typing import TypeVar

from wallclock.models.recipes.cifar10 import RECIPES
from wallclock.models.recipes.cyclegan import CYCLEGAN_RECIPES, CycleGanRecipe
from wallclock.models.recipes.recipe import Recipe
from wallclock.models.recipes.wgan import WGAN_RECIPES, WganRecipe

__all__ = ["RECIPES", "get_cyclegan_recipe", "get_recipe", "get_wgan_recipe"]
AnyRecipe = TypeVar("AnyRecipe", Recipe, WganRecipe, CycleGanRecipe)


def get_recipe(name: str, device_type: str) -> Recipe:
    """Returns the CIFAR-10 recipe of that name.

    Args:
        name: a key of `RECIPES`.
        device_type: "cuda" or "cpu".

    Raises:
        ValueError: if there is none of that name; names the nearest one and all others.
    """
    return _named(RECIPES, name, device_type)


def get_wgan_recipe(name: str, device_type: str) -> WganRecipe:
    """Returns the WGAN recipe of that name; see `get_recipe`."""
    return _named(WGAN_RECIPES, name, device_type)


def get_cyclegan_recipe(name: str, device_type: str) -> CycleGanRecipe:
    """Returns the CycleGAN recipe of that name; see `get_recipe`."""
    return _named(CYCLEGAN_RECIPES, name, device_type)


def _named(recipes: Mapping[str, Callable[[str], AnyRecipe]], name: str, device_type: str) -> AnyRecipe:
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"no recipe '{name}'; {hint}recipes: {', '.join(recipes)}")
    return recipes[name](device_type)
