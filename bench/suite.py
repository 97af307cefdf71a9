"""The plans of `quick` and `suite`, gathered from the jobs that each benchmark declares."""

from wallclock.bench.cases.kernels import jobs as kernel_jobs
from wallclock.bench.cases.loaders import jobs as loader_jobs
from wallclock.bench.cases.upsampling import jobs as upsampling_jobs
from wallclock.bench.runs.job import Plan
from wallclock.bench.tasks.registry import TASKS


def quick_plan() -> Plan:
    """Returns the plan of `quick`: every benchmark, small and on embedded data."""
    first, *others = (task.quick for task in TASKS.values())
    others += [upsampling_jobs.quick(), loader_jobs.quick()]
    return Plan("quick", tuple(job for jobs in (first, kernel_jobs.quick(), *others) for job in jobs))


def suite_plan() -> Plan:
    """Returns the plan of `suite`: every benchmark at real sizes, with the jobs marked `last` after all others."""
    first, *others = (task.suite for task in TASKS.values())
    others += [upsampling_jobs.suite(), loader_jobs.suite()]
    jobs = [job for jobs in (first, kernel_jobs.suite(), *others) for job in jobs]
    return Plan("suite", tuple(sorted(jobs, key=lambda job: job.last)))
