"""Jobs of `quick` and `suite` that run a request of a task. No torch here."""

from collections.abc import Callable, Mapping
from typing import Any

from wallclock.bench.runs.job import Context, Job
from wallclock.bench.runs.request import Request
from wallclock.bench.runs.task import Task


def task_job(
    task: Callable[[], Task],
    name: str,
    summary: str,
    request: Callable[[Context], Request],
    *,
    quiet: bool = False,
    options: Callable[[Context, Any], Mapping[str, Any]] = lambda context, request: {},
    unavailable: Callable[[Context], str] = lambda context: "",
    **limits: Any,
) -> Job:
    """Returns a job that runs a task's request and records it.

    Args:
        task: returns the task; a function, because a task and its jobs are declared together.
        name: see `Job`.
        summary: see `Job`.
        request: returns the request to run in a context, for a run of the task or for its ablation.
        quiet: whether to hide progress.
        options: returns further keyword arguments for the run.
        unavailable: see `Job`.
        limits: further attributes of `Job`, such as `at_least_s`.
    """

    def run(context: Context) -> str:
        from wallclock.bench.runs.training import new_run

        asked = request(context)
        more = {"deadline": context.deadline, **options(context, asked)}
        made = new_run(task(), asked, context.out, context.command, **more)
        if quiet:
            return made.execute(lambda seen: None)
        with made.display(context.console) as observe:
            return made.execute(observe)

    return Job(name, summary, unavailable, run, **limits)
