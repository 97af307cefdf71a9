"""History: the figures of one series from run to run, and the commits at which they changed."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from wallclock.reports.format.labels import distinctions
from wallclock.reports.format.plotly import Figure, escape, figure, json_numbers, nth_colour, scatter
from wallclock.reports.format.text import Cells, Rows, arrow, plain, present, significant, tabulated
from wallclock.reports.stats.intervals import KEYS, parameter_columns
from wallclock.reports.stats.verdicts import Array
from wallclock.reports.store.schema import PLACE
from wallclock.reports.views.comparison import BENCHMARK as COMPARISON
from wallclock.reports.views.comparison import HEAD
from wallclock.reports.views.view import View

SHORTEST = 3  # fewest runs between two changes: a level of fewer runs was a bad day
SMALLEST = 0.02  # smallest change of level that counts, as a share
ORDERS = 400  # in which a series is shuffled, to see what chance makes of it
POINT = ("run_id", "started_utc", "git_sha")
# Columns that may differ along one line, because they are under test: the hashes of the sources and the recipe.
_CHANGING = ("source_hash", "recipe_hash")

VIEW = View()


def series(
    samples: pd.DataFrame, runs: pd.DataFrame, curves: Sequence[str] = ()
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yields each series: its identity, and one row for each run, oldest first.

    A series has one benchmark, case, variant, metric, machine and all settings; another GPU, driver, torch or flag is
    another series, and so is another compared command or a study's turn. A comparison's points are its
    head's, at the head's commit. Metrics in `curves` change over a run, and are left out.

    Yields:
        The columns that are constant in the series, and a frame of `POINT` and `value`, the median of each run.
    """
    requests = dict(zip(runs["run_id"], runs["request"], strict=True))
    heads = {
        run_id: request["head"].get("revision")
        for run_id, request in requests.items()
        if request.get("benchmark") == COMPARISON
    }
    subjects = {run_id: _subject(request) for run_id, request in requests.items()}
    steady = samples[(samples["phase"] == "steady") & ~samples["metric"].isin(curves)]
    steady = steady[np.isfinite(steady["value"].to_numpy())]
    compared = steady["benchmark"] == COMPARISON
    steady = steady[~compared | (steady["arm"] == HEAD)].astype({"git_sha": "str"})
    at_head = steady["run_id"].astype("str").map(heads)
    subject = steady["run_id"].astype("str").map(subjects)
    steady = steady.assign(git_sha=at_head.where(at_head.notna(), steady["git_sha"]), subject=subject)
    place = [name for name in PLACE if name not in _CHANGING]
    keys = [k for k in dict.fromkeys([*KEYS, *place, *parameter_columns(samples)]) if k not in _CHANGING]
    keys = [k for k in [*keys, "subject", "metric", "unit", "better"] if k in steady]
    if steady["run_id"].nunique() < 2:
        return
    # Two groupings in all: one for each of thousands of series took 20 s for a page of 80,000 samples.
    number = steady.groupby(keys, dropna=False, sort=False, observed=True).ngroup().rename("series")
    firsts = steady[keys].loc[~number.duplicated()].set_axis(number.unique()).to_dict("index")
    by_run = steady.groupby([number, *POINT], sort=False, observed=True, dropna=False)["value"].median().reset_index()
    several = by_run[by_run.groupby("series")["run_id"].transform("size") > 1]
    for which, points in several.groupby("series", sort=False):
        key = {str(name): value for name, value in firsts[which].items()}
        points = points.astype({"started_utc": "str"})  # a category's order is that of the files
        yield key, points.drop(columns="series").sort_values("started_utc", ignore_index=True)


def _subject(request: "dict[str, Any]") -> str:
    """Returns the subject of a run that only its request names: the command of the head, or the study."""
    if request.get("benchmark") == COMPARISON:
        return "" if request["head"].get("revision") else request["head"].get("text", "")
    variants = request.get("variants")
    return variants["grid"][0] if isinstance(variants, dict) and variants.get("how") == "study" else ""


def changes(values: Array, start: int = 0) -> list[int]:
    """Returns the positions, counted from `start`, at which a new level of the series begins.

    The series is cut where the means of both sides differ most, by the t statistic of logarithms whose outliers are
    clipped to 3 robust standard deviations; then each side likewise. A cut stands if the levels differ by at least
    `SMALLEST`, if it keeps `SHORTEST` runs on either side once runs that lie nearer to the other level have changed
    sides, and if at most one in twenty of the series in another order has as large a statistic. Since runs in a row are
    often alike, as on a machine that warms up, the statistic is first made smaller by the correlation of neighbours
    around their levels, which short series understate.

    At most one in twenty quiet series of 8 runs or more shows a change: with normal or heavy-tailed noise, one outlier,
    a clock of two speeds, and noise whose neighbours correlate by 0.7 (`tests/reports/views/test_history.py`).
    """
    n = len(values)
    if n < 2 * SHORTEST or (values <= 0).any():
        return []
    logs = np.log(values)
    spread = 3 * max(1.4826 * float(np.median(np.abs(logs - np.median(logs)))), 1e-4)  # 1e-4: figures that repeat
    clipped = np.clip(logs, np.median(logs) - spread, np.median(logs) + spread)
    statistics = _cut_statistics(clipped)
    cut = SHORTEST + int(np.argmax(statistics))
    before, after = float(np.median(logs[:cut])), float(np.median(logs[cut:]))
    nearer = np.abs(logs - after) < np.abs(logs - before)
    while cut < n and not nearer[cut]:
        cut += 1
    while cut and nearer[cut - 1]:
        cut -= 1
    if min(cut, n - cut) < SHORTEST:
        return []
    if abs(float(np.median(logs[cut:]) - np.median(logs[:cut]))) < math.log1p(SMALLEST):
        return []
    rest = np.concatenate([part - part.mean() for part in (clipped[:cut], clipped[cut:])])
    alike = float(rest[1:] @ rest[:-1] / max(rest @ rest, 1e-12)) + 0.2 + 8 / n
    alike = min(max(alike, 0.0), 0.95)
    largest = statistics.max() * math.sqrt((1 - alike) / (1 + alike))
    if largest < 2:  # no order has a largest statistic as small as that
        return []
    orders = np.random.default_rng(n).permuted(np.broadcast_to(clipped, (ORDERS, n)), axis=-1)
    if np.mean(_cut_statistics(orders).max(axis=-1) >= largest) > 0.05:
        return []
    return [*changes(values[:cut], start), start + cut, *changes(values[cut:], start + cut)]


def _cut_statistics(x: Array) -> Array:
    """Returns the t statistic of the means before and after each cut, [..., n - 2 * SHORTEST + 1] of [..., n]."""
    n = x.shape[-1]
    left = np.arange(SHORTEST, n - SHORTEST + 1)
    sums, squares = np.cumsum(x, axis=-1), np.cumsum(x * x, axis=-1)
    before, after = sums[..., left - 1], sums[..., -1:] - sums[..., left - 1]
    within = np.maximum(squares[..., -1:] - before**2 / left - after**2 / (n - left), 0)
    error = np.sqrt(within / (n - 2) * (1 / left + 1 / (n - left)))
    return np.asarray(np.abs(after / (n - left) - before / left) / np.maximum(error, 1e-12))


def history_summary(samples: pd.DataFrame, runs: pd.DataFrame, curves: Sequence[str] = ()) -> pd.DataFrame:
    """Returns one row for each series with at least two runs.

    Returns:
        The columns that make the series, then `runs`, `first` and `latest` figures, `since_first` (median of the latest
        `SHORTEST` runs over that of the first), and `changes`: a list of `git_sha`, `started_utc`, `ratio` (new level
        over the previous) and `worse`.
    """
    rows = []
    for key, points in series(samples, runs, curves):
        values = points["value"].to_numpy(dtype=np.float64)
        cuts = [0, *changes(values), len(values)]
        levels = [float(np.median(values[a:b])) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
        found = []
        for place, before, after in zip(cuts[1:-1], levels[:-1], levels[1:], strict=True):
            at = points.iloc[place]
            found.append(
                {
                    "git_sha": at["git_sha"] if present(at["git_sha"]) else None,
                    "started_utc": str(at["started_utc"]),
                    "ratio": after / before,
                    "worse": (after > before) == (key["better"] == "lower"),
                }
            )
        first, latest = float(np.median(values[:SHORTEST])), float(np.median(values[-SHORTEST:]))
        since = latest / first if first else math.nan
        ends = {"first": values[0], "latest": values[-1], "since_first": since}
        rows.append({**key, "runs": len(values), **ends, "changes": found})
    return pd.DataFrame(rows)


@tabulated
def history_rows(summary: pd.DataFrame) -> Cells:
    """Yields the rows of the table of trends, from `history_summary`."""
    if summary.empty:
        return
    made = summary.drop(columns=["runs", "first", "latest", "since_first", "changes"])
    told = distinctions(made, ("benchmark", "case", "variant", "metric"))
    for row, apart in zip(summary.to_dict("records"), told, strict=True):
        names = " ".join(plain(row[k]) for k in ("case", "variant") if present(row.get(k))) or row["benchmark"]
        changed = [
            f"{(change['git_sha'] or change['started_utc'])[:10]} x{change['ratio']:.3f}, "
            f"{'worse' if change['worse'] else 'better'}"
            for change in row["changes"]
        ]
        yield {
            "case": "\n".join([names, *apart]),
            "metric": f"{row['metric']} {arrow(row['better'])}, {row['unit']}",
            "runs": str(row["runs"]),
            "first": significant(row["first"]),
            "latest": significant(row["latest"]),
            "x": f"{row['since_first']:.3f}",
            "changed at": "\n".join(changed) or "never",
        }


@VIEW.figure("trends", "History")
def trends(samples: pd.DataFrame, runs: pd.DataFrame, curves: Sequence[str] = ()) -> Figure | None:
    """One line a series of one machine and setting, relative to its first run; diamonds are where it changed."""
    traces: list[Figure] = []
    for key, points in series(samples, runs, curves):
        values = points["value"].to_numpy(dtype="float64")
        if len(values) < 2 * SHORTEST or not (values > 0).all():
            continue
        label = " · ".join(str(key[k]) for k in ("benchmark", "case", "variant", "metric") if key.get(k))
        commits = [escape(str(sha)[:10]) for sha in points["git_sha"]]
        colour, extra = nth_colour(len(traces) // 2), f"<extra>{escape(label)}</extra>"
        shared = {"name": escape(label), "legendgroup": label}
        x, y, at = [str(start) for start in points["started_utc"]], json_numbers(values / values[0]), changes(values)
        line: Figure = {"line": {"color": colour, "width": 1.5}, "marker": {"size": 5}, "text": commits}
        line["hovertemplate"] = "%{text}: %{y:.3f} of the first" + extra
        marks: Figure = {"marker": {"size": 12, "symbol": "diamond-open", "color": colour}, "showlegend": False}
        marks |= {"text": [commits[i] for i in at], "hovertemplate": "changed at %{text}" + extra}
        traces += [scatter(x, y, "lines+markers", **shared, **line)]
        traces += [scatter([x[i] for i in at], [y[i] for i in at], **shared, **marks)]
    return figure(traces, "", "of the first run's") if traces else None


@VIEW.table("history", heading="Trends", words=2)
def history_table(samples: pd.DataFrame, runs: pd.DataFrame, curves: Sequence[str]) -> Rows:
    """One row a series: one machine, one setting.

    x is the latest three runs over the first three; changed at names the commit at which a new level begins.
    """
    return history_rows(history_summary(samples, runs, curves))
