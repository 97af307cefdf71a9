"""Cost of each point of accuracy: the seconds from one whole percent to the next."""

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from wallclock.reports.format.labels import by_label
from wallclock.reports.format.plotly import Figure, escape, figure, nth_colour, scatter
from wallclock.reports.views.view import View

FINAL = {"train_eval_s": "elapsed_train_eval_s", "final_accuracy": "accuracy"}
CURVE = (*FINAL, *FINAL.values())
POINTS = 12  # points of accuracy shown, up to the highest seen: those before take less than an epoch together

VIEW = View(CURVE)


def point_costs(samples: pd.DataFrame) -> "dict[str, dict[float, tuple[float, float, float]]]":
    """Returns the seconds of each point of accuracy in each case: median, least and most of its seeds.

    Returns:
        Values by label, then by the accuracy in percent at which the point ends, on the `train_eval` clock.
    """
    costs = {}
    for label, group in by_label(samples[samples["metric"].isin(CURVE)]):
        seeds = costs_by_seed(group)
        ends = sorted({end for points in seeds for end in points})[-POINTS:]
        found = {}
        for end in ends:
            values = [points[end] for points in seeds if end in points]
            found[end] = (float(np.median(values)), min(values), max(values))
        if found:
            costs[label] = found
    return costs


def costs_by_seed(samples: pd.DataFrame, target: float | None = None) -> list[dict[float, float]]:
    """Returns the seconds of each whole point of accuracy, or of the one below a target, for each seed of each run."""
    found = []
    curves = samples[samples["metric"].isin(CURVE)]
    line = curves.groupby(["run_id", "seed"], dropna=False, sort=False, observed=True).ngroup()
    # The final evaluation, augmented if the recipe says so, is the last point of the curve.
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
    """Returns the seconds from each point's beginning to its end, by linear interpolation between evaluations.

    A point counts as reached when the accuracy first reaches it, even if it falls afterwards.
    """
    best = np.maximum.accumulate(np.concatenate([[0.0], percents]))
    times = np.concatenate([[0.0], seconds])
    rising = np.concatenate([[True], np.diff(best) > 0])
    best, times = best[rising], times[rising]
    ends = np.arange(1.0, math.floor(best[-1]) + 1) if target is None else np.array([target])
    ends = ends[(ends <= best[-1]) & (ends >= 1)]
    took = np.interp(ends, best, times) - np.interp(ends - 1, best, times)
    return {round(float(end), 6): float(cost) for end, cost in zip(ends, took, strict=True)}


@VIEW.figure("points", "What each point of accuracy costs")
def accuracy_points(samples: pd.DataFrame) -> Figure | None:
    """Seconds of the train_eval clock from one whole percent to the next, when each was first reached.

    On straight lines between evaluations; median of the seeds.
    """
    traces: list[Figure] = []
    for position, (label, points) in enumerate(point_costs(samples).items()):
        median, low, high = zip(*points.values(), strict=True)
        traces.append(
            scatter(
                list(points),
                list(median),
                "lines+markers",
                name=escape(label),
                text=[f"{a:.3g} to {b:.3g}" for a, b in zip(low, high, strict=True)],
                line={"color": nth_colour(position), "width": 1.75, "shape": "hvh"},
                marker={"size": 5},
                hovertemplate=f"to %{{x:.0f}}%: %{{y:.3g}} s (seeds %{{text}})<extra>{escape(label)}</extra>",
            )
        )
    titles = "accuracy reached, %", "seconds for the point below it"
    return figure(traces, *titles, showlegend=len(traces) > 1, yaxis={"rangemode": "tozero"}) if traces else None
