"""Records and what is made of them: schema, store, statistics, tables, plots, pages. Imports no torch, and pandas late.

`reports.load(path)` is the public way in, `reports.Report(path)` shows what it comes to.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wallclock.reports.page.build import build_page
    from wallclock.reports.report import Report
    from wallclock.reports.stats.intervals import summarise, time_to_target
    from wallclock.reports.store.layout import StoreError
    from wallclock.reports.store.pictures import load_pictures
    from wallclock.reports.store.read import load, load_runs
    from wallclock.reports.store.schema import Run, Sample
    from wallclock.reports.store.write import RunWriter

_HOMES = {
    "load": "store.read",
    "load_pictures": "store.pictures",
    "load_runs": "store.read",
    "build_page": "page.build",
    "Report": "report",
    "Run": "store.schema",
    "Sample": "store.schema",
    "summarise": "stats.intervals",
    "time_to_target": "stats.intervals",
    "RunWriter": "store.write",
    "StoreError": "store.layout",
}
__all__ = [
    "Report",
    "Run",
    "RunWriter",
    "Sample",
    "StoreError",
    "build_page",
    "load",
    "load_pictures",
    "load_runs",
    "summarise",
    "time_to_target",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wallclock.reports' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(f"wallclock.reports.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
