"""Levers: fields of a recipe that may differ from the plain loop it is measured against. It imports no torch."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from wallclock.models.recipes.resolving import Resolvable

# Values, in the plain loop, of the levers that all recipes have: eager PyTorch in float32 and NCHW.
PLAIN: dict[str, bool | str] = {
    "implementations.channels_last": False,
    "implementations.compile": False,
    "implementations.cuda_graph": False,
    "implementations.keep_heap": False,
}


def plain_loop(**implementations: bool | str) -> dict[str, bool | str]:
    """Returns the levers of a recipe with their values in the plain loop: those of all recipes, and the ones given.

    Args:
        implementations: values of further fields of the recipe's `implementations` in the plain loop.
    """
    own = {f"implementations.{name}": value for name, value in implementations.items()}
    return {**PLAIN, **own, "precision": "fp32"}


class Levered(Resolvable):
    """A recipe with levers: fields that make it faster than the plain loop.

    Attributes:
        LEVERS: value of each lever in the plain loop, by the field's dotted name.
        CHANGES: what a lever changes in the computation, for levers that move the losses by more than float32 rounding.
    """

    LEVERS: ClassVar[Mapping[str, bool | str]]
    CHANGES: ClassVar[Mapping[str, str]]

    def levers(self) -> tuple[str, ...]:
        """Returns the dotted names of the levers whose value is not the plain loop's, as `--set` names them."""
        return tuple(name for name, value in self.LEVERS.items() if self._field(name) != value)

    def without(self, *levers: str) -> Self:
        """Returns the recipe with these levers set back to the plain loop.

        Raises:
            ValueError: if one of the names is no lever; names the nearest.
        """
        recipe: Any = self
        for name in levers:
            if name not in self.LEVERS:
                near = difflib.get_close_matches(name, self.LEVERS, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}? " if near else ""
                raise ValueError(f"no lever '{name}'; {hint}levers: {', '.join(self.LEVERS)}")
            owner, _, inner = name.rpartition(".")
            plain: Any = self.LEVERS[name]
            part = dataclasses.replace(getattr(recipe, owner), **{inner: plain}) if owner else plain
            recipe = dataclasses.replace(recipe, **{owner or inner: part})
        return recipe

    @property
    def variant(self) -> str:
        """The name of the levers in the records: `plain`, or what is switched, such as `channels_last+bf16`."""

        def short(name: str) -> str:
            value, last = self._field(name), name.rpartition(".")[2]
            if name == "precision":
                return str(value)
            return f"no {last}" if value is False else last if value is True else f"{value} {last}"

        return "+".join(map(short, self.levers())) or "plain"

    def changes(self) -> tuple[str, ...]:
        """Returns, in words, what this recipe computes differently from the plain loop; empty if nothing."""
        return tuple(
            f"{name}={self._field(name)}: {self.CHANGES[name]}" for name in self.levers() if name in self.CHANGES
        )

    def _field(self, name: str) -> bool | str:
        owner, _, inner = name.rpartition(".")
        return getattr(getattr(self, owner) if owner else self, inner)
