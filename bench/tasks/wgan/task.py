"""The WGAN task: critic iterations per second, the gain of each lever, samples. No torch here."""

from dataclasses import replace

from wallclock.bench.runs.job import Context
from wallclock.bench.runs.request import SYNTHETIC
from wallclock.bench.runs.task import Task
from wallclock.bench.tasks.jobs import task_job
from wallclock.bench.tasks.wgan.requests import WganAblationRequest, WganRequest
from wallclock.models.recipes import find_recipe
from wallclock.models.recipes.wgan import WGAN_RECIPES, CriticSteps, WganRecipe

# A CPU takes a second or two for a step of the critic at 64 pixels, batch 64.
CPU_CYCLES, GPU_CYCLES = 6, 200
CPU_ROUNDS, GPU_ROUNDS = 3, 10


def _quick(context: Context) -> WganRequest:
    recipe = find_recipe(WGAN_RECIPES, "lesson", context.device)
    implementations = replace(recipe.implementations, compile=False, cuda_graph=False)  # capturing takes longer
    recipe = replace(
        recipe,
        image_size=32,
        generator_channels=16,
        critic_channels=16,
        batch_size=32,
        generator_batch_size=32,
        critic_steps=CriticSteps(long_until=0, long_every=0),
        implementations=implementations,
    )
    return WganRequest(recipe=recipe, device=context.device, generator_iterations=8, look_every=8)


def _steady(context: Context) -> WganRecipe:
    """Returns the recipe "lesson" at batch 64, with the usual critic steps from the start."""
    recipe = find_recipe(WGAN_RECIPES, "lesson", context.device)
    return replace(recipe, batch_size=64, critic_steps=CriticSteps(long_until=0, long_every=0))


def _throughput(context: Context) -> WganRequest:
    cycles = CPU_CYCLES if context.device == "cpu" else GPU_CYCLES
    recipe, data = _steady(context), context.data or SYNTHETIC
    return WganRequest.on_device(
        context.device, recipe=recipe, data=data, generator_iterations=cycles, look_every=cycles
    )


def _levers(context: Context) -> WganAblationRequest:
    rounds = CPU_ROUNDS if context.device == "cpu" else GPU_ROUNDS
    data = context.data or SYNTHETIC
    return WganAblationRequest.on_device(context.device, recipe=_steady(context), data=data, rounds=rounds)


TASK = Task(
    name="wgan",
    title="WGAN",
    summary="Train a WGAN and measure critic iterations per second.",
    place=2,
    recipes=WGAN_RECIPES,
    recipe=WganRecipe,
    request=WganRequest,
    ablation=WganAblationRequest,
    training_module="wallclock.bench.tasks.wgan.run",
    rate="critic_iterations_per_s",
    quick=(task_job("wgan lesson", "the lesson's WGAN, narrow, on embedded images", _quick, quiet=True),),
    suite=(
        task_job(
            "wgan lesson throughput",
            "critic iterations/s of the lesson's WGAN at 64 pixels",
            _throughput,
            at_least_s=90,
            gpu_at_least_s=30,
        ),
        task_job(
            "wgan lesson levers",
            "what each lever gives over the lesson's loop, in turns",
            _levers,
            at_least_s=240,
            gpu_at_least_s=60,
        ),
    ),
    case=("image_size",),
)
