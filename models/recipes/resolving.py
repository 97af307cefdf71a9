"""Recipes as the records store them: turned into JSON types, rebuilt from those, and hashed. It imports no torch."""

import dataclasses
import hashlib
import json
from typing import Any, ClassVar, Self


class Resolvable:
    """Base class of the recipes, which are frozen dataclasses: turns them to JSON types and back, and hashes them.

    Attributes:
        PARTS: dataclasses that the recipe's fields may hold.
    """

    PARTS: ClassVar[tuple[type[Any], ...]]

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
