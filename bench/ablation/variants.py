"""The choice of the variants of a recipe that an ablation measures."""

import itertools
from dataclasses import dataclass, replace
from typing import Any, Literal

from wallclock.models.recipes.override import override
from wallclock.models.recipes.studies import STUDIES

How = Literal["leave-one-out", "add-one-in", "grid", "study"]


@dataclass(frozen=True, kw_only=True)
class Variants:
    """A choice of variants.

    Attributes:
        how: "leave-one-out" measures the plain loop, the recipe with all levers, and that without each one;
            "add-one-in" the plain loop, all levers, and each lever alone; "grid" the recipe unchanged, and with each
            combination of fields; "study" the recipe unchanged, and the variants of a study.
        grid: fields with their values, such as "precision=bf16,fp32"; for a study its name.
    """

    how: How = "leave-one-out"
    grid: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.how in ("grid", "study")) != bool(self.grid):
            raise ValueError("a grid names fields and their values, such as --grid batch_size=250,500")

    def stored(self) -> dict[str, Any]:
        """Returns the choice as records keep it; `from_stored` reads it."""
        return {"how": self.how, "grid": list(self.grid)}

    @classmethod
    def from_stored(cls, stored: dict[str, Any]) -> "Variants":
        """Returns the choice that records keep as `stored`."""
        return cls(how=stored["how"], grid=tuple(stored["grid"]))

    def of(self, recipe: Any) -> dict[str, Any]:
        """Returns the recipe of each variant by name; the others are measured against the first.

        Args:
            recipe: a recipe with `levers`, `without` and `precision`; see `models.recipes.levers`.

        Raises:
            ValueError: if a field of the grid is unknown or does not take a value; or if levers are to be left out of a
                recipe without any.
        """
        from wallclock.reports.views.ablation import ALL, AS_IS, BASELINE  # imports numpy

        if self.how == "grid":
            return {AS_IS: recipe} | _grid(recipe, self.grid)
        if self.how == "study":
            return {AS_IS: recipe} | STUDIES[self.grid[0]].variants(recipe)
        levers = recipe.levers()
        if not levers:
            raise ValueError(f"{recipe.name} has no levers here that could be left out; name fields with --grid")
        variants = {BASELINE: recipe.without(*levers), ALL: recipe}
        if recipe.precision == "fp32":
            variants[f"{ALL}, bf16"] = replace(recipe, precision="bf16")
        if len(levers) > 1 and self.how == "leave-one-out":
            variants |= {f"without {lever.rpartition('.')[2]}": recipe.without(lever) for lever in levers}
        if len(levers) > 1 and self.how == "add-one-in":
            others = {lever: [other for other in levers if other != lever] for lever in levers}
            variants |= {f"only {one.rpartition('.')[2]}": recipe.without(*rest) for one, rest in others.items()}
        return variants


def _grid(recipe: Any, grid: tuple[str, ...]) -> dict[str, Any]:
    axes: list[list[str]] = []
    for text in grid:
        field, equals, values = text.partition("=")
        if not equals or not values:
            raise ValueError(f"--grid {text}: expected field=value,value, such as batch_size=250,500")
        axes.append([f"{field.strip()}={value.strip()}" for value in values.split(",")])
    variants = {}
    for assignments in itertools.product(*axes):
        changed = override(recipe, *assignments)
        if changed.hash() != recipe.hash():  # the unchanged recipe is measured already
            variants[", ".join(assignments)] = changed
    if not variants:
        raise ValueError(f"--grid {' '.join(grid)}: all of it is the recipe as it is")
    return variants
