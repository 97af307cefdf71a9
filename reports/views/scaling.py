"""Projection of a step's speed from one device to several."""

from typing import Any

import numpy as np
import pandas as pd

from wallclock.reports.format.text import Cells, interval_text, significant
from wallclock.reports.stats.intervals import bootstrap_interval
from wallclock.reports.views.ablation import AS_IS
from wallclock.reports.views.view import View

LINKS_GB_PER_S = 100, 10  # speed of each device's link: assumed, not measured

VIEW = View(("gradient_bytes",))


def scaling_summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns one row for each number of devices in each ablation that measured their parts of a batch.

    A step of n devices takes one device's step on its part of the batch, then a ring's all-reduce of the gradients, in
    which each device sends 2(n-1)/n of them: `bench.engine.ranks` adds them up after backward, without overlap.

    Returns:
        Columns `run_id`, `case`, `devices`, `part` (images), `part_s` (median), `gradient_bytes`, `at_most` with `_low`
        and `_high`: speed-up of a step if the exchange takes no time (median over rounds of the ratio,
        bootstrap), and `at_<link>` for each link of `LINKS_GB_PER_S`.
    """
    rows: list[dict[str, Any]] = []
    counted = frame[frame["metric"] == "gradient_bytes"]
    for run_id, sizes in counted.groupby("run_id", sort=False, observed=True):
        steps = frame[(frame["run_id"] == run_id) & (frame["metric"] == "step_s") & (frame["phase"] == "steady")]
        steps = steps.drop_duplicates(["variant", "round"], keep="last")
        times = steps.pivot_table(index="round", columns="variant", values="value", observed=True)
        batches = sizes.set_index("variant")["batch_size"].astype(int)
        for variant, part in batches.items():
            pairs = times[[AS_IS, variant]].dropna() if {AS_IS, variant} <= {*times} else times.iloc[:0]
            if variant == AS_IS or pairs.empty:
                continue
            n, exchanged = int(batches[AS_IS] // part), float(sizes["value"].iloc[0])
            whole_s, part_s = pairs[AS_IS], pairs[variant]
            most = bootstrap_interval(whole_s / part_s, lambda x: np.median(x, axis=-1))
            row: dict[str, Any] = {"run_id": run_id, "case": sizes["case"].iloc[0], "devices": n, "part": int(part)}
            row |= {"part_s": float(part_s.median()), "gradient_bytes": exchanged}
            row |= {"at_most": most.value, "at_most_low": most.low, "at_most_high": most.high}
            for link in LINKS_GB_PER_S:
                exchange_s = 2 * (n - 1) / n * exchanged / (1e9 * link)
                row[f"at_{link}"] = float((whole_s / (part_s + exchange_s)).median())
            rows.append(row)
    return pd.DataFrame(rows)


@VIEW.table(
    "scaling", title="More devices: a projection from one, with its link's speed", heading="More devices, a projection"
)
def scaling_rows(samples: pd.DataFrame) -> Cells:
    """From one device: a step on the part of the batch that each of n devices would have, in turns with the whole step.

    x at most is the whole step's time over the part's, with its 95% interval; then with a ring's all-reduce of the
    gradients after it, at an assumed speed of each device's link. Measured scaling is a run under torchrun.
    """
    for row in scaling_summary(samples).to_dict("records"):
        yield {
            **{"case": str(row["case"]), "devices": str(row["devices"]), "images each": str(row["part"])},
            "step, ms": significant(1e3 * row["part_s"]),
            "x at most": f"{significant(row['at_most'])}\n{interval_text(row['at_most_low'], row['at_most_high'])}",
            **{f"x at {link} GB/s": significant(row[f"at_{link}"]) for link in LINKS_GB_PER_S},
        }
