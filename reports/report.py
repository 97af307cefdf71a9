"""Stored runs as tables and figures, for the terminal, Markdown, notebooks and the page."""

import functools
import html
from pathlib import Path
from typing import TYPE_CHECKING

from wallclock.reports.format.text import Rows, markdown, name_once
from wallclock.reports.store.layout import Paths
from wallclock.reports.store.pictures import load_pictures
from wallclock.reports.store.read import load_both
from wallclock.reports.views.registry import VIEWS
from wallclock.reports.views.view import Records, in_order

if TYPE_CHECKING:
    import pandas as pd

ORDER = (  # of tables, by name; one that is not listed comes before the last
    *("comparisons", "calibration", "accuracy", "latencies", "details", "winners", "stages", "checkerboards"),
    *("failed-kernels", "compiled", "choices", "levers", "flops", "scaling"),
    *("loaders-1", "loaders-2", "loaders-3", "loaders-4", "failed-loaders", "phases", "operators", "other", "places"),
)


class Report:
    """A report on stored runs; a notebook shows it as tables.

    Args:
        paths: run directories, or folders that hold run directories at any depth.

    Attributes:
        samples: frame from `reports.load`; damaged runs are left out, and listed in `samples.attrs["skipped"]`.
        runs: frame from `reports.load_runs`.

    Raises:
        StoreError: if no run could be read.
    """

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.samples, self.runs = load_both(paths, on_damage="skip")
        self._records = Records(self.samples, self.runs, VIEWS)

    @functools.cached_property
    def summaries(self) -> "dict[str, pd.DataFrame]":
        """The frames that `--json` prints, by the same names; see docs/schema.md."""
        return {"runs": self.runs[["run_id", "run_status", "error", "notes"]], **self._records.summaries()}

    def tables(self) -> dict[str, Rows]:
        """Returns header and cells of every non-empty table, by title."""
        titled = (table for view in self._records.shown for table in view.tables if table.title)
        made = {table.title: self._records.make(table.make) for table in in_order(titled, ORDER)}
        return {title: rows for title, rows in made.items() if rows[1]}

    def markdown(self) -> str:
        """Returns all tables as GitHub Markdown."""
        return "\n".join(f"## {title}\n\n{markdown(rows)}" for title, rows in self.tables().items())

    def page(self, out: Path) -> Path:
        """Writes the HTML page; see `reports.build_page`."""
        from wallclock.reports.page.build import write_page

        return write_page(self._records, out, load_pictures(self.paths, on_damage="skip"))

    def __repr__(self) -> str:
        return f"<Report of {len(self.runs)} runs, {len(self.samples):,} samples: {', '.join(self.tables())}>"

    def _repr_html_(self) -> str:
        """Returns the tables as HTML, for a notebook."""

        def line(kind: str, cells: list[str]) -> str:
            style = f"<{kind} style='text-align: left; vertical-align: top; white-space: pre-line'>"
            return "<tr>" + "".join(style + html.escape(cell) for cell in cells) + "</tr>"

        parts = []
        for title, rows in self.tables().items():
            body = "".join(line("td", cells) for cells in name_once(rows))
            parts.append(f"<h3>{html.escape(title)}</h3><table>{line('th', rows[0])}{body}</table>")
        return "".join(parts)
