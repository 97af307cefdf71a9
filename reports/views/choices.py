"""Table of the convolutions that were measured before the first seed, to choose their implementation."""

import pandas as pd

from wallclock.reports.format.text import Cells, significant
from wallclock.reports.views.view import View

VIEW = View(("choices",), tabled=("choices",))


@VIEW.table(
    "choices",
    title="Convolutions, forward and backward, measured to choose what carries them out",
    heading="Convolutions that were chosen",
)
def choice_rows(samples: pd.DataFrame) -> Cells:
    """Forward and backward of layers that are alike, measured before the first seed.

    PyTorch's convolution and norm against ours, one word for each norm. The fastest right one is taken.
    """
    samples = samples[samples["benchmark"] == "choices"]
    for case, group in samples.groupby("case", sort=False, observed=True):
        times = group[group["metric"] == "latency"].groupby("variant", sort=False, observed=True)["value"].median()
        if times.empty:
            continue
        failed = group.loc[group["status"] == "failed", "variant"]
        eager = next((name for name in times.index if set(name.split(", ")) == {"eager"}), None)
        yield {
            "unit": f"{case} ({len(group['units'].iloc[0].split())} alike)",
            "eager ms": significant(1e3 * times[eager]) if eager else "failed",
            "fastest ms": significant(1e3 * times.min()),
            "fastest": str(times.idxmin()),
            "failed": "; ".join(failed.unique()),
            "chosen": "; ".join(group.loc[group["chosen"].eq(True), "variant"].unique()),
        }
