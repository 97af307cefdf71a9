"""The recipes, by the names they have on the command line and in the records."""

import difflib
from collections.abc import Callable

from models.recipes.darknet import darknet
from models.recipes.recipe import Recipe
from models.recipes.sprint import sprint
from models.recipes.wrn22 import wrn22

RECIPES: dict[str, Callable[[str], Recipe]] = {"sprint": sprint, "wrn22": wrn22, "darknet": darknet}


def get_recipe(name: str, device_type: str) -> Recipe:
    """Returns the recipe of that name.

    Args:
        name: a key of `RECIPES`.
        device_type: "cuda" or "cpu".

    Raises:
        ValueError: if there is none of that name; names the nearest one and all others.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"no recipe '{name}'; {hint}recipes: {', '.join(RECIPES)}")
    return RECIPES[name](device_type)
