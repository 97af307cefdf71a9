"""The jobs with which the upsampling benchmark takes part in `quick` and `suite`."""

from typing import Any

from wallclock.bench.cases.upsampling.run import UpsamplingRequest, UpsamplingRun
from wallclock.bench.runs.cases import run_job
from wallclock.bench.runs.job import Context, Job
from wallclock.bench.runs.request import SYNTHETIC


def _job(name: str, summary: str, only: str, fields: dict[str, Any], **limits: Any) -> Job:
    def run(context: Context) -> str:
        request = UpsamplingRequest(device=context.device, data=context.data or SYNTHETIC, only=(only,), **fields)
        return run_job(UpsamplingRun, request, context)

    return Job(f"upsampling {name}", summary, lambda context: "", run, **limits)


def quick() -> tuple[Job, ...]:
    """Returns the upsampling jobs of `wallclock quick`."""
    one_stage = "speed 64x256x8x8 fp32 channels_last"
    return (
        _job("speed", "five upsamplings at one of DCGAN's stages", one_stage, {"sample_budget_s": 0.1}),
        _job("checkerboards", "the grids of five short trainings", "training", {"steps": 10}),
    )


def suite() -> tuple[Job, ...]:
    """Returns the upsampling jobs of `wallclock suite`, most informative first."""
    stages, grids = (
        "five upsamplings at DCGAN's stages, both types and layouts",
        "the grids that five short trainings leave",
    )
    return (
        _job("speed", stages, "speed", {"sample_budget_s": 0.3}, at_least_s=30, share=0.4),
        _job("checkerboards", grids, "training", {}, at_least_s=30),
    )
