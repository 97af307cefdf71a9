"""Counts of a training step, which depend on the code alone: a busy machine gives the same figures as an idle one.

`python -m wallclock.bench.compare.counts "sprint batch_size=8"` prints the operator calls of one turn and the bytes
that they allocate or, for a recipe that compiles, its graphs and graph breaks. `wallclock gate --counts` compares them.
"""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wallclock.bench.compare.recipe_turn import parse_recipe, turns_of


class Tally(TorchDispatchMode):
    """A counter of operator calls and of the memory that their outputs allocate.

    Attributes:
        operators: number of operator calls so far.
        allocated_bytes: bytes of outputs that share no memory with an input; an operator's scratch memory is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.allocated_bytes = 0, 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operators += 1
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in tree_leaves(out)
            if isinstance(t, torch.Tensor)
        }
        self.allocated_bytes += sum(size for place, size in made.items() if place not in given)
        return out


def count_turn(text: str) -> dict[str, tuple[float, str]]:
    """Returns the counts of one turn of a recipe on the CPU: a value and a unit for each metric's name.

    Args:
        text: a recipe's name and the fields to set; see `bench.compare.recipe_turn.parse_recipe`.

    Raises:
        ValueError: if there is no such recipe or field.
    """
    task, recipe, options = parse_recipe(text, "cpu")
    compiled = recipe.implementations.compile
    with ExitStack() as stack:
        turn = turns_of(task, recipe, options, "cpu")(stack)
        turn()
        if not compiled:
            with Tally() as tally:
                turn()
            allocated = (float(tally.allocated_bytes), "allocated bytes")
            return {"operators": (float(tally.operators), "count"), "allocated": allocated}
        from torch._dynamo.utils import counters  # the operators are inside the graphs

        turn()
        breaks = float(sum(counters["graph_break"].values()))
        return {"graphs": (float(counters["stats"]["unique_graphs"]), "count"), "graph_breaks": (breaks, "count")}


if __name__ == "__main__":
    try:
        for name, (value, unit) in count_turn(" ".join(sys.argv[1:])).items():
            print(json.dumps({"metric": name, "value": value, "unit": unit}))
    except ValueError as error:
        sys.exit(f"wallclock: {error}")
