"""Records and reports: schema, store, statistics, tables, plots, pages. Imports no torch, and pandas only when needed.

Programs read records with `reports.load(path)`; `reports.Report(path)` shows tables and figures of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wallclock.reports.page.build import build_page as build_page
    from wallclock.reports.report import Report as Report
    from wallclock.reports.stats.intervals import summarise as summarise
    from wallclock.reports.stats.intervals import time_to_target as time_to_target
    from wallclock.reports.store.layout import StoreError as StoreError
    from wallclock.reports.store.pictures import load_pictures as load_pictures
    from wallclock.reports.store.read import load as load
    from wallclock.reports.store.read import load_runs as load_runs
    from wallclock.reports.store.schema import Run as Run
    from wallclock.reports.store.schema import Sample as Sample
    from wallclock.reports.store.write import RunWriter as RunWriter

_HOMES = {
    "page.build": ("build_page",),
    "report": ("Report",),
    "stats.intervals": ("summarise", "time_to_target"),
    "store.layout": ("StoreError",),
    "store.pictures": ("load_pictures",),
    "store.read": ("load", "load_runs"),
    "store.schema": ("Run", "Sample"),
    "store.write": ("RunWriter",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            globals()[name] = value = getattr(import_module(f"wallclock.reports.{home}"), name)
            return value
    raise AttributeError(f"module 'wallclock.reports' has no attribute '{name}'")
