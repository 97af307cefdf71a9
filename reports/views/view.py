"""What a view declares: summaries, tables and figures of one benchmark or subject, and what they are made from.

A function that makes one of them names in its parameters the frames that it takes: `samples`, `runs`, or a summary by
its name. `Records` passes them, and makes each summary once.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pandas as pd

Make = TypeVar("Make", bound=Callable[..., Any])


@dataclass(frozen=True)
class Table:
    """A table on the terminal, in Markdown and in notebooks, on the page, or in all of them.

    Attributes:
        name: its id on the page; page and terminal order tables by it.
        make: returns `reports.format.text.Rows`: header, and cells, none where there is nothing to show.
        title: stands above it on the terminal; without one it is on the page alone.
        heading: stands above it on the page; without one it is on the terminal alone.
        caption: stands below it on the page.
        words: number of leading columns that hold text, set flush left.
        dense: whether it has many columns of one-line figures, and is sorted by them.
    """

    name: str
    make: Callable[..., Any]
    title: str
    heading: str
    caption: str
    words: int
    dense: bool


@dataclass(frozen=True)
class Figure:
    """A figure on the page.

    Attributes:
        name: its id; the page orders figures by it.
        make: returns `reports.format.plotly.Figure`, or None where there is nothing to show; a key "caption" of it
            stands in for `caption`.
        title: stands above it.
        caption: stands below it.
    """

    name: str
    make: Callable[..., Any]
    title: str
    caption: str


@dataclass(frozen=True)
class Summary:
    """A frame that `--json` prints, and that tables and figures are made from.

    Attributes:
        name: its key in the JSON document.
        make: returns the frame.
        holds: says what a row of it is, in docs/schema.md.
    """

    name: str
    make: Callable[..., Any]
    holds: str


class View:
    """All that is shown of one benchmark or subject; its methods are decorators that add to it.

    Args:
        made_from: benchmarks and metrics; where the records hold none of them, nothing is made. Empty: always made.
        curves: metrics whose samples are points of a curve, of which no median is taken.
        tabled: benchmarks and metrics that its tables show whole, and "Other metrics" leaves out.
    """

    def __init__(
        self, made_from: Sequence[str] = (), *, curves: Sequence[str] = (), tabled: Sequence[str] = ()
    ) -> None:
        self.made_from, self.curves, self.tabled = {*made_from}, tuple(curves), tuple(tabled)
        self.summaries: list[Summary] = []
        self.tables: list[Table] = []
        self.figures: list[Figure] = []

    def summary(self, name: str, holds: str) -> Callable[[Make], Make]:
        """Adds the summary that a function makes; see `Summary`."""

        def add(make: Make) -> Make:
            self.summaries.append(Summary(name, make, holds))
            return make

        return add

    def table(
        self, name: str, *, title: str = "", heading: str = "", words: int = 1, dense: bool = False
    ) -> Callable[[Make], Make]:
        """Adds the table that a function makes, whose docstring is the caption; see `Table`."""

        def add(make: Make) -> Make:
            self.tables.append(Table(name, make, title, heading, _caption(make), words, dense))
            return make

        return add

    def figure(self, name: str, title: str) -> Callable[[Make], Make]:
        """Adds the figure that a function makes, whose docstring is the caption; see `Figure`."""

        def add(make: Make) -> Make:
            self.figures.append(Figure(name, make, title, _caption(make)))
            return make

        return add


def _caption(make: Callable[..., Any]) -> str:
    return " ".join((make.__doc__ or "").split())


class Records:
    """Samples and runs of some paths; each summary of them is made once, when it is first asked for.

    Args:
        samples: from `reports.load`.
        runs: from `reports.load_runs`, of the same paths.
        views: all that there are.
    """

    def __init__(self, samples: "pd.DataFrame", runs: "pd.DataFrame", views: Sequence[View]) -> None:
        self.samples, self.runs, self.views = samples, runs, views
        self._known: dict[str, Any] = {"samples": samples, "runs": runs}
        self._known["curves"] = [metric for view in views for metric in view.curves]
        self._known["tabled"] = [name for view in views for name in (*view.curves, *view.tabled)]
        self._summaries = {summary.name: summary for view in views for summary in view.summaries}

    def make(self, make: Callable[..., Any]) -> Any:
        """Returns what a function makes of the records that its parameters name.

        They may also name `curves` and `tabled`, those of all views.
        """
        return make(*(self.frame(name) for name in inspect.signature(make).parameters if name in self))

    def __contains__(self, name: str) -> bool:
        return name in self._known or name in self._summaries

    def frame(self, name: str) -> Any:
        """Returns the samples, the runs, or a summary by its name."""
        if name not in self._known:
            self._known[name] = self.make(self._summaries[name].make)
        return self._known[name]

    def summaries(self) -> "dict[str, pd.DataFrame]":
        """Returns every summary by its name."""
        return {name: self.frame(name) for name in self._summaries}

    @cached_property
    def shown(self) -> list[View]:
        """Views that these records hold something for."""
        names = {*self.samples["benchmark"].unique(), *self.samples["metric"].unique()}
        names |= {request.get("benchmark") for request in self.runs["request"]}  # also of runs without a sample
        return [view for view in self.views if not view.made_from or names & view.made_from]


Part = TypeVar("Part", Table, Figure)


def ordered(parts: Iterable[Part], names: Sequence[str]) -> list[Part]:
    """Returns parts in the order of their names; one that is not among them stands before the last."""
    place = {name: number for number, name in enumerate(names)}
    return sorted(parts, key=lambda part: place.get(part.name, len(names) - 1.5))
