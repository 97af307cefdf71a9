"""Every summary of a set of runs, once: what the terminal, `--json`, notebooks and the page are made from."""

from typing import TYPE_CHECKING

from wallclock.reports.format import text as tables
from wallclock.reports.stats.intervals import summarise
from wallclock.reports.views.ablation import ablation_summary
from wallclock.reports.views.accuracy import leaderboard
from wallclock.reports.views.calibration import calibration_summary
from wallclock.reports.views.comparison import comparison_summary
from wallclock.reports.views.kernels import kernel_summary
from wallclock.reports.views.loaders import loader_summary
from wallclock.reports.views.upsampling import upsampling_summary

if TYPE_CHECKING:
    import pandas as pd


def summaries(samples: "pd.DataFrame", runs: "pd.DataFrame") -> "dict[str, pd.DataFrame]":
    """Returns what `--json` prints, as frames by the same names; see docs/schema.md.

    Args:
        samples: from `reports.load`.
        runs: from `reports.load_runs`, of the same paths.
    """
    return {
        "runs": runs[["run_id", "run_status", "error", "notes"]],
        "time_to_target": leaderboard(samples),
        "upsampling": upsampling_summary(samples),
        "kernels": kernel_summary(samples),
        "levers": ablation_summary(samples),
        "calibration": calibration_summary(samples, runs),
        "comparisons": comparison_summary(samples, runs),
        "loaders": loader_summary(samples),
        "summary": summarise(samples[~samples["metric"].isin(tables.CURVES)]),
    }


def other_metrics(summary: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the rows of `summaries["summary"]` that have no table of their own."""
    return summary[~summary["metric"].isin(tables.TABLED) & ~summary["benchmark"].isin(tables.OF_THEIR_OWN)]
