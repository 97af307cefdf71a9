"""Checks on a run that is to be resumed: all of it must be one measurement, or it is refused."""

from pathlib import Path
from typing import Any

from wallclock.bench.runs.request import SYNTHETIC
from wallclock.reports.store.layout import StoreError
from wallclock.reports.store.read import read_unfinished, settings
from wallclock.reports.store.schema import PLACE, Run


def begun_run(path: Path, benchmark: str) -> Run:
    """Returns the unfinished run in the directory `path`.

    Raises:
        StoreError: if there is no run, it is finished, it belongs to another benchmark, or its data are gone.
    """
    run = read_unfinished(path)
    if run.request.get("benchmark") != benchmark:
        raise StoreError(f"{path} is a run of {run.request.get('benchmark')}, not of {benchmark}; start a new one")
    data = run.request.get("data", SYNTHETIC)
    if data != SYNTHETIC and not Path(data).exists():
        raise StoreError(f"{path} needs its data at {data}, seen from where it was begun; go on from there")
    return run


def check_same_place(run: Run, here: dict[str, Any], path: Path, data: Any = None) -> None:
    """Refuses to resume a run where new samples would not be comparable with those before.

    `here` is the provenance of this process, `path` the run's directory; `data` have a `content_hash`.

    Raises:
        StoreError: if data, machine, versions, sources or settings differ; names the differences.
    """
    if data is not None and data.content_hash != run.request["content_hash"]:
        raise StoreError(f"{path} was made with other data than {run.request['data']} holds now; start a new run")
    then = {name: getattr(run, name) for name in PLACE} | settings(run.environment)
    now = {name: here.get(name) for name in PLACE} | settings(here["environment"])
    changes = [f"{k}: {then.get(k)} then, {now.get(k)} now" for k in {**then, **now} if then.get(k) != now.get(k)]
    if changes:
        raise StoreError(f"{path} was begun under other conditions ({'; '.join(changes)}); start a new run")
