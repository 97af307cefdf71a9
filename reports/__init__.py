"""Records and reports: schema, store, statistics, tables, plots, pages. Imports no torch, and pandas only when needed.

Programs read records with `reports.load(path)`; `reports.Report(path)` shows tables and figures of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wallclock.reports.store.layout import StoreError as StoreError
from wallclock.reports.store.pictures import load_pictures as load_pictures
from wallclock.reports.store.read import load as load
from wallclock.reports.store.read import load_runs as load_runs
from wallclock.reports.store.schema import Run as Run
from wallclock.reports.store.schema import Sample as Sample
from wallclock.reports.store.write import RunWriter as RunWriter

if TYPE_CHECKING:
    from wallclock.reports.page.build import build_page as build_page
    from wallclock.reports.report import Report as Report
    from wallclock.reports.stats.intervals import summarise as summarise
    from wallclock.reports.stats.intervals import time_to_target as time_to_target

_INTERVALS = "stats.intervals"  # modules that import numpy and more
_HOMES = {"build_page": "page.build", "Report": "report", "summarise": _INTERVALS, "time_to_target": _INTERVALS}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wallclock.reports' has no attribute '{name}'")
    globals()[name] = value = getattr(import_module(f"wallclock.reports.{_HOMES[name]}"), name)
    return value
