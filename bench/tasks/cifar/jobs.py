"""The cifar benchmark's part in `quick` and `suite`."""

import statistics
from collections.abc import Callable
from dataclasses import replace

from wallclock.bench.runs.job import Context, Job
from wallclock.bench.tasks.cifar.progress import Display
from wallclock.bench.tasks.cifar.run import SYNTHETIC, CifarRequest, load_split, new_run
from wallclock.models.recipes import get_recipe
from wallclock.models.recipes.recipe import Recipe
from wallclock.reports.store.read import load

# Fewer steps than this say nothing of a median; more cost a CPU minutes at real sizes.
THROUGHPUT_STEPS = 6
TARGETS = {"cifar10-jpeg": 0.90}  # JPEG costs accuracy: a public recipe of 94.0% reaches 90.7% there
TARGET = 0.94


def _quick_recipe(device: str) -> Recipe:
    recipe = get_recipe("sprint", device)
    implementations = replace(recipe.implementations, compile=False)  # compiling takes longer than the run
    return replace(recipe, batch_size=250, epochs=3, resolutions=(), implementations=implementations)


def _run_quick(context: Context) -> str:
    recipe = _quick_recipe(context.device)
    request = CifarRequest(recipe=recipe, data=SYNTHETIC, target=TARGET, seeds=2, device=context.device, phases=6)
    with Display(context.console, "sprint", request.target) as display:
        return new_run(request, context.out, context.command, deadline=context.deadline).execute(display).verdict


def _needs_data(context: Context) -> str:
    return "" if context.data else "needs real images: --data PATH (wallclock data fetch gets them)"


def _needs_gpu_and_data(context: Context) -> str:
    return _needs_data(context) or ("" if context.device == "cuda" else "its full run takes hours on a CPU")


def _throughput(name: str) -> Job:
    """Steps and phases of a recipe at real sizes, without training it through."""

    def measure(context: Context) -> str:
        recipe = get_recipe(name, context.device)
        request = _request(context, recipe, seeds=0, phases=THROUGHPUT_STEPS)
        run = new_run(request, context.out, context.command, deadline=context.deadline)
        return run.execute(lambda seen: None).verdict

    return Job(
        f"cifar {name} throughput", f"step time and phases of {name} at real sizes", _needs_data, measure, at_least_s=45
    )


def _training(name: str, seeds: int, unavailable: Callable[[Context], str]) -> Job:
    """Trains a recipe to its target, as many of the seeds as the budget holds."""

    def train(context: Context) -> str:
        recipe = get_recipe(name, context.device)
        request = _request(context, recipe, seeds=seeds, phases=0)
        estimate_s = _estimate_s(context, recipe)
        run = new_run(request, context.out, context.command, deadline=context.deadline, estimate_s=estimate_s)
        with Display(context.console, name, request.target) as display:
            return run.execute(display).verdict

    return Job(f"cifar {name}", f"{name} to its target, {seeds} seeds at most", unavailable, train)


def _request(context: Context, recipe: Recipe, *, seeds: int, phases: int) -> CifarRequest:
    data = str(context.data)
    return CifarRequest(
        recipe=recipe,
        data=data,
        target=TARGETS.get(load_split(data, "test").train.name, TARGET),
        seeds=seeds,
        device=context.device,
        phases=phases,
    )


def _estimate_s(context: Context, recipe: Recipe) -> float:
    """The time of one seed's steps, from the step time that this suite has just measured; 0 if it could not."""
    if not context.out.exists():
        return 0.0
    samples = load(context.out, on_damage="skip")
    steps = samples[(samples["metric"] == "step_time") & (samples["case"] == recipe.name)]["value"]
    images = len(load_split(str(context.data), "test").train)
    return statistics.median(steps) * recipe.epochs * images / recipe.batch_size if len(steps) else 0.0


def quick() -> tuple[Job, ...]:
    """Returns the jobs of `wallclock quick`."""
    return (Job("cifar sprint", "sprint to 94% on embedded images, 2 seeds", lambda context: "", _run_quick),)


def suite() -> tuple[Job, ...]:
    """Returns the jobs of `wallclock suite`, most informative first."""
    return (
        _throughput("sprint"),
        _training("sprint", 5, _needs_data),
        _throughput("darknet"),
        _throughput("wrn22"),
        _training("wrn22", 1, _needs_gpu_and_data),
        _training("darknet", 1, _needs_gpu_and_data),
    )
