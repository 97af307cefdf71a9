"""One turn of a recipe in a process of its own: what `wallclock compare sprint wrn22` runs on each side.

`python -m wallclock.bench.compare.recipe_turn "wgan/lesson precision=bf16"` builds the recipe, takes one warm-up turn
and one measured turn, and prints the figures of the latter as lines that `bench.compare.rounds` reads.
"""

import json
import sys
from contextlib import ExitStack
from typing import Any

from wallclock.bench.measure.turns import Contender
from wallclock.bench.runs.task import Task
from wallclock.bench.tasks.registry import TASKS, task_named
from wallclock.models.recipes.override import override

OPTIONS = {"data": "synthetic", "device": "auto", "seed": "0"}


def parse_recipe(text: str, device_type: str) -> tuple[Task, Any, dict[str, str]]:
    """Returns the task, the recipe with the given fields set, and the `OPTIONS` (data, device, seed) as texts.

    Args:
        text: `sprint`, or `wgan/lesson`, then words such as `precision=bf16`, `data=PATH`, `device=cpu`, `seed=1`.
        device_type: "cpu" or "cuda"; the recipe's implementations are chosen for this device.

    Raises:
        ValueError: if there is no such task, recipe or field.
    """
    named, *words = text.split()
    of, slash, name = named.rpartition("/")
    task = task_named(of) if slash else next(task for task in TASKS.values() if task.unnamed)
    recipe, options = task.get_recipe(name, device_type), dict(OPTIONS)
    for word in words:
        key, _, value = word.partition("=")
        if key in options:
            options[key] = value
        else:
            recipe = override(recipe, word)
    return task, recipe, options


def turns_of(task: Task, recipe: Any, options: dict[str, str], device_type: str) -> Contender:
    """Loads a recipe's data and returns the contender that takes the recipe's turns; see `bench.ablation.turns`."""
    request = task.ablation(  # type: ignore[call-arg]
        recipe=recipe, data=options["data"], device=device_type, seed=int(options["seed"])
    )
    training = task.training()
    return training.turns(request, training.load(request)).contender("recipe", recipe)


def main() -> None:
    """Takes a warm-up turn and a measured turn, and prints the figures of the measured turn."""
    from wallclock.bench.measure.environment import resolve_device

    text = " ".join(sys.argv[1:])
    device_type = resolve_device(parse_recipe(text, "cpu")[2]["device"])
    task, recipe, options = parse_recipe(text, device_type)
    with ExitStack() as stack:
        turn = turns_of(task, recipe, options, device_type)(stack)
        turn()
        for metric, unit, value in turn().figures:
            print(json.dumps({"metric": metric, "value": value, "unit": unit}))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"wallclock: {error}")
