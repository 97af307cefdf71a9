"""The CycleGAN task: iterations per second, the gain of each lever, translations. No torch here."""

from dataclasses import replace

from wallclock.bench.runs.job import Context
from wallclock.bench.runs.task import Task
from wallclock.bench.tasks.cyclegan.requests import CycleGanAblationRequest, CycleGanRequest
from wallclock.bench.tasks.jobs import task_job
from wallclock.models.recipes import find_recipe
from wallclock.models.recipes.cyclegan import CYCLEGAN_RECIPES, CycleGanRecipe

# A CPU takes some seconds for an iteration at 128 pixels.
CPU_ROUNDS, GPU_ROUNDS = 3, 10


def _quick(context: Context) -> CycleGanRequest:
    recipe = find_recipe(CYCLEGAN_RECIPES, "lesson", context.device)
    plain = replace(recipe.implementations, cuda_graph=False)  # capturing takes longer than the run
    recipe = replace(recipe, load_size=36, image_size=32, blocks=2, channels=8, implementations=plain)
    return CycleGanRequest(recipe=recipe, device=context.device, iterations=20, look_every=20)


def _levers(context: Context) -> CycleGanAblationRequest:
    """Returns an ablation of the lesson at 256 pixels, or at 128 on a CPU, with the published number of blocks."""
    recipe, rounds = find_recipe(CYCLEGAN_RECIPES, "lesson", context.device), GPU_ROUNDS
    if context.device == "cpu":
        recipe, rounds = replace(recipe, load_size=143, image_size=128, blocks=6), CPU_ROUNDS
    return CycleGanAblationRequest.on_device(context.device, recipe=recipe, rounds=rounds)


TASK = Task(
    name="cyclegan",
    title="CycleGAN",
    summary="Train a CycleGAN and measure iterations per second.",
    place=3,
    recipes=CYCLEGAN_RECIPES,
    recipe=CycleGanRecipe,
    request=CycleGanRequest,
    ablation=CycleGanAblationRequest,
    training_module="wallclock.bench.tasks.cyclegan.run",
    quick=(task_job("cyclegan lesson", "the lesson's CycleGAN, narrow, on embedded domains", _quick, quiet=True),),
    suite=(
        task_job(
            "cyclegan lesson levers",
            "what each lever gives over the published loop, in turns",
            _levers,
            at_least_s=240,
            gpu_at_least_s=60,
        ),
    ),
    case=("image_size", "blocks"),
)
