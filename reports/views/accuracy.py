"""Who reaches a target, how surely, and at what cost: seconds by three clocks, energy, and each point of accuracy."""

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wallclock.reports.format.text import (
    CLOCK,
    NAMES,
    Rows,
    by_label,
    distinctions,
    interval_text,
    percent,
    percent_interval,
    present,
    significant,
    stacked,
)
from wallclock.reports.stats.intervals import time_to_target

if TYPE_CHECKING:
    import pandas as pd

HEADER = (
    *("case", "target", "mean accuracy", "P(reach)", "train_eval s", "resident s", "process s", "energy J"),
    *("s for the last point", "hardware", "date", "record"),
)
FINAL = {"train_eval_s": "elapsed_train_eval_s", "final_accuracy": "accuracy"}
CURVE = (*FINAL, *FINAL.values())
POINTS = 12  # of accuracy, up to the highest that was seen: those before take less than an epoch together


def leaderboard(samples: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the rows of `reports.time_to_target`, each target's fastest first, with what else a record is told by.

    Args:
        samples: from `reports.load`.

    Returns:
        Besides those columns: `process_s`, the median of cold starts; `energy_j`, the median of seeds, of the GPU, with
        compilation and looks on the way; `last_point_s`, the median time from one point of accuracy below the target to
        the target; `date`, of the first run; `run_ids`.
    """
    import pandas as pd

    scores, rows = time_to_target(samples), []
    for row in scores.to_dict("records"):
        own = samples[samples["run_id"].isin(row["run_ids"]) & (samples["case"] == row["case"])]
        for name in ("process_s", "energy_j"):
            values = own.loc[own["metric"] == name, "value"].dropna()
            row[name] = float(values.median()) if len(values) else math.nan
        costs = [points.get(round(100 * row["target"], 6), math.nan) for points in _costs_by_seed(own, row["target"])]
        known = [cost for cost in costs if math.isfinite(cost)]
        row["last_point_s"] = float(np.median(known)) if known else math.nan
        row["date"] = min(own["started_utc"])[:10]
        rows.append({str(name): value for name, value in row.items()})
    order = ["dataset", "target", CLOCK]
    found = pd.DataFrame(rows, columns=None if rows else [*scores.columns])
    return found.sort_values([name for name in order if name in found], kind="stable", ignore_index=True)


def leaderboard_rows(board: "pd.DataFrame") -> Rows:
    """Returns the header and the cells of the leaderboard.

    Args:
        board: from `leaderboard`.
    """
    rows = []
    distinguished = distinctions(board.loc[:, :"target"], [*NAMES, "target"]) if len(board) else []
    for row, told in zip(board.to_dict("records"), distinguished, strict=True):
        names, p = [row["case"], row.get("dataset"), *told], significant(row["p_value"], 2)
        rows.append(
            [
                stacked(*(str(name) for name in names if present(name))),
                percent(row["target"]),
                stacked(f"{100 * row['mean_accuracy']:.2f}%", f"n = {row['n']}", f"p = {p}" if row["n"] > 1 else ""),
                stacked(f"{row['hits']} of {row['n']}", percent_interval(row["hit_low"], row["hit_high"], 0)),
                stacked(_seconds(row[CLOCK]), interval_text(row[f"{CLOCK}_low"], row[f"{CLOCK}_high"])),
                _seconds(row.get("resident_s", math.nan)),
                _seconds(row["process_s"]),
                _known(row["energy_j"]),
                _known(row["last_point_s"]),
                str(row.get("gpu_name") if present(row.get("gpu_name")) else row.get("cpu", "")),
                row["date"],
                stacked(*row["run_ids"]),
            ]
        )
    return list(HEADER), rows


def _seconds(value: float) -> str:
    return "unknown" if math.isinf(value) else _known(value)


def _known(value: float) -> str:
    return significant(value) if math.isfinite(value) else "not measured"


def point_costs(samples: "pd.DataFrame") -> "dict[str, dict[float, tuple[float, float, float]]]":
    """Returns for each case the seconds that each point of accuracy took: median, least and most of its seeds.

    Args:
        samples: from `reports.load`.

    Returns:
        By label, then by the accuracy in percent at which the point ends, on the `train_eval` clock.
    """
    costs = {}
    for label, group in by_label(samples[samples["metric"].isin(CURVE)]):
        seeds = _costs_by_seed(group)
        ends = sorted({end for points in seeds for end in points})[-POINTS:]
        found = {}
        for end in ends:
            values = [points[end] for points in seeds if end in points]
            found[end] = (float(np.median(values)), min(values), max(values))
        if found:
            costs[label] = found
    return costs


def _costs_by_seed(samples: "pd.DataFrame", target: float | None = None) -> list[dict[float, float]]:
    """Returns for each seed of each run the seconds of each whole point of accuracy, or of the one below a target."""
    found = []
    curves = samples[samples["metric"].isin(CURVE)]
    line = curves.groupby(["run_id", "seed"], dropna=False, sort=False, observed=True).ngroup()
    # The final evaluation, augmented where the recipe says so, is the last look.
    step, metric = curves["step"].fillna(np.iinfo(np.int64).max), curves["metric"].replace(FINAL)
    looks = curves.assign(line=line, step=step, metric=metric).pivot_table(
        index=["line", "step"], columns="metric", values="value"
    )
    for _, wide in looks.reindex(columns=[*FINAL.values()]).dropna().groupby("line"):
        if len(wide) > 1:
            seconds, accuracy = (wide[name].to_numpy() for name in ("elapsed_train_eval_s", "accuracy"))
            found.append(_point_costs(seconds, 100 * accuracy, None if target is None else 100 * target))
    return found


def _point_costs(
    seconds: npt.NDArray[np.float64], percents: npt.NDArray[np.float64], target: float | None
) -> dict[float, float]:
    """Returns the seconds from each point's beginning to its end, on straight lines between looks.

    A point counts as reached when the accuracy first does so, whatever it falls to afterwards.
    """
    best = np.maximum.accumulate(np.concatenate([[0.0], percents]))
    times = np.concatenate([[0.0], seconds])
    rising = np.concatenate([[True], np.diff(best) > 0])
    best, times = best[rising], times[rising]
    ends = np.arange(1.0, math.floor(best[-1]) + 1) if target is None else np.array([target])
    ends = ends[(ends <= best[-1]) & (ends >= 1)]
    took = np.interp(ends, best, times) - np.interp(ends - 1, best, times)
    return {round(float(end), 6): float(cost) for end, cost in zip(ends, took, strict=True)}
