"""The fields of a recipe that a tuner may change, and the values they may take. This module imports no torch."""

import json
import math
from dataclasses import dataclass
from typing import Any

from wallclock.models.recipes.override import override, parsed
from wallclock.models.recipes.recipe import MuonSGD, Recipe

Value = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A field that is searched, with its range or its values.

    Attributes:
        field: dotted name of the field, as `--set` takes it.
        low: smallest value; only whole numbers are searched where `low`, `high` and the recipe's field are whole.
        high: largest value.
        log: whether the logarithm of the value is searched.
        values: the values to try, at least two, instead of a range; empty for a range.
    """

    field: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    values: tuple[Value, ...] = ()

    def __post_init__(self) -> None:
        if self.values:
            if len(set(self.values)) < 2:
                raise ValueError(f"--search {self.field}: expected at least two values, such as {self.field}=a,b")
            return
        if self.low is None or self.high is None or not self.low < self.high:
            raise ValueError(f"--search {self.field}: expected a range from low to high, got {self.low}:{self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"--search {self.field}: a logarithmic range begins above 0, not at {self.low:g}")

    def stored(self) -> dict[str, Any]:
        """Returns the dimension as JSON types, for a record."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    def whole(self, recipe: Recipe) -> bool:
        """Returns whether only whole numbers are searched: the recipe's field and the ends of the range are whole."""
        ends = (self.low or 0.0, self.high or 0.0)
        return isinstance(current(recipe, self), int) and all(end == math.floor(end) for end in ends)


def current(recipe: Recipe, dimension: Dimension) -> Any:
    """Returns the value that a dimension's field has in a recipe."""
    part: Any = recipe
    for name in dimension.field.split("."):
        part = part[int(name)] if isinstance(part, tuple) else getattr(part, name)
    return part


def dimension(text: str) -> Dimension:
    """Parses `field=low:high`, `field=low:high:log` or `field=a,b,c`.

    Raises:
        ValueError: if the text has none of these forms.
    """
    field, equals, said = (part.strip() for part in text.partition("="))
    if not equals or not field or not said:
        raise ValueError(f"--search {text}: expected field=low:high, field=low:high:log or field=a,b,c")
    if ":" not in said:
        return Dimension(field=field, values=tuple(parsed(each.strip()) for each in said.split(",")))
    low, high, *kind = said.split(":")
    if kind not in ([], ["log"]):
        raise ValueError(f"--search {text}: expected 'log' or nothing after the range")
    try:
        return Dimension(field=field, low=float(low), high=float(high), log=bool(kind))
    except ValueError as error:
        raise error if "--search" in str(error) else ValueError(f"--search {text}: expected two numbers") from None


def check(recipe: Recipe, dimensions: tuple[Dimension, ...]) -> None:
    """Refuses dimensions that the recipe does not take.

    Raises:
        ValueError: if the recipe lacks a field or refuses one of its values or an end of its range.
    """
    names = [each.field for each in dimensions]
    if len(set(names)) < len(names):
        raise ValueError(f"--search: a field stands twice in {', '.join(names)}")
    for each in dimensions:
        for value in each.values or (each.low, each.high):
            if isinstance(value, float) and value.is_integer():
                value = int(value)  # a whole number suits fields of either kind
            changed(recipe, {each.field: value})


def changed(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """Returns the recipe with fields set, by dotted names.

    Raises:
        ValueError: see `override`.
    """
    for field, value in values.items():
        recipe = override(recipe, f"{field}={json.dumps(value)}")
    return recipe


def usual(recipe: Recipe) -> tuple[Dimension, ...]:
    """Returns the dimensions searched by default: budget, rates, smoothing, and how long images are small."""
    muon = isinstance(recipe.optimizer, MuonSGD)
    rates = ("filter_lr", "bias_lr", "head_lr") if muon else ("lr",)
    found = [Dimension(field="epochs", low=round(0.7 * recipe.epochs, 1), high=round(1.2 * recipe.epochs, 1))]
    for name in (*rates, "weight_decay"):
        at = getattr(recipe.optimizer, name)
        found.append(Dimension(field=f"optimizer.{name}", low=at / 2, high=at * 2, log=True))
    found.append(Dimension(field="label_smoothing", low=0.0, high=0.3))
    sizes = (f"resolutions.{number}.until_epoch" for number in range(len(recipe.resolutions)))
    return (*found, *(Dimension(field=field, low=1, high=math.floor(recipe.epochs)) for field in sizes))
