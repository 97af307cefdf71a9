"""The jobs with which the kernels benchmark takes part in `quick` and `suite`."""

from typing import Any

from wallclock.bench.cases.kernels.run import KernelsRequest, KernelsRun
from wallclock.bench.runs.cases import run_job
from wallclock.bench.runs.job import Context, Job


def _job(summary: str, only: str, sample_budget_s: float, **limits: Any) -> Job:
    def run(context: Context) -> str:
        # On a CPU compiling a case takes longer than all its measurements.
        without = ("compile",) if context.device == "cpu" else ()
        request = KernelsRequest(
            dtype="bf16", device=context.device, only=(only,), sample_budget_s=sample_budget_s, without=without
        )
        return run_job(KernelsRun, request, context)

    return Job("kernels", summary, lambda context: "", run, **limits)


def quick() -> tuple[Job, ...]:
    """Returns the kernels jobs of `wallclock quick`."""
    return (_job("norm, activation and residual at one of Darknet's maps", "batch_norm_act 256x512x4x4", 0.2),)


def suite() -> tuple[Job, ...]:
    """Returns the kernels jobs of `wallclock suite`, most informative first."""
    summary = "every operation at Darknet's shapes, against eager and compiled ones"
    return (_job(summary, "darknet", 0.5, at_least_s=30, share=0.4),)
