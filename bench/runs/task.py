"""The declaration of a training task: its recipes, requests, jobs and training. No torch here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from wallclock.bench.runs.job import Job
from wallclock.bench.runs.request import Request
from wallclock.models.recipes import find_recipe


@dataclass(frozen=True, kw_only=True)
class Task:
    """The declaration of a training task to the harness; `bench.tasks.registry` finds it in the task's folder.

    Attributes:
        name: name in commands and records; also the name of its folder.
        title: name of its recipes in lists, such as "WGAN".
        summary: description for the help of `wallclock run`.
        place: position in lists and plans, lowest first.
        unnamed: whether recipes go by their own names alone, as `sprint` and not `cifar/sprint`; true for one task.
        recipes: makers of its recipes by name; each takes "cpu" or "cuda".
        recipe: the class of its recipes.
        usual: name of the recipe that is used where none is named.
        request: the class of its run's requests.
        ablation: the class of its ablation's requests.
        training_module: the module that holds the half that needs torch, a `bench.runs.training.Training`, as TRAINING.
        quick: makers of its jobs of `wallclock quick`; see `bench.tasks.jobs`.
        suite: makers of its jobs of `wallclock suite`, most informative first.
        recipe_options: fields of the recipe that are options of `wallclock run`, with the help of each.
        studies: names of its ablation's studies, with the recipe that each uses where none is named.
        rate: metric of its ablation's turns that `wallclock compare` judges.
        case: fields of the recipe that make the case of a sample, besides its name, precision and batch size.
        higher: metrics for which higher is better, besides rates.
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
    training_module: str
    quick: tuple[Callable[["Task"], Job], ...] = ()
    suite: tuple[Callable[["Task"], Job], ...] = ()
    recipe_options: Mapping[str, str] = field(default_factory=dict)
    studies: Mapping[str, str] = field(default_factory=dict)
    rate: str = "iterations_per_s"
    case: tuple[str, ...] = ()
    higher: tuple[str, ...] = ()
    distributed: bool = False

    def training(self) -> Any:
        """Imports and returns the half that needs torch."""
        return import_module(self.training_module).TRAINING

    def get_recipe(self, name: str, device_type: str) -> Any:
        """Returns the task's recipe of that name; see `models.recipes.find_recipe`."""
        return find_recipe(self.recipes, name, device_type)
