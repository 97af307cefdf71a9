"""The CycleGAN benchmark's part in `quick` and `suite`."""

from dataclasses import replace

from wallclock.bench.runs.job import Context, Job
from wallclock.bench.tasks.cyclegan.ablation import TASK, AblationRequest
from wallclock.bench.tasks.cyclegan.run import CycleGanRequest, new_run
from wallclock.loaders.data.unpaired import SYNTHETIC
from wallclock.models.recipes import get_cyclegan_recipe
from wallclock.models.recipes.cyclegan import CycleGanRecipe

# A CPU takes some seconds for an iteration at 128 pixels.
CPU_ROUNDS, GPU_ROUNDS = 3, 10


def _said(context: Context, text: str) -> None:
    context.console.print(text, markup=False)


def _run_quick(context: Context) -> str:
    recipe = get_cyclegan_recipe("lesson", context.device)
    recipe = replace(
        recipe,
        load_size=36,
        image_size=32,
        blocks=2,
        channels=8,
        implementations=replace(recipe.implementations, cuda_graph=False),  # capturing takes longer
    )
    request = CycleGanRequest(recipe=recipe, data=SYNTHETIC, device=context.device, iterations=20, look_every=20)
    return new_run(request, context.out, context.command, deadline=context.deadline).execute(lambda text: None)


def _real_size(context: Context) -> CycleGanRecipe:
    """The lesson at 256 pixels, or at 128 on a CPU, with the published number of blocks for it."""
    recipe = get_cyclegan_recipe("lesson", context.device)
    return recipe if context.device == "cuda" else replace(recipe, load_size=143, image_size=128, blocks=6)


def _run_levers(context: Context) -> str:
    cpu = context.device == "cpu"
    request = AblationRequest(
        recipe=_real_size(context),
        data=SYNTHETIC,
        device=context.device,
        rounds=CPU_ROUNDS if cpu else GPU_ROUNDS,
        turn_length=1 if cpu else 20,
    )
    run = TASK.new_run(request, context.out, context.command, deadline=context.deadline)
    return run.execute(lambda text: _said(context, text))


def quick() -> tuple[Job, ...]:
    """Returns the jobs of `wallclock quick`."""
    return (
        Job("cyclegan lesson", "the lesson's CycleGAN, narrow, on embedded domains", lambda context: "", _run_quick),
    )


def suite() -> tuple[Job, ...]:
    """Returns the jobs of `wallclock suite`."""
    return (
        Job(
            "cyclegan lesson levers",
            "what each lever gives over the published loop, in turns",
            lambda context: "",
            _run_levers,
            at_least_s=240,
            gpu_at_least_s=60,
        ),
    )
