"""`wallclock list` and `env`: lists the recipes and benchmarks, and says what this machine can run."""

from dataclasses import asdict
from typing import Any

import typer

from wallclock.bench.cli.options import Json
from wallclock.bench.cli.output import consoles, print_json, print_table


def list_(json_: Json = False) -> None:
    """List recipes and benchmarks."""
    from wallclock.bench.suite import make_plan
    from wallclock.bench.tasks.registry import TASKS

    recipes = {f"{task.title} recipe".strip(): [m("cpu") for m in task.recipes.values()] for task in TASKS.values()}
    both = make_plan("quick"), make_plan("suite")
    plans = {plan.name: {job.name: job.summary for job in plan.jobs} for plan in both}
    if json_:
        document = {f"{k.lower().replace(' ', '_')}s": {r.name: r.resolved() for r in recipes[k]} for k in recipes}
        print_json(document | plans)
        return
    tables: list[tuple[tuple[str, ...], Any]] = []
    for kind, found in recipes.items():
        rows = [(recipe.name, f"{recipe.epochs:g}", f"{recipe.batch_size}", recipe.summary) for recipe in found]
        tables.append(((kind, "epochs", "batch", "what it is"), rows))
    tables += [((f"wallclock {name}", ""), jobs.items()) for name, jobs in plans.items()]
    for number, (headers, rows) in enumerate(tables):
        if number:
            typer.echo()
        print_table(rows, *headers)


def env(json_: Json = False) -> None:
    """Say what this machine can run, what not, and why.

    And what to install.
    """
    from rich.text import Text

    from wallclock.bench.measure.environment import capabilities, machine

    found = capabilities()
    if json_:
        print_json({"machine": machine(), "capabilities": [asdict(capability) for capability in found]})
        return
    consoles()[0].print(machine(), markup=False)
    marks = {True: Text("yes", "green"), False: Text("no", "yellow")}
    rows = [(marks[one.available], one.name, Text(one.detail), Text(one.install)) for one in found]
    print_table(rows, "", "can use", "found", "to do")
