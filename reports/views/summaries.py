"""Every metric of every case: median, interval and range; and those that no other table shows."""

from typing import TYPE_CHECKING

from wallclock.reports.format.labels import distinctions
from wallclock.reports.format.text import Rows, arrow, interval_text, present, significant, stacked
from wallclock.reports.stats.intervals import summarise
from wallclock.reports.views.view import Records, Summary, Table, View

if TYPE_CHECKING:
    import pandas as pd

SUMMARY_NAMES = ("benchmark", "case", "variant", "arm", "metric")
EVERY_METRIC = Summary(
    "summary",
    "a row a metric of a case: `n`, `median`, `ci_low`, `ci_high`, `min`, `max`, `failed`, `censored`",
    lambda records: summarise(records.samples[~records.samples["metric"].isin(records.curves)]),
)


def other_metrics(records: Records) -> "pd.DataFrame":
    """Returns the rows of `EVERY_METRIC` that have no table of their own."""
    summary, tabled = records.of(EVERY_METRIC), records.tabled
    return summary[~summary["metric"].isin(tabled) & ~summary["benchmark"].isin(tabled)]


def summary_rows(summary: "pd.DataFrame") -> Rows:
    """Returns the header and the cells of the table of any metric; of the rest, what tells rows apart.

    Args:
        summary: from `reports.summarise`.
    """
    header = ["case", "metric", "n", "median", "95% interval", "unit"]
    distinguished = distinctions(summary.loc[:, :"better"], SUMMARY_NAMES)
    several = summary["benchmark"].nunique() > 1
    rows: list[list[str]] = []
    for row, told in zip(summary.to_dict("records"), distinguished, strict=True):
        names = [
            row["benchmark"] if several or not row["case"] else "",
            *(row.get(k) for k in ("case", "variant", "arm")),
        ]
        missed = f"{row['censored']} missed" if row["censored"] else ""
        failed = f"{row['failed']} failed" if row["failed"] else ""
        rows.append(
            [
                stacked(" ".join(str(name) for name in names if present(name)), ", ".join(told)),
                f"{row['metric']} {arrow(row['better'])}",
                stacked(str(row["n"]), missed, failed),
                significant(row["median"], 4) if row["n"] else "none",
                interval_text(row["ci_low"], row["ci_high"]) if row["n"] > 1 else "",
                row["unit"],
            ]
        )
    return header, rows


VIEW = View(
    summary=EVERY_METRIC,
    tables=(Table(name="other", title="Other metrics", rows=lambda records: summary_rows(other_metrics(records))),),
)
