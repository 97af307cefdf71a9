"""Figures of what things cost: kernels against the speed of a copy, operations against seconds, points of accuracy."""

import math
from typing import TYPE_CHECKING

from wallclock.reports.format.plotly import Figure, escaped, json_number, json_numbers, layout_of, nth_colour
from wallclock.reports.views.accuracy import point_costs

if TYPE_CHECKING:
    import pandas as pd


def accuracy_points(frame: "pd.DataFrame") -> Figure | None:
    """Returns the seconds that each point of accuracy took, one line a case; None without two looks of a seed."""
    traces: list[Figure] = []
    for position, (label, points) in enumerate(point_costs(frame).items()):
        median, low, high = zip(*points.values(), strict=True)
        spread = [f"{a:.3g} to {b:.3g}" for a, b in zip(low, high, strict=True)]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": escaped(label),
                "x": list(points),
                "y": list(median),
                "text": spread,
                "line": {"color": nth_colour(position), "width": 1.75, "shape": "hvh"},
                "marker": {"size": 5},
                "hovertemplate": f"to %{{x:.0f}}%: %{{y:.3g}} s (seeds %{{text}})<extra>{escaped(label)}</extra>",
            }
        )
    if not traces:
        return None
    layout = layout_of("accuracy reached, %", "seconds for the point below it")
    layout["showlegend"] = len(traces) > 1
    layout["yaxis"]["rangemode"] = "tozero"
    return {"data": traces, "layout": layout}


def speedup_map(kernels: "pd.DataFrame") -> Figure | None:
    """Returns how many times as fast as eager PyTorch each variant is at each case, forward and backward; None without.

    Args:
        kernels: from `reports.views.kernels.kernel_summary`.
    """
    if "x_eager" not in kernels:
        return None
    shown = kernels[(kernels["cache"] == "hot") & (kernels["variant"] != "eager") & kernels["x_eager"].notna()]
    whole = shown[shown["direction"].isin(("both", "forward"))].sort_values("direction", kind="stable")
    whole = whole.drop_duplicates(["case", "dtype", "variant", "gpu_name", "cpu"])  # of both, where there are both
    if whole.empty:
        return None
    whole = whole.assign(label=whole["case"] + " " + whole["dtype"])
    wide = whole.pivot_table(index="label", columns="variant", values="x_eager", observed=True, sort=False)
    wide = wide.iloc[::-1]
    trace: Figure = {
        "type": "heatmap",
        "x": [escaped(str(name)) for name in wide.columns],
        "y": [escaped(str(label)) for label in wide.index],
        "z": [[_log2(value) for value in row] for row in wide.to_numpy()],
        "text": [[f"{value:.2f}" if math.isfinite(value) else "" for value in row] for row in wide.to_numpy()],
        "texttemplate": "%{text}",
        "zmid": 0,
        "colorscale": [[0, "#d9822b"], [0.5, "#e9e9e4"], [1, "#2f7fd1"]],
        "showscale": False,
        "hovertemplate": "%{y}, %{x}: %{text} x eager<extra></extra>",
        "textfont": {"color": "#1b1d21"},
    }
    layout = layout_of("", "")
    layout["height"] = 90 + 26 * len(wide)
    return {"data": [trace], "layout": layout}


def _log2(ratio: float) -> float | None:
    return json_number(math.log2(ratio)) if ratio > 0 and math.isfinite(ratio) else None


def roofline(kernels: "pd.DataFrame") -> Figure | None:
    """Returns each variant's time over the bytes that it should move, and the line that a copy's speed draws; or None.

    A whisker reaches from there to the bytes that were counted at its operators.

    Args:
        kernels: from `reports.views.kernels.kernel_summary`.
    """
    if "predicted_us" not in kernels:
        return None
    shown = kernels[(kernels["predicted_bytes"] > 0) & kernels["predicted_us"].notna()]
    if shown.empty:
        return None
    traces: list[Figure] = []
    for position, (variant, group) in enumerate(shown.groupby("variant", sort=False, observed=True)):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": escaped(str(variant)),
                "x": json_numbers(group["predicted_bytes"] / 1e6),
                "y": json_numbers(group["latency_us"]),
                "text": [
                    escaped(f"{row['case']} {row['dtype']}, {row['direction']}, {row['cache']} cache: ")
                    + f"{100 * row['share_of_copy']:.0f}% of a copy"
                    for row in group.to_dict("records")
                ],
                "marker": {"color": nth_colour(position), "size": 7, "opacity": 0.8},
                "error_x": _whiskers(1e-6 * (group["operand_bytes"] - group["predicted_bytes"]).fillna(0)),
                "customdata": [f"{size / 1e6:.3g} MB" if size == size else "not" for size in group["operand_bytes"]],
                "hovertemplate": "%{text}, %{x:.3g} MB predicted, %{customdata} counted, %{y:.4g} us"
                "<extra>%{fullData.name}</extra>",
            }
        )
    for _, group in shown.groupby(["gpu_name", "cpu", "host"], dropna=False, observed=True):
        us_per_byte = (group["predicted_us"] / group["predicted_bytes"]).median()
        ends = group["predicted_bytes"].min(), group["predicted_bytes"].max()
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"a copy: {1e-3 / us_per_byte:,.0f} GB/s",
                "x": [json_number(end / 1e6) for end in ends],
                "y": [json_number(end * us_per_byte) for end in ends],
                "line": {"dash": "dash", "width": 1.5, "color": "#888f9a"},
                "hoverinfo": "skip",
            }
        )
    layout = layout_of("predicted bytes, MB", "microseconds")
    layout["xaxis"]["type"] = layout["yaxis"]["type"] = "log"
    return {"data": traces, "layout": layout}


def _whiskers(lengths: "pd.Series") -> Figure:
    parts = {"array": lengths.clip(lower=0), "arrayminus": -lengths.clip(upper=0)}
    drawn = {name: json_numbers(part) for name, part in parts.items()}
    return {"type": "data", "symmetric": False, "thickness": 1, "width": 0, **drawn}


def flops_against_seconds(levers: "pd.DataFrame") -> Figure | None:
    """Returns a step's time over its operations for the variants of an ablation; None where they were not counted.

    Args:
        levers: from `reports.views.ablation.ablation_summary`.
    """
    if "step_flop" not in levers:
        return None
    counted = levers[levers["step_flop"].notna()]
    counted = counted[counted.groupby("run_id")["step_flop"].transform("nunique") > 1]
    if counted.empty:
        return None
    traces: list[Figure] = []
    for position, ((_, case), group) in enumerate(counted.groupby(["run_id", "case"], sort=False, observed=True)):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": escaped(str(case)),
                "x": json_numbers(group["step_flop"] / 1e9),
                "y": json_numbers(group["step_s"]),
                "text": [escaped(str(variant)) for variant in group["variant"]],
                "marker": {"color": nth_colour(position), "size": 9},
                "hovertemplate": "%{text}: %{x:.4g} GFLOP, %{y:.4g} s<extra></extra>",
            }
        )
    layout = layout_of("GFLOP a step", "seconds a step")
    layout["showlegend"] = len(traces) > 1
    layout["xaxis"]["rangemode"] = layout["yaxis"]["rangemode"] = "tozero"
    return {"data": traces, "layout": layout}
