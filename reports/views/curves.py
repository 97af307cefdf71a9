"""Curves over a training: accuracy, training loss, and the losses of generative networks."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from wallclock.reports.format.labels import by_label
from wallclock.reports.format.plotly import Figure, escape, figure, json_number, json_numbers, nth_colour, scatter
from wallclock.reports.views.view import View

LOOK = ["run_id", "case", "variant", "arm", "process", "seed", "epoch", "step"]  # columns that identify an evaluation
Styles = Mapping[str, tuple[str, str]]  # by metric: the name of its line, and its dashing

VIEW = View(("accuracy", "train_loss"), curves=("accuracy", "elapsed_train_eval_s", "train_loss"))


@VIEW.figure("accuracy", "Accuracy over time")
def accuracy_over_time(samples: pd.DataFrame) -> Figure | None:
    """One line a seed, at each evaluation; shaded is what lies between the lowest and the highest of three or more.

    The clock stands still during all evaluations but the last.
    """
    accuracy = _looks(samples[samples["phase"] == "steady"], "accuracy")
    if accuracy.empty:
        return None
    clock = _looks(samples, "elapsed_train_eval_s")[[*LOOK, "value"]].rename(columns={"value": "elapsed_s"})
    traces, groups = list[Figure](), list(by_label(accuracy.merge(clock, on=LOOK, how="left")))
    for position, (label, group) in enumerate(groups):
        label = escape(label)
        traces += _band(group, position, label)
        for line, shared in _seed_lines(group, position, label, "epoch"):
            epoch = json_numbers(line["epoch"])
            time = json_numbers(line["elapsed_s"]) if line["elapsed_s"].notna().all() else epoch
            traces.append(
                scatter(time, json_numbers(100 * line["value"]), "lines+markers", **shared)
                | {"meta": {"time": time, "epoch": epoch}, "marker": {"size": 5}, "opacity": 0.85}
                | {"line": {"color": nth_colour(position), "width": 1.75}}
                | {"hovertemplate": f"seed {line['seed'].iloc[0]}: %{{y:.2f}} %<extra>{label}</extra>"}
            )
    shapes, annotations = _target_lines(samples)
    changes = {"showlegend": len(groups) > 1, "shapes": shapes, "annotations": annotations}
    return figure(traces, "seconds of training (train_eval clock)", "accuracy, %", **changes)


def _seed_lines(group: pd.DataFrame, position: int, label: str, over: str) -> Iterator[tuple[pd.DataFrame, Figure]]:
    """Yields the ordered samples of each seed, and the settings that a case's traces share: a single legend entry."""
    seeds = group.groupby(["run_id", "seed"], dropna=False, sort=False, observed=True)
    for number, (_, line) in enumerate(seeds):
        yield line.sort_values(over), {"name": label, "legendgroup": label, "showlegend": number == 0}


def _band(looks: pd.DataFrame, position: int, label: str) -> list[Figure]:
    """Returns the range of three or more seeds at moments with evaluations of all before and after; over time only."""
    lines = [line.sort_values("elapsed_s") for _, line in looks.groupby(["run_id", "seed"], observed=True)]
    if len(lines) < 3 or looks["elapsed_s"].isna().any():
        return []
    times = [line["elapsed_s"].to_numpy(dtype="float64") for line in lines]
    begin, end = max(time[0] for time in times), min(time[-1] for time in times)
    if begin >= end:
        return []
    moments = np.linspace(begin, end, 50)
    accuracies = [
        np.interp(moments, time, 100 * line["value"].to_numpy(dtype="float64"))
        for time, line in zip(times, lines, strict=True)
    ]
    shared = {"legendgroup": label, "showlegend": False, "hoverinfo": "skip", "meta": {"epoch": None}, "opacity": 0.3}
    shared |= {"line": {"width": 0, "color": nth_colour(position)}}
    edges = ((np.min(accuracies, 0), "none"), (np.max(accuracies, 0), "tonexty"))
    return [scatter(json_numbers(moments), json_numbers(edge), "lines", **shared, fill=fill) for edge, fill in edges]


def _target_lines(frame: pd.DataFrame) -> tuple[list[Figure], list[Figure]]:
    """Returns a dashed line at each target of the frame, and the text at its end."""
    targets = sorted(map(float, frame.loc[frame["metric"] == "final_accuracy", "target"].dropna().unique()))
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "line": {"dash": "dash", "width": 1.25}}
    text = {"xref": "paper", "x": 1, "showarrow": False, "xanchor": "right"}
    return [line | {"y0": 100 * target, "y1": 100 * target} for target in targets], [
        text
        | {"y": 100 * target, "text": f"target {100 * target:g}%"}
        | {"yanchor": "bottom" if target == targets[-1] else "top"}  # 90% and 94% lie too close for the same side
        for target in targets
    ]


@VIEW.figure("loss", "Training loss")
def training_loss(samples: pd.DataFrame, most_points: int = 300) -> Figure | None:
    """One line a seed; long lines show means of stretches."""
    losses = _looks(samples, "train_loss")
    if losses.empty:
        return None
    traces, groups = list[Figure](), list(by_label(losses))
    for position, (label, group) in enumerate(groups):
        label = escape(label)
        for line, shared in _seed_lines(group, position, label, "step"):
            stretches = np.array_split(np.arange(len(line)), min(most_points, len(line)))
            value, step = (line[name].astype("float64").to_numpy() for name in ("value", "step"))
            steps = [json_number(step[stretch[-1]]) for stretch in stretches]
            means = [json_number(value[stretch].mean()) for stretch in stretches]
            hover = f"seed {line['seed'].iloc[0]}, step %{{x}}: %{{y:.3f}}<extra>{label}</extra>"
            colour = {"color": nth_colour(position), "width": 1.25}
            traces.append(scatter(steps, means, "lines", **shared, line=colour, opacity=0.75, hovertemplate=hover))
    return figure(traces, "optimiser step", "training loss, nats", showlegend=len(groups) > 1)


def loss_curves(frame: pd.DataFrame, benchmark: str, styles: Styles, y_title: str, x_title: str) -> Figure | None:
    """Returns curves of metrics of a generative network's benchmark over its steps; None without such samples."""
    traces: list[Figure] = []
    own = frame[frame["benchmark"] == benchmark]
    for metric, (name, dash) in styles.items() if len(own) else ():
        for label, group in by_label(_looks(own, metric)):
            line = group[group["value"].notna()].sort_values("step")
            traces.append(
                scatter(
                    json_numbers(line["step"].astype("float64")),
                    json_numbers(line["value"]),
                    "lines+markers" if metric.startswith(("em", "cycle_")) else "lines",
                    name=f"{name} · {label}",
                    line={"color": nth_colour(len(traces)), "width": 1.5, "dash": dash},
                    marker={"size": 5},
                    hovertemplate=f"step %{{x}}: %{{y:.4g}}<extra>{name}</extra>",
                )
            )
    return figure(traces, x_title, y_title) if traces else None


def _looks(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Returns one metric of each evaluation; for a seed that a resumed run repeated, the last attempt's."""
    keys = [*LOOK, *(c for c in ("domain",) if c in frame)]  # a CycleGAN is evaluated on both domains
    return frame[frame["metric"] == metric].drop_duplicates(keys, keep="last")
