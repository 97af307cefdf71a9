"""Everything that a set of runs comes to, as tables: what the terminal, Markdown and notebooks show."""

import functools
import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wallclock.reports.format import text as tables
from wallclock.reports.format.text import Rows
from wallclock.reports.store.pictures import load_pictures
from wallclock.reports.store.read import load, load_runs
from wallclock.reports.views.ablation import ablation_rows, flop_rows
from wallclock.reports.views.calibration import calibration_rows
from wallclock.reports.views.comparison import comparison_rows
from wallclock.reports.views.kernels import failed_rows, kernel_detail_rows, kernel_rows, static_rows
from wallclock.reports.views.loaders import loader_failures, loader_tables
from wallclock.reports.views.machines import place_rows
from wallclock.reports.views.scaling import scaling_rows
from wallclock.reports.views.summaries import other_metrics, summaries
from wallclock.reports.views.upsampling import checkerboard_rows, stage_rows, winner_rows

if TYPE_CHECKING:
    import pandas as pd


class Report:
    """Stored runs with all that is made of them; a notebook shows it as tables.

    Args:
        paths: run directories, or folders that hold some at any depth.

    Attributes:
        samples: from `reports.load`; damaged runs are left out, and listed in `samples.attrs["skipped"]`.
        runs: from `reports.load_runs`.

    Raises:
        StoreError: if there is no run that could be read.
    """

    def __init__(self, paths: Path | str | Sequence[Path | str]) -> None:
        self.paths = paths
        self.samples = load(paths, on_damage="skip")
        self.runs = load_runs(paths, on_damage="skip")

    @functools.cached_property
    def summaries(self) -> "dict[str, pd.DataFrame]":
        """What `--json` prints, as frames by the same names; see docs/schema.md."""
        return summaries(self.samples, self.runs)

    def tables(self) -> dict[str, Rows]:
        """Returns header and cells of every table that has a row, by title."""
        samples, of = self.samples, self.summaries
        titled: dict[str, Rows] = {
            "Head against base: ratios of medians of rounds, with intervals": comparison_rows(of["comparisons"]),
            "Verdicts whose truth is known, alone and of 20 at once; power stated": calibration_rows(of["calibration"]),
            "Time to accuracy": tables.accuracy_rows(of["time_to_target"]),
            "Kernels: us, hot cache; MB kept for backward": kernel_rows(of["kernels"]),
            "Kernels, whole: us hot (95% interval) and cold; MB kept besides the output": kernel_detail_rows(
                of["kernels"]
            ),
            "Upsampling: forward and backward; which is fastest, and which lays no grid": winner_rows(of["upsampling"]),
            "Upsampling: ms; MB kept for backward": stage_rows(of["upsampling"]),
            "Checkerboards at (0, pi), (pi, 0), (pi, pi), before and after training": checkerboard_rows(samples),
            "Kernels that failed, and are left out above": failed_rows(samples),
            "Compiled kernels: the worst of n forms, in bytes, and bytes a thread": static_rows(samples),
            "Convolutions, forward and backward, measured to choose what carries them out": tables.choice_rows(samples),
            "Levers: iterations/s by variant, in turns; * computes other numbers": ablation_rows(of["levers"]),
            "FLOPs against seconds, fastest first": flop_rows(samples, of["levers"]),
            "More devices: a projection from one, with its link's speed": scaling_rows(samples),
            **loader_tables(of["loaders"]),
            "Loaders that failed, and are left out above": loader_failures(samples),
            "Phases of a step, and evaluation, in ms for 1,000 images": tables.phase_rows(samples),
            "Where a step's time goes, by operator": tables.operator_rows(samples),
            "Other metrics": tables.summary_rows(other_metrics(of["summary"])),
            "Where and with what": place_rows(samples, self.runs),
        }
        return {title: rows for title, rows in titled.items() if rows[1]}

    def markdown(self) -> str:
        """Returns all tables as GitHub Markdown."""
        return "\n".join(f"## {title}\n\n{tables.markdown(rows)}" for title, rows in self.tables().items())

    def page(self, out: Path) -> Path:
        """Writes the HTML page; see `reports.build_page`."""
        from wallclock.reports.page.build import build_page

        return build_page(
            self.samples, self.runs, out, load_pictures(self.paths, on_damage="skip"), summed=self.summaries
        )

    def __repr__(self) -> str:
        return f"<Report of {len(self.runs)} runs, {len(self.samples):,} samples: {', '.join(self.tables())}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""

        def line(kind: str, cells: list[str]) -> str:
            style = f"<{kind} style='text-align: left; vertical-align: top; white-space: pre-line'>"
            return "<tr>" + "".join(style + html.escape(cell) for cell in cells) + "</tr>"

        parts = []
        for title, rows in self.tables().items():
            body = "".join(line("td", cells) for cells in tables.named_once(rows))
            parts.append(f"<h3>{html.escape(title)}</h3><table>{line('th', rows[0])}{body}</table>")
        return "".join(parts)
