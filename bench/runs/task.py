"""A training task, as the harness sees it: its recipes, requests, jobs, and where its training is. No torch here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wallclock.bench.runs.job import Job
from wallclock.bench.runs.request import Request
from wallclock.models.recipes import find_recipe


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that the harness has to know of a training task; `bench.tasks.registry` finds it in the task's folder.

    Attributes:
        name: in commands and records; also the folder's name.
        title: what its recipes are called in lists, such as "WGAN".
        summary: one line for the help of `wallclock run`.
        place: in lists and plans, from the first.
        unnamed: whether its recipes go by their own names alone, as `sprint` and not `cifar/sprint`; of one task.
        recipes: makers of its recipes by name; each takes "cpu" or "cuda".
        recipe: the class of its recipes.
        usual: the recipe where none is named.
        request: the class of its run's requests.
        ablation: the class of its ablation's requests.
        training: imports and returns the half that needs torch, a `bench.runs.training.Training`.
        quick: its jobs of `wallclock quick`; see `bench.tasks.jobs`.
        suite: its jobs of `wallclock suite`, most informative first.
        recipe_options: fields of the recipe that `run` has an option for, and the option's help.
        studies: names of the studies that its ablation knows, and the recipe of each where none is named.
        case: fields of the recipe that make the case of a sample, besides its name, precision and batch size.
        higher: metrics of which more is better, besides rates.
        distributed: whether one run trains on many devices under torchrun.
    """

    name: str
    title: str
    summary: str
    place: int
    unnamed: bool = False
    recipes: Mapping[str, Callable[[str], Any]]
    recipe: type[Any]
    usual: str = "lesson"
    request: type[Request]
    ablation: type[Request]
    training: Callable[[], Any]
    quick: tuple[Job, ...] = ()
    suite: tuple[Job, ...] = ()
    recipe_options: Mapping[str, str] = field(default_factory=dict)
    studies: Mapping[str, str] = field(default_factory=dict)
    case: tuple[str, ...] = ()
    higher: tuple[str, ...] = ()
    distributed: bool = False

    def get_recipe(self, name: str, device_type: str) -> Any:
        """Returns the task's recipe of that name; see `models.recipes.find_recipe`."""
        return find_recipe(self.recipes, name, device_type)
