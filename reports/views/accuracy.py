"""Time to accuracy: which recipes reach a target, how often, and at what cost in seconds and energy."""

import math

import numpy as np
import pandas as pd

from wallclock.reports.format.labels import NAMES, by_label, distinctions
from wallclock.reports.format.plotly import Figure, errors, escape, figure, json_numbers, nth_colour, scatter
from wallclock.reports.format.text import (
    Cells,
    interval_text,
    percent,
    percent_interval,
    present,
    significant,
    stack_lines,
)
from wallclock.reports.stats.intervals import by_seed, expected_time_to_target, time_to_target
from wallclock.reports.views.points import costs_by_seed
from wallclock.reports.views.view import View

CLOCK = "train_eval_s"

VIEW = View(("final_accuracy", CLOCK), tabled=("final_accuracy",))


@VIEW.summary("time_to_target", "a row a recipe, data set, target and machine: accuracy, p, hits, three clocks, energy")
def leaderboard(samples: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of `reports.time_to_target`, each target's fastest first, with what else a record is told by.

    Returns:
        Besides those columns: `process_s`, the median of cold starts; `energy_j`, the median of seeds, of the GPU, with
        compilation and looks on the way; `last_point_s`, the median time from one point of accuracy below the target to
        the target; `date`, of the first run; `run_ids`.
    """
    scores, rows = time_to_target(samples), []
    for row in scores.to_dict("records"):
        own = samples[samples["run_id"].isin(row["run_ids"]) & (samples["case"] == row["case"])]
        for name in ("process_s", "energy_j"):
            values = own.loc[own["metric"] == name, "value"].dropna()
            row[name] = float(values.median()) if len(values) else math.nan
        costs = [points.get(round(100 * row["target"], 6), math.nan) for points in costs_by_seed(own, row["target"])]
        known = [cost for cost in costs if math.isfinite(cost)]
        row["last_point_s"] = float(np.median(known)) if known else math.nan
        row["date"] = min(own["started_utc"])[:10]
        rows.append({str(name): value for name, value in row.items()})
    order = ["dataset", "target", CLOCK]
    found = pd.DataFrame(rows, columns=None if rows else [*scores.columns])
    return found.sort_values([name for name in order if name in found], kind="stable", ignore_index=True)


@VIEW.table("leaders", heading="Leaderboard")
def leaderboard_rows(time_to_target: pd.DataFrame) -> Cells:
    """Each target's fastest first.

    Times of different hardware do not compare: a ratio counts where both ran in turns on one device. train_eval runs
    from whitening through the final evaluation and is the expected time when a miss is followed by another run;
    resident begins with raw images on the device, process with the process (one cold start). Energy is the GPU's, of a
    whole seed with compilation and looks on the way. The last point is the time from one percent below the target to
    the target.
    """
    distinguished = distinctions(time_to_target.loc[:, :"target"], [*NAMES, "target"]) if len(time_to_target) else []
    for row, told in zip(time_to_target.to_dict("records"), distinguished, strict=True):
        names, p = [row["case"], row.get("dataset"), *told], significant(row["p_value"], 2)
        mean, tested = f"{100 * row['mean_accuracy']:.2f}%", f"p = {p}" if row["n"] > 1 else ""
        share, interval = f"{row['hits']} of {row['n']}", percent_interval(row["hit_low"], row["hit_high"], 0)
        yield {
            "case": stack_lines(*(str(name) for name in names if present(name))),
            "target": percent(row["target"]),
            "mean accuracy": stack_lines(mean, f"n = {row['n']}", tested),
            "P(reach)": stack_lines(share, interval),
            "train_eval s": stack_lines(_seconds(row[CLOCK]), interval_text(row[f"{CLOCK}_low"], row[f"{CLOCK}_high"])),
            "resident s": _seconds(row.get("resident_s", math.nan)),
            "process s": _seconds(row["process_s"]),
            "energy J": _known(row["energy_j"]),
            "s for the last point": _known(row["last_point_s"]),
            "hardware": str(row.get("gpu_name") if present(row.get("gpu_name")) else row.get("cpu", "")),
            "date": row["date"],
            "record": stack_lines(*row["run_ids"]),
        }


def _seconds(value: float) -> str:
    return "unknown" if math.isinf(value) else _known(value)


def _known(value: float) -> str:
    return significant(value) if math.isfinite(value) else "not measured"


@VIEW.table("accuracy", title="Time to accuracy")
def accuracy_rows(time_to_target: pd.DataFrame) -> Cells:
    """Yields the rows of the time-to-accuracy table; a cell may have several lines."""
    distinguished = distinctions(time_to_target.loc[:, :"target"], [*NAMES, "target"])
    for row, told in zip(time_to_target.to_dict("records"), distinguished, strict=True):
        time = row.get(CLOCK, math.inf)
        interval = interval_text(row.get(f"{CLOCK}_low"), row.get(f"{CLOCK}_high"), " s")
        names = [row["case"] or row["benchmark"], *(row.get(k) for k in NAMES[1:])]
        accuracy = percent_interval(row["accuracy_low"], row["accuracy_high"])
        diverged = f"{row['diverged']} diverged" if row["diverged"] else ""
        repeats = f"{row['repeats']} repeated" if row["repeats"] else ""
        yield {
            "case": stack_lines(*(str(name) for name in names if present(name)), *told),
            "target": percent(row["target"]),
            "reached": stack_lines(f"{row['hits']} of {row['n']}", diverged, repeats),
            "mean accuracy": stack_lines(f"{100 * row['mean_accuracy']:.2f}%", accuracy),
            "p": significant(row["p_value"], 2),
            "time to target": stack_lines(f"{significant(time)} s" if time < math.inf else "unknown", interval),
        }


@VIEW.figure("target", "Time to target")
def time_to_target_dots(samples: pd.DataFrame) -> Figure | None:
    """A dot is a seed; a cross is one that missed: its time is only a lower bound, and it counts.

    The diamond is the expected time when a miss is followed by another run (all time spent over hits), with its 95%
    bootstrap interval.
    """
    times = samples[(samples["metric"] == CLOCK) & samples["target"].notna()]
    if times.empty:
        return None
    traces, labels = list[Figure](), list[str]()
    for position, (label, group) in enumerate(by_label(times, ["target"])):
        labels.append(escape(label))
        colour, hit = nth_colour(position), group["reached"].fillna(False).to_numpy(dtype=bool)
        marks = (hit, "circle", 0, "reached after"), (~hit, "x-thin", 2.5, "missed: at least")
        for these, symbol, width, what in marks:
            if these.any():
                marker = {"symbol": symbol, "size": 10, "color": colour, "opacity": 0.75}
                traces.append(
                    scatter(
                        json_numbers(group[these]["value"]),
                        [position] * int(these.sum()),
                        text=[f"seed {seed}" for seed in group[these]["seed"]],
                        marker=marker | {"line": {"color": colour, "width": width}},
                        hovertemplate=f"%{{text}}, {what} %{{x:.4g}} s<extra></extra>",
                    )
                )
        if not hit.any():
            continue
        seeds = by_seed(group)
        mean = expected_time_to_target(seeds["value"], seeds["reached"])
        high, low = mean.high - mean.value, mean.value - mean.low
        traces.append(
            scatter(
                json_numbers([mean.value]),
                [position + 0.3],
                meta="ink",
                marker={"symbol": "diamond", "size": 9, "line": {"width": 0}},
                error_x=errors([high], [low], thickness=1.5, width=5)
                if max(high, low) < math.inf
                else {"visible": False},
                hovertemplate=f"expected {mean.value:.4g} s [{mean.low:.4g}, {mean.high:.4g}]<extra></extra>",
            )
        )
    y = {"tickvals": [*range(len(labels))], "ticktext": labels, "range": [len(labels) - 0.4, -0.5], "showgrid": False}
    return figure(
        traces,
        "seconds to target (train_eval clock)",
        "",
        showlegend=False,
        height=120 + 64 * len(labels),
        xaxis={"rangemode": "tozero"},
        yaxis={**y, "ticks": ""},
        margin={"l": 8},
    )
