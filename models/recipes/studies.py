"""Studies: variants of a recipe that are measured side by side. This module imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from wallclock.models.recipes.recipe import MuonSGD, Recipe


def wide_resnet(recipe: Recipe) -> dict[str, Recipe]:
    """Returns the lesson's variants of a Wide ResNet: inner widths, kernels and groups, to compare their cost.

    The lesson took them from the Wide ResNet paper and timed them, because FLOPs do not predict the time.

    Raises:
        ValueError: if the recipe's network is another one.
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


def devices(recipe: Recipe) -> dict[str, Recipe]:
    """Returns recipes with the share of the batch that each of 2, 4 and 8 devices computes in a step.

    Raises:
        ValueError: if the recipe's batch size is no multiple of 8.
    """
    if recipe.batch_size % 8:
        raise ValueError(
            f"a batch of {recipe.batch_size} cannot be shared by 8 devices; use --set batch_size="
            f"{max(8, recipe.batch_size // 8 * 8)}"
        )
    return {f"part of {n} devices": replace(recipe, batch_size=recipe.batch_size // n) for n in (2, 4, 8)}


def schedule(recipe: Recipe) -> dict[str, Recipe]:
    """Returns a recipe without each lever whose gain shows over a whole run, for measurements that cover its schedule.

    Raises:
        ValueError: if all steps of the recipe are alike.
    """
    removed: dict[str, dict[str, Any]] = {}
    if recipe.resolutions:
        removed["images at full size"] = {"resolutions": ()}
    if isinstance(rule := recipe.optimizer, MuonSGD) and rule.first_schedules:
        removed["no group ends first"] = {"optimizer": replace(rule, first_schedules=())}
    if not removed:
        raise ValueError(f"every step of {recipe.name} is like the others; use --recipe sprint, or --leave-one-out")
    if recipe.model_arguments.get("act", "gelu") != "gelu":
        removed["GELU"] = {"model_arguments": {**recipe.model_arguments, "act": "gelu"}}
    for name in ("keep_heap", "product_conv"):
        if getattr(recipe.implementations, name):
            lacking: dict[str, Any] = {name: False}
            removed[f"no {name}"] = {"implementations": replace(recipe.implementations, **lacking)}
    return {name: replace(recipe, **change) for name, change in removed.items()}


@dataclass(frozen=True)
class Study:
    """A set of variants of a recipe by name, and its description for the command line."""

    variants: Callable[[Recipe], dict[str, Recipe]]
    help: str


STUDIES = {
    "wide-resnet": Study(wide_resnet, "wide-resnet: the lesson's widths, kernels and depths, FLOPs against seconds."),
    "devices": Study(devices, "devices: what 2, 4 and 8 would make of a step, a projection."),
    "schedule": Study(schedule, "schedule: a run's steps, small images and frozen groups among them."),
}
