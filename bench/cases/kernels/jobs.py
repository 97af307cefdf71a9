"""The kernels benchmark's part in `quick` and `suite`."""

from wallclock.bench.cases.kernels.run import KernelsRequest, new_run
from wallclock.bench.runs.cases import execute_in_plan
from wallclock.bench.runs.job import Context, Job


def _run(context: Context, only: str, sample_budget_s: float) -> str:
    # On a CPU compiling a case takes longer than all its measurements.
    without = ("compile",) if context.device == "cpu" else ()
    request = KernelsRequest(
        dtype="bf16", device=context.device, only=(only,), sample_budget_s=sample_budget_s, without=without
    )
    return execute_in_plan(new_run(request, context.out, context.command), context)


def quick() -> tuple[Job, ...]:
    """Returns the jobs of `wallclock quick`."""
    one_map = "batch_norm_act 256x512x4x4"
    summary = "norm, activation and residual at one of Darknet's maps"
    return (Job("kernels", summary, lambda context: "", lambda context: _run(context, one_map, 0.2)),)


def suite() -> tuple[Job, ...]:
    """Returns the jobs of `wallclock suite`, most informative first."""
    summary = "every operation at Darknet's shapes, against eager and compiled ones"

    def run(context: Context) -> str:
        return _run(context, "darknet", 0.5)

    return (Job("kernels", summary, lambda context: "", run, at_least_s=30, share=0.4),)
