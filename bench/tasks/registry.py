"""The registry of training tasks, found in the folders beside this file. No torch here."""

import pkgutil
from importlib import import_module

from wallclock.bench import tasks
from wallclock.bench.runs.task import Task


def find_tasks() -> dict[str, Task]:
    """Returns the tasks by name, in order: the `TASK` in the module `task` of each package `bench.tasks.<name>`.

    Raises:
        TypeError: if a package declares no task.
        ValueError: if a task's name differs from its package's.
    """
    found: list[Task] = []
    for package in (module.name for module in pkgutil.iter_modules(tasks.__path__) if module.ispkg):
        task = getattr(import_module(f"{tasks.__name__}.{package}.task"), "TASK", None)
        if not isinstance(task, Task):
            raise TypeError(f"{tasks.__name__}.{package}.task declares no TASK; expected a bench.runs.task.Task")
        if task.name != package:
            raise ValueError(f"the task in {tasks.__name__}.{package} is named '{task.name}'; expected '{package}'")
        found.append(task)
    return {task.name: task for task in sorted(found, key=lambda task: task.place)}


TASKS = find_tasks()


def task_named(name: str) -> Task:
    """Returns the task with that name.

    Raises:
        ValueError: if no task has that name; the message lists all names.
    """
    if name not in TASKS:
        raise ValueError(f"no task '{name}'; tasks: {', '.join(TASKS)}")
    return TASKS[name]
