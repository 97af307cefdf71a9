"""Views: the summaries, tables and figures of one benchmark or subject, and the records they are made from.

A function that makes one of them has parameters named after the frames it needs: `samples`, `runs`, or a summary's
name. `Records` passes these frames, and makes each summary once.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from wallclock.reports.format.text import tabulated

if TYPE_CHECKING:
    import pandas as pd

Maker = Callable[..., Any]
Make = TypeVar("Make", bound=Maker)
Named = TypeVar("Named", bound=Any)


@dataclass(frozen=True)
class Part:
    """A table or a figure of a view.

    Attributes:
        name: id on the page, by which parts are ordered.
        make: function that returns `reports.format.text.Rows` or a `reports.format.plotly.Figure`; see `View`.
        heading: heading on the page; a table without one is shown on the terminal alone.
        caption: text below the part on the page.
        title: heading of a table on the terminal, in Markdown and in notebooks; without one it is on the page alone.
        words: number of a table's leading columns that hold text, aligned left.
        dense: whether a table has many columns of one-line figures, by which the page sorts it.
    """

    name: str
    make: Maker
    heading: str
    caption: str
    title: str = ""
    words: int = 1
    dense: bool = False


@dataclass
class View:
    """The summaries, tables and figures of one benchmark or subject; its methods are decorators that add to it.

    Attributes:
        made_from: benchmarks and metrics of which the records must hold one for anything to be made; empty for always.
            A name may be a pattern such as "* ablation"; see `fnmatch`.
        curves: metrics whose samples are points of a curve, of which no median is taken.
        tabled: benchmarks, metrics, or both as "benchmark/metric", or patterns of such names, that its tables show in
            full, which "Other metrics" leaves out.
        summaries: by key in the JSON document, the function that makes it and what a row of it is, for the docs.
        tables: tables in the order of their definition, for page or terminal.
        figures: figures in the order of their definition.
    """

    made_from: Sequence[str] = ()
    curves: Sequence[str] = ()
    tabled: Sequence[str] = ()
    summaries: dict[str, tuple[Maker, str]] = field(default_factory=dict)
    tables: list[Part] = field(default_factory=list)
    figures: list[Part] = field(default_factory=list)

    def summary(self, name: str, holds: str) -> Callable[[Make], Make]:
        """Adds a frame that `--json` prints and tables and figures can use; `holds` describes a row for the docs."""

        def add(make: Make) -> Make:
            self.summaries[name] = make, holds
            return make

        return add

    def table(self, name: str, *, heading: str = "", **shown: Any) -> Callable[[Maker], Maker]:
        """Adds a table whose caption is the docstring of the decorated function; one without rows is not shown.

        The function returns `Rows`, or is a generator of `Cells`, from which they are made: see `tabulated`.
        """
        add = self._adder(self.tables, name, heading, **shown)
        return lambda make: add(tabulated(make) if inspect.isgeneratorfunction(make) else make)

    def figure(self, name: str, heading: str) -> Callable[[Make], Make]:
        """Adds a figure of the page; the decorated function may return None, or set "caption" in the figure."""
        return self._adder(self.figures, name, heading)

    @staticmethod
    def _adder(parts: list[Part], name: str, heading: str, **shown: Any) -> Callable[[Make], Make]:
        def add(make: Make) -> Make:
            parts.append(Part(name, make, heading, " ".join((make.__doc__ or "").split()), **shown))
            return make

        return add


class Records:
    """The frames of `reports.load` and `load_runs` for the same paths; each summary of them is made once, on demand."""

    def __init__(self, samples: "pd.DataFrame", runs: "pd.DataFrame", views: Sequence[View]) -> None:
        self.samples, self.runs, self.views = samples, runs, views
        self._known: dict[str, Any] = {"samples": samples, "runs": runs}
        self._known["curves"] = [metric for view in views for metric in view.curves]
        self._known["tabled"] = self._named([name for view in views for name in (*view.curves, *view.tabled)])
        self._makers = {name: make for view in views for name, (make, _) in view.summaries.items()}

    def make(self, make: Maker) -> Any:
        """Calls a function with the records that its parameters name, and returns its result.

        Parameters may also be `curves` and `tabled`, those of all views together.
        """
        named = inspect.signature(make).parameters.keys() & {*self._known, *self._makers}
        return make(**{name: self.frame(name) for name in named})

    def frame(self, name: str) -> Any:
        """Returns the samples, the runs, or a summary by its name."""
        if name not in self._known:
            self._known[name] = self.make(self._makers[name])
        return self._known[name]

    def summaries(self) -> "dict[str, pd.DataFrame]":
        """Returns every summary by its name."""
        return {name: self.frame(name) for name in self._makers}

    @cached_property
    def shown(self) -> list[View]:
        """The views that these records have data for."""
        return [view for view in self.views if not view.made_from or self._named(view.made_from)]

    def _named(self, patterns: Sequence[str]) -> list[str]:
        """Returns the benchmarks and metrics in the records that match one of the patterns."""
        return [name for name in self._names if any(fnmatchcase(name, pattern) for pattern in patterns)]

    @cached_property
    def _names(self) -> set[str]:
        """Benchmarks and metrics of the samples, both together, and benchmarks of runs without samples."""
        requested = {str(request.get("benchmark")) for request in self.runs["request"]}
        pairs = self.samples[["benchmark", "metric"]].drop_duplicates().astype("str").to_numpy()
        return {name for pair in pairs for name in (*pair, "/".join(pair))} | requested


def in_order(things: Iterable[Named], names: Sequence[str]) -> list[Named]:
    """Returns things that have a `name` in the order of `names`; one that is not in it comes before the last."""
    place = {name: number for number, name in enumerate(names)}
    return sorted(things, key=lambda thing: place.get(thing.name, len(names) - 1.5))
