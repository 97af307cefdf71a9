"""The WGAN benchmark's part in `quick` and `suite`."""

from dataclasses import replace

from wallclock.bench.runs.job import Context, Job
from wallclock.bench.tasks.wgan.ablation import TASK, AblationRequest
from wallclock.bench.tasks.wgan.run import WganRequest, new_run
from wallclock.loaders.data.images import SYNTHETIC
from wallclock.models.recipes import get_wgan_recipe
from wallclock.models.recipes.wgan import CriticSteps, WganRecipe

# A CPU takes a second or two for a step of the critic at 64 pixels, batch 64.
CPU_CYCLES, GPU_CYCLES = 6, 200
CPU_ROUNDS, GPU_ROUNDS = 3, 10


def _said(context: Context, text: str) -> None:
    context.console.print(text, markup=False)


def _run_quick(context: Context) -> str:
    recipe = get_wgan_recipe("lesson", context.device)
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
    request = WganRequest(
        recipe=recipe, data=SYNTHETIC, device=context.device, generator_iterations=8, look_every=8, window_cycles=1
    )
    run = new_run(request, context.out, context.command, deadline=context.deadline)
    return run.execute(lambda text: None)


def _steady(context: Context) -> WganRecipe:
    """The lesson at batch 64, with the usual critic steps from the start."""
    recipe = get_wgan_recipe("lesson", context.device)
    return replace(recipe, batch_size=64, critic_steps=CriticSteps(long_until=0, long_every=0))


def _run_throughput(context: Context) -> str:
    cpu = context.device == "cpu"
    cycles = CPU_CYCLES if cpu else GPU_CYCLES
    request = WganRequest(
        recipe=_steady(context),
        data=context.data or SYNTHETIC,
        device=context.device,
        generator_iterations=cycles,
        look_every=cycles,
        window_cycles=1 if cpu else 20,
    )
    run = new_run(request, context.out, context.command, deadline=context.deadline)
    return run.execute(lambda text: _said(context, text))


def _run_levers(context: Context) -> str:
    cpu = context.device == "cpu"
    request = AblationRequest(
        recipe=_steady(context),
        data=context.data or SYNTHETIC,
        device=context.device,
        rounds=CPU_ROUNDS if cpu else GPU_ROUNDS,
        turn_length=1 if cpu else 20,
    )
    run = TASK.new_run(request, context.out, context.command, deadline=context.deadline)
    return run.execute(lambda text: _said(context, text))


def quick() -> tuple[Job, ...]:
    """Returns the jobs of `wallclock quick`."""
    return (Job("wgan lesson", "the lesson's WGAN, narrow, on embedded images", lambda context: "", _run_quick),)


def suite() -> tuple[Job, ...]:
    """Returns the jobs of `wallclock suite`, most informative first."""
    return (
        Job(
            "wgan lesson throughput",
            "critic iterations/s of the lesson's WGAN at 64 pixels",
            lambda context: "",
            _run_throughput,
            at_least_s=90,
            gpu_at_least_s=30,
        ),
        Job(
            "wgan lesson levers",
            "what each lever gives over the lesson's loop, in turns",
            lambda context: "",
            _run_levers,
            at_least_s=240,
            gpu_at_least_s=60,
        ),
    )
