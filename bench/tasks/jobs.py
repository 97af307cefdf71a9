"""Jobs of `quick` and `suite` that run a request of a task. No torch here."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wallclock.bench.runs.job import Context, Job
from wallclock.bench.runs.request import Request
from wallclock.bench.runs.task import Task


def task_job(
    name: str,
    summary: str,
    request: Callable[[Context], Request],
    *,
    quiet: bool = False,
    options: Callable[[Context, Any], Mapping[str, Any]] = lambda context, request: {},
    **more: Any,
) -> Callable[[Task], Job]:
    """Returns a function that makes a task's job, which runs a request of the task, or of its ablation, and records it.

    `request` returns the request to run in a context, `options` further keyword arguments for the run; `quiet` hides
    progress, and `more` are further attributes of `Job`, such as `at_least_s`.
    """

    def run(task: Task, context: Context) -> str:
        from wallclock.bench.runs.training import new_run

        asked = request(context)
        given = {"deadline": context.deadline, **options(context, asked)}
        made = new_run(task, asked, context.out, context.command, **given)
        if quiet:
            return made.execute(lambda seen: None)
        with made.display(context.console) as observe:
            return made.execute(observe)

    return lambda task: Job(name, summary, partial(run, task), **more)
