"""The loaders benchmark's part in `quick` and `suite`."""

from typing import Any

from wallclock.bench.cases.loaders.request import LoadersRequest
from wallclock.bench.cases.loaders.run import default_images, new_run
from wallclock.bench.runs.cases import execute_in_plan
from wallclock.bench.runs.job import Context, Job
from wallclock.bench.tasks.cifar.run import SYNTHETIC

QUICK = {"data": SYNTHETIC, "only": ("pixels",), "batch_sizes": (100,), "images": 1000, "rounds": 2, "steps": 1}


def _run(context: Context, **fields: Any) -> str:
    request = LoadersRequest(device=context.device, **fields)
    return execute_in_plan(new_run(request, context.out, context.command), context)


def _suite(context: Context) -> str:
    data = str(context.data)
    return _run(context, data=data, batch_sizes=(500,), images=default_images(data), rounds=3, steps=2)


def quick() -> tuple[Job, ...]:
    """Returns the jobs of `wallclock quick`."""
    summary = "device-resident, DataLoader and DALI pipelines over embedded images"
    return (Job("loaders", summary, lambda context: "", lambda context: _run(context, **QUICK)),)


def suite() -> tuple[Job, ...]:
    """Returns the jobs of `wallclock suite`, most informative first."""
    summary = "every pipeline over pixels, encoded images and tar shards: alone, and while a network trains"

    def unavailable(context: Context) -> str:
        return "" if context.data else "needs real images: --data PATH (wallclock data fetch gets them)"

    return (Job("loaders", summary, unavailable, _suite, at_least_s=60, share=0.5),)
