"""The jobs with which the loaders benchmark takes part in `quick` and `suite`."""

from wallclock.bench.cases.loaders.run import LoadersRequest, LoadersRun, default_images
from wallclock.bench.runs.cases import run_job
from wallclock.bench.runs.job import Context, Job
from wallclock.bench.runs.request import SYNTHETIC


def quick() -> tuple[Job, ...]:
    """Returns the loaders jobs of `wallclock quick`."""
    summary = "device-resident, DataLoader and DALI pipelines over embedded images"

    def run(context: Context) -> str:
        request = LoadersRequest(
            data=SYNTHETIC, device=context.device, only=("pixels",), batch_sizes=(100,), images=1000, rounds=2, steps=1
        )
        return run_job(LoadersRun, request, context)

    return (Job("loaders", summary, lambda context: "", run),)


def suite() -> tuple[Job, ...]:
    """Returns the loaders jobs of `wallclock suite`, most informative first."""
    summary = "every pipeline over pixels, encoded images and tar shards: alone, and while a network trains"

    def unavailable(context: Context) -> str:
        return "" if context.data else "needs real images: --data PATH (wallclock data fetch gets them)"

    def run(context: Context) -> str:
        data = str(context.data)
        request = LoadersRequest(
            data=data, device=context.device, batch_sizes=(500,), images=default_images(data), rounds=3, steps=2
        )
        return run_job(LoadersRun, request, context)

    return (Job("loaders", summary, unavailable, run, at_least_s=60, share=0.5),)
