"""What figures are made of: plain Plotly dictionaries, `{"data": [...], "layout": {...}}`. The page colours them.

Plotly itself is not imported: its import costs more than all else that a report does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Figure = dict[str, Any]

# Told apart by people with any colour vision, and readable on white as well as on near-black (Okabe and Ito, darkened).
COLOURS = ("#2f7fd1", "#d9822b", "#159a76", "#c2548f", "#8467d7", "#a9912a")


def layout_of(x_title: str, y_title: str) -> Figure:
    """Returns the layout that all figures share, with titles of the axes."""
    axis = {"automargin": True, "zeroline": False, "ticks": "outside", "ticklen": 4, "separatethousands": True}
    return {
        "height": 380,
        "margin": {"l": 56, "r": 16, "t": 12, "b": 48},
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": {"title": {"text": x_title}, **axis},
        "yaxis": {"title": {"text": y_title}, **axis},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }


def nth_colour(position: int) -> str:
    """Returns a colour; they repeat after the last."""
    return COLOURS[position % len(COLOURS)]


def json_number(value: float) -> float | None:
    """Returns the value with seven digits, or None for what JSON does not know: NaN and infinity."""
    return float(f"{value:.7g}") if abs(value) < float("inf") else None


def json_numbers(values: "pd.Series") -> list[float | None]:
    """Returns each of the values by `json_number`."""
    return [json_number(v) for v in values.astype("float64")]


def escaped(label: str) -> str:
    """Returns a name such that Plotly, which reads some HTML, shows it as it is."""
    return label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")
