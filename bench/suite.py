"""The plans of `quick` and `suite`: every benchmark declares its jobs once, and both take them in."""

from wallclock.bench.cases.kernels import jobs as kernel_jobs
from wallclock.bench.cases.loaders import jobs as loader_jobs
from wallclock.bench.cases.upsampling import jobs as upsampling_jobs
from wallclock.bench.runs.job import Plan
from wallclock.bench.tasks.cifar import jobs as cifar_jobs
from wallclock.bench.tasks.cyclegan import jobs as cyclegan_jobs
from wallclock.bench.tasks.wgan import jobs as wgan_jobs


def quick_plan() -> Plan:
    """Returns everything, small and on embedded data."""
    small = (cifar_jobs, kernel_jobs, wgan_jobs, cyclegan_jobs, upsampling_jobs, loader_jobs)
    return Plan("quick", tuple(job for jobs in small for job in jobs.quick()))


def suite_plan() -> Plan:
    """Returns everything at real sizes: what is first in each benchmark before what is second in any."""
    sprint, others = cifar_jobs.suite()[:2], cifar_jobs.suite()[2:]
    real = (kernel_jobs, wgan_jobs, cyclegan_jobs, upsampling_jobs, loader_jobs)
    return Plan("suite", (*sprint, *(job for jobs in real for job in jobs.suite()), *others))
