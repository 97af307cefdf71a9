"""The loaders benchmark's part in `quick` and `suite`."""

from wallclock.bench.cases.loaders.request import LoadersRequest
from wallclock.bench.cases.loaders.run import PipelineDone, default_images, new_run
from wallclock.bench.runs.job import Context, Job
from wallclock.bench.tasks.cifar.run import SYNTHETIC

QUICK_IMAGES = 1000


def _run(context: Context, request: LoadersRequest) -> str:
    def show(done: PipelineDone) -> None:
        if done.why_not:
            context.console.print(f"{done.case}, {done.pipeline}: {done.why_not}", style="yellow", markup=False)

    return new_run(request, context.out, context.command).execute(show, context.deadline)


def _quick(context: Context) -> str:
    request = LoadersRequest(
        data=SYNTHETIC,
        device=context.device,
        only=("pixels",),
        batch_sizes=(100,),
        images=QUICK_IMAGES,
        rounds=2,
        steps=1,
    )
    return _run(context, request)


def _suite(context: Context) -> str:
    data = str(context.data)
    request = LoadersRequest(
        data=data, device=context.device, batch_sizes=(500,), images=default_images(data), rounds=3, steps=2
    )
    return _run(context, request)


def quick() -> tuple[Job, ...]:
    """Returns the jobs of `wallclock quick`."""
    summary = "device-resident, DataLoader and DALI pipelines over embedded images"
    return (Job("loaders", summary, lambda context: "", _quick),)


def suite() -> tuple[Job, ...]:
    """Returns the jobs of `wallclock suite`, most informative first."""
    summary = "every pipeline over pixels, encoded images and tar shards: alone, and while a network trains"

    def unavailable(context: Context) -> str:
        return "" if context.data else "needs real images: --data PATH (wallclock data fetch gets them)"

    return (Job("loaders", summary, unavailable, _suite, at_least_s=60, share=0.5),)
