"""Studies: variants of a recipe that are measured side by side. No torch here."""

from collections.abc import Callable
from dataclasses import replace

from models.recipes.recipe import Recipe


def wide_resnet(recipe: Recipe) -> dict[str, Recipe]:
    """Returns the lesson's variants of a Wide ResNet: what the branch's inside, its kernels and the groups cost.

    The lesson took them from the Wide ResNet paper, and timed them: FLOPs do not tell.

    Args:
        recipe: of which the network is a Wide ResNet.

    Raises:
        ValueError: if it is none.
    """
    if recipe.model != "wrn_22":
        raise ValueError(f"the study is of a Wide ResNet, and {recipe.name}'s network is {recipe.model}; use wrn22")
    changes: dict[str, dict[str, object]] = {
        "inner ni//2": {"inner": 0.5},
        "inner ni*2": {"inner": 2.0},
        "bottleneck 1-3-1, ni//2": {"inner": 0.5, "kernels": [1, 3, 1]},
        "kernels 1-3": {"kernels": [1, 3]},
        "kernels 3-1": {"kernels": [3, 1]},
        "kernels 5-5": {"kernels": [5, 5]},
        "an extra conv": {"kernels": [3, 3, 3]},
        "blocks 2-2-5": {"blocks": [2, 2, 5]},
        "blocks 5-2-2": {"blocks": [5, 2, 2]},
        "two groups": {"blocks": [4, 5]},
        "four groups": {"blocks": [2, 2, 2, 3]},
        "half as wide, 12 blocks": {"widen": 3, "blocks": 12},
    }
    return {
        name: replace(recipe, model_arguments={**recipe.model_arguments, **change}) for name, change in changes.items()
    }


STUDIES: dict[str, Callable[[Recipe], dict[str, Recipe]]] = {"wide-resnet": wide_resnet}
