"""Figures as plain Plotly dictionaries, `{"data": [...], "layout": {...}}`; the page adds its own colours.

Plotly itself is not imported: its import takes longer than everything else in a report.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Figure = dict[str, Any]

# Colours that people with any colour vision can tell apart, readable on white and near-black (Okabe and Ito, darkened).
COLOURS = ("#2f7fd1", "#d9822b", "#159a76", "#c2548f", "#8467d7", "#a9912a")


def figure(traces: Sequence[Figure], x_title: str, y_title: str, **changes: Any) -> Figure:
    """Returns a figure of traces with axis titles, in the layout that all figures share.

    `changes` replaces entries of the shared layout; a mapping is merged into the shared entry.
    """
    axis = {"automargin": True, "zeroline": False, "ticks": "outside", "ticklen": 4, "separatethousands": True}
    layout: Figure = {
        "height": 380,
        "margin": {"l": 56, "r": 16, "t": 12, "b": 48},
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": {"title": {"text": x_title}, **axis},
        "yaxis": {"title": {"text": y_title}, **axis},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }
    for name, change in changes.items():
        layout[name] = layout[name] | change if isinstance(change, Mapping) else change
    return {"data": list(traces), "layout": layout}


def scatter(x: Sequence[Any], y: Sequence[Any], mode: str = "markers", **more: Any) -> Figure:
    """Returns a trace of points or lines."""
    return {"type": "scatter", "mode": mode, "x": x, "y": y, **more}


def errors(above: "Iterable[float]", below: "Iterable[float]", **more: Any) -> Figure:
    """Returns error bars of the given lengths above and below each value."""
    return {"type": "data", "array": json_numbers(above), "arrayminus": json_numbers(below), **more}


def bar(name: str, x: Sequence[float | None], y: Sequence[str], colour: str, hover: str, **more: Any) -> Figure:
    """Returns a trace of horizontal bars of lengths `x` at labels `y`; `hover` is the template of the hover text."""
    shared = {"type": "bar", "orientation": "h", "marker": {"color": colour}}
    return {**shared, "name": name, "x": x, "y": y, "hovertemplate": hover, **more}


def stacked_bars(traces: Sequence[Figure], labels: Sequence[str], x_title: str, height: int, **changes: Any) -> Figure:
    """Returns a figure of traces from `bar`, stacked, `height` pixels for each label, the first label on top."""
    order = {"type": "category", "categoryorder": "array", "categoryarray": list(labels), "autorange": "reversed"}
    changes |= {"barmode": "stack", "bargap": 0.35, "height": 140 + height * len(labels)}
    changes |= {"legend": {"traceorder": "normal"}, "yaxis": {**order, "showgrid": False}}
    return figure(traces, x_title, "", **changes)


def ratio_dots(shown: "pd.DataFrame", value: str, names: tuple[str, str], told: str, axis: str) -> Figure:
    """Returns a figure with one line for each row, a dot with its interval, and a vertical line at 1.

    The ratio and its interval are the columns `value`, `<value>_low` and `<value>_high`; the columns `names` label a
    row, and the column `told` is shown at the pointer.
    """
    pairs = zip(*(shown[name] for name in names), strict=True)
    labels = [escape(f"{a} · {b}").replace(", ", ",<br>") for a, b in pairs]
    ends = shown[f"{value}_high"] - shown[value], shown[value] - shown[f"{value}_low"]
    trace = scatter(
        json_numbers(shown[value]),
        labels,
        error_x=errors(*ends, symmetric=False),
        marker={"size": 9, "color": nth_colour(0)},
        text=[escape(str(text)) for text in shown[told]],
        hovertemplate="%{y}: %{x:.4f}, %{text}<extra></extra>",
        showlegend=False,
    )
    one = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": 1, "x1": 1, "line": {"dash": "dash", "width": 1.25}}
    height = 140 + 34 * len(set(labels))
    return figure([trace], axis, "", height=height, yaxis={"autorange": "reversed"}, shapes=[one])


def nth_colour(position: int) -> str:
    """Returns the colour of a position; after the last colour the first follows again."""
    return COLOURS[position % len(COLOURS)]


def json_number(value: float) -> float | None:
    """Returns the value with seven digits, or None for NaN and infinity, which JSON lacks."""
    return float(f"{value:.7g}") if abs(value) < float("inf") else None


def json_numbers(values: "Iterable[float]") -> list[float | None]:
    """Returns the values, each converted by `json_number`."""
    return [json_number(float(value)) for value in values]


def escape(label: str) -> str:
    """Returns a name escaped for Plotly, which interprets some HTML."""
    return label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")
