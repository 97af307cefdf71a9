"""The base of all recipes: how records store them, and which levers they have. This module imports no torch."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns the message about a name that is not among the known ones of its kind; names the nearest and all."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"no {kind} '{name}'; {hint}{kind}s: {', '.join(known)}"


def plain_loop(**implementations: bool | str) -> dict[str, bool | str]:
    """Returns the levers of a recipe with their values in the plain loop, which is eager PyTorch in float32 and NCHW.

    `implementations` has fields of the recipe's `implementations` besides those that all recipes have.
    """
    shared = dict.fromkeys(("channels_last", "compile", "cuda_graph", "keep_heap"), False)
    values = {f"implementations.{name}": value for name, value in {**shared, **implementations}.items()}
    return {**values, "precision": "fp32"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levered:
    """Base class of the recipes, which are frozen dataclasses with levers: fields that make them faster.

    Attributes:
        name: name of the recipe, in records and on the command line.
        summary: description in one line, for `wallclock list`.
        PARTS: dataclasses that the recipe's fields may hold.
        LEVERS: value of each lever in the plain loop, by the field's dotted name.
        CHANGES: what a lever changes in the computation, for levers that move the losses by more than float32 rounding.
    """

    PARTS: ClassVar[tuple[type[Any], ...]]
    LEVERS: ClassVar[Mapping[str, bool | str]]
    CHANGES: ClassVar[Mapping[str, str]]

    name: str
    summary: str

    def resolved(self) -> dict[str, Any]:
        """Returns the recipe as JSON types for the records; each part bears the name of its class under "type"."""

        def plain(value: Any) -> Any:
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
                return fields if value is self else {"type": type(value).__name__, **fields}
            if isinstance(value, list | tuple):
                return [plain(item) for item in value]
            if isinstance(value, dict):
                return {name: plain(item) for name, item in value.items()}
            return value

        return plain(self)

    @classmethod
    def from_resolved(cls, resolved: dict[str, Any]) -> Self:
        """Returns the recipe from which `resolved` was made.

        Raises:
            ValueError: if a field or a part is unknown: the record is of another version.
        """
        parts = {part.__name__: part for part in cls.PARTS}

        def rebuilt(value: Any) -> Any:
            if isinstance(value, list):
                return tuple(rebuilt(item) for item in value)
            if isinstance(value, dict):
                return parts[value["type"]](**{k: rebuilt(v) for k, v in value.items() if k != "type"})
            return value

        try:
            return cls(**{k: value if k == "model_arguments" else rebuilt(value) for k, value in resolved.items()})
        except (KeyError, TypeError) as error:
            raise ValueError(f"the record's recipe is of another version ({error}); start a new run") from None

    def hash(self) -> str:
        """Returns twelve hex digits; two recipes share them only when they compute the same."""
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()[:12]

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
                raise ValueError(unknown("lever", name, self.LEVERS))
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
