"""Every training task: the folders beside this file that declare one. No torch here."""

import pkgutil
from importlib import import_module

from wallclock.bench import tasks
from wallclock.bench.runs.task import Task


def find_tasks() -> dict[str, Task]:
    """Returns the `TASK` that each package `bench.tasks.<name>` declares in its module `task`, by name, in order.

    Raises:
        TypeError: if a package declares none.
        ValueError: if a task has another name than its package.
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
    """Returns the task of a name.

    Raises:
        ValueError: if there is none; names all.
    """
    if name not in TASKS:
        raise ValueError(f"no task '{name}'; tasks: {', '.join(TASKS)}")
    return TASKS[name]
