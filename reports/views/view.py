"""What a view declares: the summary, tables and figures of one benchmark or subject, and what they are made from."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from wallclock.reports.format.plotly import Figure
from wallclock.reports.format.text import Rows

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Summary:
    """A frame that `--json` prints, and that tables and figures are made from.

    Attributes:
        name: its key in the JSON document.
        holds: what a row of it is; stands in docs/schema.md.
        make: makes it from the records.
    """

    name: str
    holds: str
    make: "Callable[[Records], pd.DataFrame]"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table on the terminal, in Markdown and in notebooks, on the page, or in all of them.

    Attributes:
        name: its id on the page; page and terminal order tables by it.
        rows: makes header and cells from the records.
        title: above it on the terminal; without one it is on the page alone.
        heading: above it on the page; without one it is on the terminal alone.
        caption: below it on the page.
        words: leading columns that hold text, flush left.
        dense: many columns of one-line figures; sorted by the number in a cell.
    """

    name: str
    rows: "Callable[[Records], Rows]"
    title: str = ""
    heading: str = ""
    caption: str = ""
    words: int = 1
    dense: bool = False


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure on the page.

    Attributes:
        name: its id; the page orders figures by it.
        title: above it.
        draw: makes it from the records; None where they hold nothing for it.
        caption: below it, or what makes it from the records.
    """

    name: str
    title: str
    draw: "Callable[[Records], Figure | None]"
    caption: "str | Callable[[Records], str]"


@dataclass(frozen=True, kw_only=True)
class View:
    """All that is shown of one benchmark or subject.

    Attributes:
        made_from: benchmarks and metrics; where the records hold none of them, nothing is made. Empty: always made.
        summary: what `--json` prints of it.
        tables: in any order; page and terminal have their own.
        plots: in any order.
        curves: metrics whose samples are points of a curve, of which no median is taken.
        tabled: benchmarks and metrics that its tables show whole, and "Other metrics" leaves out.
    """

    made_from: tuple[str, ...] = ()
    summary: Summary | None = None
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    curves: tuple[str, ...] = ()
    tabled: tuple[str, ...] = ()


class Records:
    """Samples and runs of some paths; each summary of them is made once, when it is first asked for.

    Args:
        samples: from `reports.load`.
        runs: from `reports.load_runs`, of the same paths.
        views: all that there are.
    """

    def __init__(self, samples: "pd.DataFrame", runs: "pd.DataFrame", views: Sequence[View]) -> None:
        self.samples, self.runs, self.views = samples, runs, views
        self._made: dict[Summary, pd.DataFrame] = {}

    def of(self, summary: Summary) -> "pd.DataFrame":
        """Returns a summary of these records."""
        if summary not in self._made:
            self._made[summary] = summary.make(self)
        return self._made[summary]

    @cached_property
    def shown(self) -> list[View]:
        """Views that these records hold something for."""
        names = {*self.samples["benchmark"].unique(), *self.samples["metric"].unique()}
        names |= {request.get("benchmark") for request in self.runs["request"]}  # also of runs without a sample
        return [view for view in self.views if not view.made_from or names & {*view.made_from}]

    @property
    def curves(self) -> list[str]:
        """Metrics that are points of curves."""
        return [metric for view in self.views for metric in view.curves]

    @property
    def tabled(self) -> list[str]:
        """Benchmarks and metrics that have tables or figures of their own."""
        return [name for view in self.views for name in (*view.curves, *view.tabled)]


class Named(Protocol):
    """A part of a view."""

    @property
    def name(self) -> str:
        """Its name."""


def ordered[Part: Named](parts: Iterable[Part], names: Sequence[str]) -> list[Part]:
    """Returns parts in the order of their names; one that is not among them stands before the last."""
    place = {name: number for number, name in enumerate(names)}
    return sorted(parts, key=lambda part: place.get(part.name, len(names) - 1.5))
