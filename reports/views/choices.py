"""Convolutions that were measured before the first seed, to choose what carries them out."""

from typing import TYPE_CHECKING

from wallclock.reports.format.text import Rows, significant
from wallclock.reports.views.view import Table, View

if TYPE_CHECKING:
    import pandas as pd


def choice_rows(frame: "pd.DataFrame") -> Rows:
    """Returns the header and the cells of what was measured to choose each unit's convolutions.

    Args:
        frame: from `reports.load`.
    """
    header = ["unit", "eager ms", "fastest ms", "fastest", "failed", "chosen"]
    frame = frame[frame["benchmark"] == "choices"]
    rows = []
    for case, group in frame.groupby("case", sort=False, observed=True):
        times = group[group["metric"] == "latency"].groupby("variant", sort=False, observed=True)["value"].median()
        if times.empty:
            continue
        failed = group.loc[group["status"] == "failed", "variant"]
        eager = next((name for name in times.index if set(name.split(", ")) == {"eager"}), None)
        rows.append(
            [
                f"{case} ({len(group['units'].iloc[0].split())} alike)",
                significant(1e3 * times[eager]) if eager else "failed",
                significant(1e3 * times.min()),
                str(times.idxmin()),
                "; ".join(failed.unique()),
                "; ".join(group.loc[group["chosen"].eq(True), "variant"].unique()),
            ]
        )
    return header, rows


VIEW = View(
    made_from=("choices",),
    tables=(
        Table(
            name="choices",
            title="Convolutions, forward and backward, measured to choose what carries them out",
            heading="Convolutions that were chosen",
            rows=lambda records: choice_rows(records.samples),
            caption="Forward and backward of layers that are alike, measured before the first seed: PyTorch's "
            "convolution and norm against ours, one word for each norm. The fastest right one is taken.",
        ),
    ),
    tabled=("choices",),
)
