"""Figures and tables as text: for the terminal within 80 columns, as Markdown, and as CSV."""

import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from rich.table import Table

Parameters = ParamSpec("Parameters")
Cells = Iterator[dict[str, str]]  # rows, each its cells by column
Rows = tuple[list[str], list[list[str]]]  # header and cells; a cell may have several lines
# Columns of words, which are aligned left.
WORDS = (
    "operator",
    *("case", "variant", "metric", "unit", "error", "kernel", "fastest", "failed", "chosen", "form", "pipeline"),
    *("benchmark", "verdict", "noise"),
    *("machine", "software", "while measured", "runs"),
)


def tabulated(make: Callable[Parameters, Cells]) -> Callable[Parameters, Rows]:
    """Makes header and cells of a function that yields rows of the same columns; without a row there is no header."""

    @functools.wraps(make)
    def table(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Rows:
        rows = list(make(*args, **kwargs))
        return [*rows[0]] if rows else [], [[*row.values()] for row in rows]

    return table


def name_once(rows: Rows) -> list[list[str]]:
    """Returns the cells with repeated names left out: only the first of a case's or stage's rows bears its name."""
    header, cells = rows
    if header[0] not in ("case", "stage"):
        return cells
    names = ["", *(row[0] for row in cells)]
    return [["" if row[0] == above else row[0], *row[1:]] for above, row in zip(names, cells, strict=False)]


def terminal(rows: Rows) -> "Table":
    """Returns the table for `rich.print`; names are shown literally, never read as markup."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    class Cell(Text):
        def wrap(self, console: Any, width: int, **options: Any) -> Any:
            return Text(break_words(self.plain, width)).wrap(console, width, **options)

    header, cells = rows[0], name_once(rows)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in header:
        numeric = name not in WORDS
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=name in ("n", "median"))
    for row in cells:
        table.add_row(*map(Cell, row))
    return table


def break_words(text: str, width: int) -> str:
    """Returns text with line breaks in words longer than `width`, after a _, + or = if possible."""

    def lines(word: str) -> str:
        if len(word) <= width:
            return word
        at = 1 + max(word.rfind(mark, 0, width) for mark in "_+=") or width
        return f"{word[:at]}\n{lines(word[at:])}"

    return re.sub(r"\S+", lambda word: lines(word[0]), text)


def markdown(rows: Rows) -> str:
    """Returns the table as GitHub Markdown, with names escaped."""
    import html

    def line(cells: list[str]) -> str:
        escaped = (html.escape(c, quote=False).replace("\\", "\\\\").replace("|", "\\|") for c in cells)
        return "| " + " | ".join(c.replace("\n", "<br>") for c in escaped) + " |"

    header, cells = rows[0], name_once(rows)
    return "\n".join([line(header), "|" + " --- |" * len(header), *map(line, cells)]) + "\n"


def present(value: Any) -> bool:
    """Returns whether a cell holds a value; pandas has three kinds of missing values."""
    import pandas as pd

    return isinstance(value, dict | list | tuple) or not (pd.isna(value) or value == "")


def plain(value: Any) -> str:
    """Returns a parameter as text, whole numbers without a point: pandas makes some of them floats."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def percent(share: float) -> str:
    """Returns a share in percent, with as many digits as it has."""
    return f"{100 * share:g}%"


def percent_interval(low: float, high: float, digits: int = 2) -> str:
    """Returns an interval of shares in percent; empty if it is unbounded."""
    return "" if math.isinf(low) else f"[{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def significant(value: float, digits: int = 3) -> str:
    """Returns the value with `digits` significant digits, in plain notation where that stays short."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else {math.inf: "∞", -math.inf: "−∞"}.get(value, "unknown")
    if not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def interval_text(low: float | None, high: float | None, unit: str = "") -> str:
    """Returns `[low, high]unit`; empty if there is no interval."""
    if low is None or high is None or math.isnan(low) or math.isnan(high) or math.isinf(low):
        return ""
    return f"[{significant(low, 4)}, {significant(high, 4)}]{unit}"


def stack_lines(*parts: str) -> str:
    """Returns a cell of several lines, leaving out the empty ones."""
    return "\n".join(part for part in parts if part)


def or_nothing(value: float | None, digits: int = 3) -> str:
    """Returns the value with `digits` significant digits; empty if there is no value."""
    return "" if value is None or math.isnan(value) else significant(value, digits)


def rounded_percent(share: float | None, style: str = ".0f") -> str:
    """Returns a share in percent by a format such as "+.1f"; empty if there is no share."""
    return "" if share is None or math.isnan(share) else f"{100 * share:{style}}%"


def arrow(better: str) -> str:
    """Returns the direction in which a metric improves, as an arrow."""
    return {"lower": "↓", "higher": "↑"}.get(better, "")
