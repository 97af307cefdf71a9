"""The plans of `quick` and `suite`: the jobs of each task, and those of the case benchmarks. No torch here."""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from wallclock.bench.cases import case_run
from wallclock.bench.runs.job import Context, Job, Plan, needs_data
from wallclock.bench.runs.request import SYNTHETIC
from wallclock.bench.tasks.registry import TASKS

if TYPE_CHECKING:
    from wallclock.bench.runs.cases import CaseDone


def make_plan(name: Literal["quick", "suite"]) -> Plan:
    """Returns a plan: "quick" is every benchmark, small and on embedded data, "suite" all of them at real sizes.

    The kernels follow the first task, the other cases the last one; jobs marked `last` come after all others.
    """
    of_tasks = ([make(task) for make in (task.quick if name == "quick" else task.suite)] for task in TASKS.values())
    first, *others = of_tasks
    kernels, *cases = CASE_JOBS[name]
    jobs = [*first, kernels, *itertools.chain(*others), *cases]
    return Plan(name, tuple(sorted(jobs, key=lambda job: job.last)))


def _case_job(name: str, summary: str, fields: Callable[[Context], dict[str, Any]], **more: Any) -> Job:
    """Returns a job that measures cases, and prints what could not be measured.

    The first word of `name` is a folder of `bench.cases`; `fields` returns the fields of the request in a context,
    besides the device; `more` are further attributes of `Job`.
    """

    def run(context: Context) -> str:
        def show(done: "CaseDone") -> None:
            if done.why_not:
                context.console.print(f"{done.case}, {done.variant}: {done.why_not}", style="yellow", markup=False)

        kind = case_run(name.partition(" ")[0])
        request = kind.kind(device=context.device, **fields(context))
        return kind.new(request, context.out, context.command).execute(show, context.deadline)

    return Job(name, summary, run, **more)


def _kernels(context: Context, only: str, sample_budget_s: float) -> dict[str, Any]:
    # On a CPU compiling a case takes longer than all its measurements.
    without = ("compile",) if context.device == "cpu" else ()
    return {"dtype": "bf16", "only": (only,), "sample_budget_s": sample_budget_s, "without": without}


def _upsampling(context: Context, only: str, **more: Any) -> dict[str, Any]:
    return {"data": context.data or SYNTHETIC, "only": (only,), **more}


def _every_pipeline(context: Context) -> dict[str, Any]:
    from wallclock.bench.cases.loaders.run import default_images

    data = str(context.data)
    return {"data": data, "batch_sizes": (500,), "images": default_images(data), "rounds": 3, "steps": 2}


PIXELS = {"data": SYNTHETIC, "only": ("pixels",), "batch_sizes": (100,), "images": 1000, "rounds": 2, "steps": 1}
STAGE = "speed 64x256x8x8 fp32 channels_last"
CASE_JOBS = {
    "quick": (
        _case_job(
            "kernels",
            "norm, activation and residual at one of Darknet's maps",
            lambda context: _kernels(context, "batch_norm_act 256x512x4x4", 0.2),
        ),
        _case_job(
            "upsampling speed",
            "five upsamplings at one of DCGAN's stages",
            lambda context: _upsampling(context, STAGE, sample_budget_s=0.1),
        ),
        _case_job(
            "upsampling checkerboards",
            "the grids of five short trainings",
            lambda context: _upsampling(context, "training", steps=10),
        ),
        _case_job(
            "loaders", "device-resident, DataLoader and DALI pipelines over embedded images", lambda context: PIXELS
        ),
    ),
    "suite": (
        _case_job(
            "kernels",
            "every operation at Darknet's shapes, against eager and compiled ones",
            lambda context: _kernels(context, "darknet", 0.5),
            at_least_s=30,
            share=0.4,
        ),
        _case_job(
            "upsampling speed",
            "five upsamplings at DCGAN's stages, both types and layouts",
            lambda context: _upsampling(context, "speed", sample_budget_s=0.3),
            at_least_s=30,
            share=0.4,
        ),
        _case_job(
            "upsampling checkerboards",
            "the grids that five short trainings leave",
            lambda context: _upsampling(context, "training"),
            at_least_s=30,
        ),
        _case_job(
            "loaders",
            "every pipeline over pixels, encoded images and tar shards: alone, and while a network trains",
            _every_pipeline,
            unavailable=needs_data,
            at_least_s=60,
            share=0.5,
        ),
    ),
}
