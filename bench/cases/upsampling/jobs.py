"""The upsampling benchmark's part in `quick` and `suite`."""

from wallclock.bench.cases.kernels.run import CaseDone
from wallclock.bench.cases.upsampling.run import STEPS, UpsamplingRequest, new_run
from wallclock.bench.runs.job import Context, Job
from wallclock.bench.tasks.cifar.run import SYNTHETIC


def _run(context: Context, only: str, *, sample_budget_s: float = 0.5, steps: int = STEPS) -> str:
    request = UpsamplingRequest(
        device=context.device,
        data=context.data or SYNTHETIC,
        only=(only,),
        sample_budget_s=sample_budget_s,
        steps=steps,
    )

    def show(done: CaseDone) -> None:
        if done.why_not:
            context.console.print(f"{done.case}, {done.variant}: {done.why_not}", style="yellow", markup=False)

    return new_run(request, context.out, context.command).execute(show, context.deadline)


def quick() -> tuple[Job, ...]:
    """Returns the jobs of `wallclock quick`."""

    def speed(context: Context) -> str:
        return _run(context, "speed 64x256x8x8 fp32 channels_last", sample_budget_s=0.1)

    def training(context: Context) -> str:
        return _run(context, "training", steps=10)

    return (
        Job("upsampling speed", "five upsamplings at one of DCGAN's stages", lambda context: "", speed),
        Job("upsampling checkerboards", "the grids of five short trainings", lambda context: "", training),
    )


def suite() -> tuple[Job, ...]:
    """Returns the jobs of `wallclock suite`, most informative first."""
    return (
        Job(
            "upsampling speed",
            "five upsamplings at DCGAN's stages, both types and layouts",
            lambda context: "",
            lambda context: _run(context, "speed", sample_budget_s=0.3),
            at_least_s=30,
            share=0.4,
        ),
        Job(
            "upsampling checkerboards",
            "the grids that five short trainings leave",
            lambda context: "",
            lambda context: _run(context, "training"),
            at_least_s=30,
        ),
    )
