"""Every metric of every case: median, interval and range; and the metrics that no other table shows."""

from collections.abc import Sequence

import pandas as pd

from wallclock.reports.format.labels import distinctions
from wallclock.reports.format.text import Cells, arrow, interval_text, present, significant, stack_lines
from wallclock.reports.stats.intervals import summarise
from wallclock.reports.views.view import View

SUMMARY_NAMES = ("benchmark", "case", "variant", "arm", "metric")

VIEW = View()


@VIEW.summary(
    "summary", "a row a metric of a case: `n`, `median`, `ci_low`, `ci_high`, `min`, `max`, `failed`, `censored`"
)
def every_metric(samples: pd.DataFrame, curves: Sequence[str]) -> pd.DataFrame:
    """Returns `summarise` of all metrics but the points of curves."""
    return summarise(samples[~samples["metric"].isin(curves)])


def other_metrics(summary: pd.DataFrame, tabled: Sequence[str]) -> pd.DataFrame:
    """Returns the rows of `every_metric` that have no table of their own."""
    benchmark, metric = summary["benchmark"].astype("str"), summary["metric"].astype("str")
    return summary[~(metric.isin(tabled) | benchmark.isin(tabled) | (benchmark + "/" + metric).isin(tabled))]


@VIEW.table("other", title="Other metrics")
def other_rows(summary: pd.DataFrame, tabled: Sequence[str]) -> Cells:
    """Yields the rows of `summary_rows` for the metrics that have no table of their own."""
    yield from summary_rows(other_metrics(summary, tabled))


def summary_rows(summary: pd.DataFrame) -> Cells:
    """Yields the rows of the table of any metric; other columns show only what tells rows apart."""
    distinguished = distinctions(summary.loc[:, :"better"], SUMMARY_NAMES)
    several = summary["benchmark"].nunique() > 1
    for row, told in zip(summary.to_dict("records"), distinguished, strict=True):
        names = [
            row["benchmark"] if several or not row["case"] else "",
            *(row.get(k) for k in ("case", "variant", "arm")),
        ]
        missed = f"{row['censored']} missed" if row["censored"] else ""
        failed = f"{row['failed']} failed" if row["failed"] else ""
        yield {
            "case": stack_lines(" ".join(str(name) for name in names if present(name)), ", ".join(told)),
            "metric": f"{row['metric']} {arrow(row['better'])}",
            "n": stack_lines(str(row["n"]), missed, failed),
            "median": significant(row["median"], 4) if row["n"] else "none",
            "95% interval": interval_text(row["ci_low"], row["ci_high"]) if row["n"] > 1 else "",
            "unit": row["unit"],
        }
