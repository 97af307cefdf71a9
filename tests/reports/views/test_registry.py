"""Every view can be made, and the orders of page and terminal name what there is."""

from pathlib import Path

import pandas as pd
import pytest

from wallclock.reports import load, load_runs
from wallclock.reports.page.build import FIGURES, TABLES
from wallclock.reports.report import ORDER, Report
from wallclock.reports.views import choices, machines
from wallclock.reports.views.registry import VIEWS
from wallclock.reports.views.view import Records, View, in_order


def test_the_orders_name_all_tables_and_figures_once() -> None:
    tables = [table for view in VIEWS for table in view.tables]
    assert sorted(ORDER) == sorted(table.name for table in tables if table.title)
    assert sorted(TABLES) == sorted(table.name for table in tables if table.heading)
    assert sorted(FIGURES) == sorted(figure.name for view in VIEWS for figure in view.figures)


def test_a_view_needs_no_line_elsewhere(cifar_root: Path) -> None:
    """Its table stands before the last, its summary is made once, and only where the records hold its benchmark."""
    own, absent, made = View(["cifar"]), View(["nothing"]), []

    @own.summary("counts", "a row a metric")
    def counts(samples: pd.DataFrame) -> pd.DataFrame:
        made.append(len(samples))
        return samples.groupby("metric", as_index=False, observed=True).size()

    for view in (own, absent):

        @view.table("counted", title="Counts", heading="Counts")
        def rows(counts: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
            """How many samples each metric has."""
            return ["metric", "n"], counts.astype(str).to_numpy().tolist()

    records = Records(load(cifar_root), load_runs(cifar_root), [own, absent])
    (view,) = records.shown
    (table,) = view.tables
    assert view is own and table.caption == "How many samples each metric has."
    assert ["accuracy", "10"] in records.make(table.make)[1] == records.make(table.make)[1]
    assert made == [len(load(cifar_root))]
    names = [part.name for part in in_order([*machines.VIEW.tables, table, *choices.VIEW.tables], ORDER)]
    assert names == ["choices", "counted", "places"]


def test_every_run_is_read_once(cifar_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wallclock.reports.store import read

    read_run, seen = read._read_run, []
    monkeypatch.setattr(read, "_read_run", lambda *a, **k: (seen.append(a), read_run(*a, **k))[1])
    assert Report(cifar_root).tables() and len(seen) == 1
