"""Figures of trainings, loaders, comparisons and ablations; see `reports.format.plotly`."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from wallclock.reports.format.plotly import COLOURS, Figure, escaped, json_number, json_numbers, layout_of, nth_colour
from wallclock.reports.format.text import CLOCK, PHASES, by_label, phase_parts
from wallclock.reports.stats.intervals import by_seed, expected_time_to_target
from wallclock.reports.views.loaders import loader_labels, loader_summary

if TYPE_CHECKING:
    import pandas as pd

LOOK = ["run_id", "case", "variant", "arm", "process", "seed", "epoch", "step"]  # tells looks on the way apart

LOSS_CURVES = {
    "em_train": ("distance to training images", "solid"),
    "em_held_out": ("distance to held-out images", "dash"),
    "critic_loss": ("critic loss", "solid"),
    "generator_loss": ("generator loss", "dot"),
    "cycle_error": ("there and back", "solid"),
    "cycle_error_with_noise": ("with noise on the way", "dash"),
    "loss_gan": ("generators, least squares", "solid"),
    "loss_cycle": ("cycle", "dash"),
    "loss_identity": ("identity", "dot"),
    "loss_discriminator_a": ("discriminator of B", "dashdot"),
    "loss_discriminator_b": ("discriminator of A", "longdash"),
}


def accuracy_over_time(frame: "pd.DataFrame") -> Figure | None:
    """Returns accuracy of each seed over the train_eval clock; None without such samples.

    Each trace carries both axes in `meta` ("time", "epoch"), so that the page can switch between them.
    """
    accuracy = _looks(frame[frame["phase"] == "steady"], "accuracy")
    if accuracy.empty:
        return None
    clock = _looks(frame, "elapsed_train_eval_s")[[*LOOK, "value"]].rename(columns={"value": "elapsed_s"})
    joined = accuracy.merge(clock, on=LOOK, how="left")
    traces, groups = list[Figure](), list(_cases(joined))
    for position, (label, group) in enumerate(groups):
        traces += _band(group, position, label)
        for number, (_, line) in enumerate(group.groupby(["run_id", "seed"], dropna=False, sort=False, observed=True)):
            line = line.sort_values("epoch")
            seed = line["seed"].iloc[0]
            has_time = bool(line["elapsed_s"].notna().all())
            time, epoch = json_numbers(line["elapsed_s"]), json_numbers(line["epoch"])
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": label,
                    "legendgroup": label,
                    "showlegend": number == 0,
                    "x": time if has_time else epoch,
                    "y": json_numbers(100 * line["value"]),
                    "meta": {"time": time if has_time else epoch, "epoch": epoch},
                    "line": {"color": nth_colour(position), "width": 1.75},
                    "marker": {"size": 5},
                    "opacity": 0.85,
                    "hovertemplate": f"seed {seed}: %{{y:.2f}} %<extra>{label}</extra>",
                }
            )
    layout = layout_of("seconds of training (train_eval clock)", "accuracy, %")
    layout["showlegend"] = len(groups) > 1
    layout["shapes"], layout["annotations"] = _target_lines(frame)
    return {"data": traces, "layout": layout}


def _band(looks: "pd.DataFrame", position: int, label: str) -> list[Figure]:
    """Returns the range of three or more seeds at each moment that all have a look before and after; over time only."""
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
    common: Figure = {
        "type": "scatter",
        "mode": "lines",
        "legendgroup": label,
        "showlegend": False,
        "hoverinfo": "skip",
    }
    common |= {"x": [json_number(moment) for moment in moments], "meta": {"epoch": None}}
    common |= {"line": {"width": 0, "color": nth_colour(position)}, "opacity": 0.3}
    return [
        common | {"y": [json_number(value) for value in edge], "fill": fill}
        for edge, fill in ((np.min(accuracies, 0), "none"), (np.max(accuracies, 0), "tonexty"))
    ]


def time_to_target_dots(frame: "pd.DataFrame") -> Figure | None:
    """Returns each seed's time as a dot, a miss as an open mark, and the expected time with its interval; or None."""
    times = frame[(frame["metric"] == CLOCK) & frame["target"].notna()]
    if times.empty:
        return None
    traces: list[Figure] = []
    labels = []
    for position, (label, group) in enumerate(_cases(times, ["target"])):
        labels.append(label)
        hit = group["reached"].fillna(False).to_numpy(dtype=bool)
        for these, symbol, what in ((hit, "circle", "reached after"), (~hit, "x-thin", "missed: at least")):
            if these.any():
                dots = group[these]
                marker = {"symbol": symbol, "size": 10, "color": nth_colour(position), "opacity": 0.75}
                traces.append(
                    {
                        "type": "scatter",
                        "mode": "markers",
                        "x": json_numbers(dots["value"]),
                        "y": [position] * len(dots),
                        "text": [f"seed {seed}" for seed in dots["seed"]],
                        "marker": marker
                        | {"line": {"color": nth_colour(position), "width": 0 if symbol == "circle" else 2.5}},
                        "hovertemplate": f"%{{text}}, {what} %{{x:.4g}} s<extra></extra>",
                    }
                )
        seeds = by_seed(group)
        expected = expected_time_to_target(seeds["value"], seeds["reached"])
        if hit.any():
            high, low = expected.high - expected.value, expected.value - expected.low
            bars = {
                "type": "data",
                "array": [json_number(high)],
                "arrayminus": [json_number(low)],
                "thickness": 1.5,
                "width": 5,
            }
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [json_number(expected.value)],
                    "y": [position + 0.3],
                    "meta": "ink",
                    "marker": {"symbol": "diamond", "size": 9, "line": {"width": 0}},
                    "error_x": bars if high < float("inf") and low < float("inf") else {"visible": False},
                    "hovertemplate": f"expected {expected.value:.4g} s [{expected.low:.4g}, {expected.high:.4g}]"
                    "<extra></extra>",
                }
            )
    layout = layout_of("seconds to target (train_eval clock)", "")
    layout |= {"showlegend": False, "height": 120 + 64 * len(labels)}
    layout["xaxis"]["rangemode"] = "tozero"
    layout["yaxis"] |= {"tickvals": [*range(len(labels))], "ticktext": labels, "range": [len(labels) - 0.4, -0.5]}
    layout["yaxis"] |= {"showgrid": False, "ticks": ""}
    layout["margin"]["l"] = 8
    return {"data": traces, "layout": layout}


def phase_breakdown(frame: "pd.DataFrame") -> Figure | None:
    """Returns where the time of a step and of an evaluation goes, as stacked bars; None without a phase pass."""
    parts: dict[str, dict[str, float]] = {}
    for label, means in phase_parts(frame).items():
        parts[escaped(label)] = {name: means[name] for name in PHASES[:-1] if name in means}
        if "evaluation" in means:
            parts[f"{escaped(label)} · evaluation"] = {"evaluation": means["evaluation"]}
    if not parts:
        return None
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "x": [json_number(bar[name]) for bar in parts.values() if name in bar],
            "y": [label for label, bar in parts.items() if name in bar],
            "marker": {"color": COLOURS[position]},
            "hovertemplate": f"{name}: %{{x:.3g}} ms<extra></extra>",
        }
        for position, name in enumerate(PHASES)
        if any(name in bar for bar in parts.values())
    ]
    layout = layout_of("milliseconds for 1,000 images", "")
    layout |= {"barmode": "stack", "bargap": 0.35, "height": 140 + 42 * len(parts)}
    layout["legend"]["traceorder"] = "normal"
    layout["yaxis"] |= {"type": "category", "categoryorder": "array", "categoryarray": list(parts)}
    layout["yaxis"] |= {"autorange": "reversed", "showgrid": False}
    return {"data": traces, "layout": layout}


def loader_rates(frame: "pd.DataFrame") -> Figure | None:
    """Returns images/s of each pipeline alone as bars; None without such samples."""
    summary = loader_summary(frame)
    alone = summary[summary["regime"] == "alone"] if len(summary) else summary
    if alone.empty:
        return None
    return _loader_bars(
        alone,
        [("", alone["value"], COLOURS[0])],
        "images a second",
        {
            "type": "data",
            "array": json_numbers(alone["high"] - alone["value"]),
            "arrayminus": json_numbers(alone["value"] - alone["low"]),
            "thickness": 1.5,
        },
    )


def loader_stalls(frame: "pd.DataFrame") -> Figure | None:
    """Returns a training step's time by pipeline, what waits for the batch told apart; None without such samples."""
    summary = loader_summary(frame)
    training = summary[summary["regime"] == "training"] if len(summary) else summary
    if training.empty:
        return None
    stalled = training["value"] * training["stall"].fillna(0.0)
    parts = [("computing", training["value"] - stalled, COLOURS[0]), ("waiting for the batch", stalled, COLOURS[1])]
    return _loader_bars(training, parts, "milliseconds a step", None)


def _loader_bars(
    summary: "pd.DataFrame", parts: "list[tuple[str, pd.Series, str]]", title: str, error: Figure | None
) -> Figure:
    labels = [escaped(label) for label in loader_labels(summary)]
    traces: list[Figure] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "x": json_numbers(values),
            "y": labels,
            "marker": {"color": colour},
            "hovertemplate": f"%{{y}}: %{{x:.4g}} {title}<extra>{name}</extra>",
        }
        | ({"error_x": error} if error else {})
        for name, values, colour in parts
    ]
    layout = layout_of(title, "")
    layout |= {"barmode": "stack", "bargap": 0.35, "height": 140 + 30 * len(labels), "showlegend": len(parts) > 1}
    layout["legend"]["traceorder"] = "normal"
    layout["yaxis"] |= {"type": "category", "categoryorder": "array", "categoryarray": labels}
    layout["yaxis"] |= {"autorange": "reversed", "showgrid": False}
    return {"data": traces, "layout": layout}


def training_loss(frame: "pd.DataFrame", most_points: int = 300) -> Figure | None:
    """Returns the training loss of each seed over steps; None without such samples.

    Args:
        frame: from `reports.load`.
        most_points: of a line; longer ones show the mean of each stretch of steps.
    """
    import numpy as np

    losses = _looks(frame, "train_loss")
    if losses.empty:
        return None
    traces, groups = [], list(_cases(losses))
    for position, (label, group) in enumerate(groups):
        for number, (_, line) in enumerate(group.groupby(["run_id", "seed"], dropna=False, sort=False, observed=True)):
            line = line.sort_values("step")
            parts = np.array_split(np.arange(len(line)), min(most_points, len(line)))
            value = line["value"].to_numpy(dtype=float)
            step = line["step"].astype("float64").to_numpy()
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": label,
                    "legendgroup": label,
                    "showlegend": number == 0,
                    "x": [json_number(step[part[-1]]) for part in parts],
                    "y": [json_number(value[part].mean()) for part in parts],
                    "line": {"color": nth_colour(position), "width": 1.25},
                    "opacity": 0.75,
                    "hovertemplate": f"seed {line['seed'].iloc[0]}, step %{{x}}: %{{y:.3f}}<extra>{label}</extra>",
                }
            )
    layout = layout_of("optimiser step", "training loss, nats")
    layout |= {"showlegend": len(groups) > 1}
    return {"data": traces, "layout": layout}


def ratios(summary: "pd.DataFrame") -> Figure | None:
    """Returns head / base of each metric of each comparison, with its interval and tolerance; None without any.

    Args:
        summary: from `reports.views.comparison.comparison_summary`.
    """
    shown = summary[summary["ratio_low"].notna() & (summary["ratio_low"] > 0) & (summary["ratio_high"] < 100)]
    if shown.empty:
        return None
    figure = _ratio_dots(shown, "ratio", ("benchmark", "metric"), "verdict", "head / base; the band is the tolerance")
    widest = max(shown["tolerance"])
    figure["layout"]["shapes"].insert(
        0,
        {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "x0": 1 / (1 + widest), "x1": 1 + widest}
        | {"line": {"width": 0}, "fillcolor": nth_colour(0), "opacity": 0.12, "layer": "below"},
    )
    return figure


def variant_rates(summary: "pd.DataFrame") -> Figure | None:
    """Returns the rate of each variant over the first's, with its interval; None where none was compared.

    Args:
        summary: from `reports.views.ablation.ablation_summary`.
    """
    if "over_baseline_low" not in summary:
        return None
    shown = summary[summary["over_baseline_low"] > 0]  # the first has no interval against itself
    if shown.empty:
        return None
    return _ratio_dots(shown, "over_baseline", ("case", "variant"), "run_id", "x the first")


def _ratio_dots(shown: "pd.DataFrame", value: str, names: tuple[str, str], told: str, axis: str) -> Figure:
    """A dot a row with the interval `<value>_low` to `<value>_high`, under both names, and a line at 1."""
    pairs = zip(*(shown[name] for name in names), strict=True)
    labels = [escaped(f"{a} · {b}").replace(", ", ",<br>") for a, b in pairs]
    trace: Figure = {
        "type": "scatter",
        "mode": "markers",
        "x": json_numbers(shown[value]),
        "y": labels,
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": json_numbers(shown[f"{value}_high"] - shown[value]),
            "arrayminus": json_numbers(shown[value] - shown[f"{value}_low"]),
        },
        "marker": {"size": 9, "color": nth_colour(0)},
        "text": [escaped(str(text)) for text in shown[told]],
        "hovertemplate": "%{y}: %{x:.4f}, %{text}<extra></extra>",
        "showlegend": False,
    }
    layout = layout_of(axis, "")
    layout["height"] = 140 + 34 * len(set(labels))
    layout["yaxis"]["autorange"] = "reversed"  # from above, as in the table
    layout["shapes"] = [
        {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": 1, "x1": 1, "line": {"dash": "dash", "width": 1.25}}
    ]
    return {"data": [trace], "layout": layout}


def waterfall(summary: "pd.DataFrame") -> Figure | None:
    """Returns how each lever takes the plain loop's rate to that of all levers; None where none was left out.

    On a logarithmic scale, on which what the levers give adds up. What leaving one out does not explain, because levers
    help or hinder each other, is a step of its own.

    Args:
        summary: from `reports.views.ablation.ablation_summary`.
    """
    import math

    from wallclock.reports.views.ablation import ALL, BASELINE

    if "lost" not in summary:
        return None
    traces: list[Figure] = []
    for position, ((_, case), run) in enumerate(summary.groupby(["run_id", "case"], sort=False)):
        rates = run.set_index("variant")["it_per_s"]
        levers = run[run["lost"].notna()].sort_values("lost", ascending=False)
        if levers.empty or not {BASELINE, ALL} <= set(rates.index):
            continue
        steps = [
            (str(v).removeprefix("without "), math.log2(g))
            for v, g in zip(levers["variant"], levers["lost"], strict=True)
        ]
        rest = math.log2(rates[ALL] / rates[BASELINE]) - sum(gain for _, gain in steps)
        steps = [*steps, ("together", rest)]
        told = levers.get("predicted", levers["lost"] * math.nan)
        predicted = [f"<br>Amdahl x{ratio:.2f}" if math.isfinite(ratio) else "" for ratio in told] + [""]
        traces.append(
            {
                "type": "waterfall",
                "name": escaped(str(case)),
                "measure": ["absolute", *["relative"] * len(steps), "total"],
                "x": [escaped(name) for name in ("plain loop", *(name for name, _ in steps), ALL)],
                "y": [0, *(json_number(gain) for _, gain in steps), 0],
                "text": [
                    "1",
                    *(f"x{2**gain:.2f}{more}" for (_, gain), more in zip(steps, predicted, strict=True)),
                    f"x{rates[ALL] / rates[BASELINE]:.2f}",
                ],
                "textposition": "outside",
                "increasing": {"marker": {"color": COLOURS[2]}},
                "decreasing": {"marker": {"color": COLOURS[1]}},
                "totals": {"marker": {"color": nth_colour(position)}},
                "hovertemplate": f"{escaped(str(case))}, %{{x}}: %{{text}}<extra></extra>",
            }
        )
    return {"data": traces, "layout": layout_of("", "speed-up, powers of two")} if traces else None


def trends(samples: "pd.DataFrame", runs: "pd.DataFrame") -> Figure | None:
    """Returns each series of at least six runs relative to its first, changes marked; None without such a series.

    Args:
        samples: from `reports.load`.
        runs: from `reports.load_runs`.
    """
    from wallclock.reports.views.history import SHORTEST, changes, series

    traces: list[Figure] = []
    for key, points in series(samples, runs):
        values = points["value"].to_numpy(dtype="float64")
        if len(values) < 2 * SHORTEST or not (values > 0).all():
            continue
        label = " · ".join(str(key[k]) for k in ("benchmark", "case", "variant", "metric") if key.get(k))
        commits = [escaped(str(sha)[:10]) for sha in points["git_sha"]]
        colour = nth_colour(len(traces) // 2)
        common = {"type": "scatter", "name": escaped(label), "legendgroup": label}
        line: Figure = {"mode": "lines+markers", "line": {"color": colour, "width": 1.5}, "marker": {"size": 5}}
        line |= {"x": [str(at) for at in points["started_utc"]], "y": [json_number(v / values[0]) for v in values]}
        line |= {
            "text": commits,
            "hovertemplate": "%{text}: %{y:.3f} of the first<extra>" + escaped(label) + "</extra>",
        }
        at = changes(values)
        marks: Figure = {"mode": "markers", "showlegend": False, "marker": {"size": 12, "symbol": "diamond-open"}}
        marks["marker"]["color"] = colour
        marks |= {"x": [line["x"][i] for i in at], "y": [line["y"][i] for i in at], "text": [commits[i] for i in at]}
        marks["hovertemplate"] = "changed at %{text}<extra>" + escaped(label) + "</extra>"
        traces += [common | line, common | marks]
    return {"data": traces, "layout": layout_of("", "of the first run's")} if traces else None


def loss_curves(
    frame: "pd.DataFrame", benchmark: str, metrics: tuple[str, ...], y_title: str, x_title: str
) -> Figure | None:
    """Returns metrics of a generative network over its steps; None without such samples.

    Args:
        frame: from `reports.load`.
        benchmark: "wgan" or "cyclegan".
        metrics: of `LOSS_CURVES`.
        y_title: what they have in common.
        x_title: what a step is.
    """
    traces: list[Figure] = []
    position, own = 0, frame[frame["benchmark"] == benchmark]
    for metric in metrics if len(own) else ():
        name, dash = LOSS_CURVES[metric]
        for label, group in by_label(_looks(own, metric)):
            line = group[group["value"].notna()].sort_values("step")
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if metric.startswith(("em", "cycle_")) else "lines",
                    "name": f"{name} · {label}",
                    "x": [json_number(step) for step in line["step"].astype("float64")],
                    "y": [json_number(value) for value in line["value"]],
                    "line": {"color": nth_colour(position), "width": 1.5, "dash": dash},
                    "marker": {"size": 5},
                    "hovertemplate": f"step %{{x}}: %{{y:.4g}}<extra>{name}</extra>",
                }
            )
            position += 1
    return {"data": traces, "layout": layout_of(x_title, y_title)} if traces else None


def _looks(frame: "pd.DataFrame", metric: str) -> "pd.DataFrame":
    """One metric of each look; of a seed that a resumed run began anew, the last attempt's."""
    keys = [*LOOK, *(c for c in ("domain",) if c in frame)]  # a CycleGAN looks at both
    return frame[frame["metric"] == metric].drop_duplicates(keys, keep="last")


def _cases(frame: "pd.DataFrame", more: Sequence[str] = ()) -> "Iterator[tuple[str, pd.DataFrame]]":
    return ((escaped(label), group) for label, group in by_label(frame, more))


def _target_lines(frame: "pd.DataFrame") -> tuple[list[Figure], list[Figure]]:
    targets = sorted(map(float, frame.loc[frame["metric"] == "final_accuracy", "target"].dropna().unique()))
    lines = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": 100 * t,
            "y1": 100 * t,
            "line": {"dash": "dash", "width": 1.25},
        }
        for t in targets
    ]
    texts = [
        {"xref": "paper", "x": 1, "y": 100 * t, "text": f"target {100 * t:g}%", "showarrow": False, "xanchor": "right"}
        | {"yanchor": "bottom" if t == targets[-1] else "top"}  # 90% and 94% lie too close for the same side
        for t in targets
    ]
    return lines, texts
