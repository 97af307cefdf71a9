"""Records and what is made of them: schema, store, statistics, tables, plots, pages. Imports no torch, and pandas late.

`reports.load(path)` is the public way in, `reports.Report(path)` shows what it comes to.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reports.page import build_page
    from reports.pictures import load_pictures
    from reports.reading import load, load_runs
    from reports.report import Report
    from reports.schema import Run, Sample
    from reports.stats import summarise, time_to_target
    from reports.store import RunWriter, StoreError

_HOMES = {
    "load": "reading",
    "load_pictures": "pictures",
    "load_runs": "reading",
    "build_page": "page",
    "Report": "report",
    "Run": "schema",
    "Sample": "schema",
    "summarise": "stats",
    "time_to_target": "stats",
    "RunWriter": "store",
    "StoreError": "store",
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
        raise AttributeError(f"module 'reports' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(f"reports.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
