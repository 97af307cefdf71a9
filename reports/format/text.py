"""Summaries as tables: for the terminal within 80 columns, as CSV, and as Markdown; and how figures are written."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wallclock.reports.stats.intervals import KEYS, parameter_columns

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

CLOCK = "train_eval_s"
# Points of a curve: drawn in figures; their median says nothing.
CYCLEGAN_LOSSES = ("loss_gan", "loss_cycle", "loss_identity", "loss_discriminator_a", "loss_discriminator_b")
CURVES = (
    *("accuracy", "elapsed_train_eval_s", "train_loss"),
    *("critic_loss", "generator_loss", "em_train", "em_held_out"),
    *CYCLEGAN_LOSSES,
)
# What has a table of its own.
KERNELS = (
    "latency",
    "issue",
    "predicted_bytes",
    "operations",
    "operand_bytes",
    "saved_bytes",
    "saved_beyond_output_bytes",
    "peak_bytes",
    "error",
)
UPSAMPLING = ("constant_spread", "phase_share", "spectral_peak", "parameter_count")
TABLED = (*CURVES, "phase_time", "phase_overhead", "operator_time", "final_accuracy", *KERNELS, *UPSAMPLING)
# Of each benchmark of levers: its rate, what one step takes, and what a turn takes in CPU time.
ABLATIONS = {
    "cifar ablation": ("steps_per_s", "step_s", "step_cpu_s"),
    "wgan ablation": ("critic_iterations_per_s", "critic_step_s", "cycle_cpu_s"),
    "cyclegan ablation": ("iterations_per_s", "iteration_s", "turn_cpu_s"),
}
OF_THEIR_OWN = ("static", "choices", "loaders", "comparison", "calibration", *ABLATIONS)  # benchmarks that have
# Columns of words, set flush left.
WORDS = (
    "operator",
    *("case", "variant", "metric", "unit", "error", "kernel", "fastest", "failed", "chosen", "form", "pipeline"),
    *("benchmark", "verdict", "noise"),
    *("machine", "software", "while measured", "runs"),
)
PHASES = ("data", "forward", "backward", "optimiser", "evaluation")
# What a case is called by. All else that makes a case is told only where it differs between cases of the same names.
NAMES = ("case", "variant", "arm", "dataset", "gpu_name")
SUMMARY_NAMES = ("benchmark", "case", "variant", "arm", "metric")
# Columns that vary within one line or bar: parameters of a phase, and what is worked out from its samples.
WITHIN = ("phase_name", "images", "ms", "elapsed_s", "operator", "calls")
Rows = tuple[list[str], list[list[str]]]


def accuracy_rows(summary: "pd.DataFrame") -> Rows:
    """Returns the header and the cells of the time-to-accuracy table; a cell may have several lines.

    Args:
        summary: from `reports.time_to_target`.
    """
    header = ["case", "target", "reached", "mean accuracy", "p", "time to target"]
    distinguished = distinctions(summary.loc[:, :"target"], [*NAMES, "target"])
    rows = []
    for row, told in zip(summary.to_dict("records"), distinguished, strict=True):
        time = row.get(CLOCK, math.inf)
        interval = interval_text(row.get(f"{CLOCK}_low"), row.get(f"{CLOCK}_high"), " s")
        names = [row["case"] or row["benchmark"], *(row.get(k) for k in NAMES[1:])]
        accuracy = percent_interval(row["accuracy_low"], row["accuracy_high"])
        diverged = f"{row['diverged']} diverged" if row["diverged"] else ""
        repeats = f"{row['repeats']} repeated" if row["repeats"] else ""
        rows.append(
            [
                stacked(*(str(name) for name in names if present(name)), *told),
                percent(row["target"]),
                stacked(f"{row['hits']} of {row['n']}", diverged, repeats),
                stacked(f"{100 * row['mean_accuracy']:.2f}%", accuracy),
                significant(row["p_value"], 2),
                stacked(f"{significant(time)} s" if time < math.inf else "unknown", interval),
            ]
        )
    return header, rows


def summary_rows(summary: "pd.DataFrame") -> Rows:
    """Returns the header and the cells of the table of any metric; of the rest, what tells rows apart.

    Args:
        summary: from `reports.summarise`.
    """
    header = ["case", "metric", "n", "median", "95% interval", "unit"]
    distinguished = distinctions(summary.loc[:, :"better"], SUMMARY_NAMES)
    several = summary["benchmark"].nunique() > 1
    rows: list[list[str]] = []
    for row, told in zip(summary.to_dict("records"), distinguished, strict=True):
        names = [
            row["benchmark"] if several or not row["case"] else "",
            *(row.get(k) for k in ("case", "variant", "arm")),
        ]
        missed = f"{row['censored']} missed" if row["censored"] else ""
        failed = f"{row['failed']} failed" if row["failed"] else ""
        rows.append(
            [
                stacked(" ".join(str(name) for name in names if present(name)), ", ".join(told)),
                f"{row['metric']} {'↓' if row['better'] == 'lower' else '↑'}",
                stacked(str(row["n"]), missed, failed),
                significant(row["median"], 4) if row["n"] else "none",
                interval_text(row["ci_low"], row["ci_high"]) if row["n"] > 1 else "",
                row["unit"],
            ]
        )
    return header, rows


def by_label(frame: "pd.DataFrame", more: Sequence[str] = ()) -> "Iterator[tuple[str, pd.DataFrame]]":
    """Yields the samples of each case under the shortest label that tells it from the others in the frame.

    Args:
        frame: from `reports.load`.
        more: columns that tell cases apart, besides those that always do.
    """
    import pandas as pd

    if frame.empty:  # grouping nothing takes 20 ms, and a page asks a dozen times
        return
    keys = [*KEYS, *(c for c in parameter_columns(frame) if c not in WITHIN), *more]
    groups = list(frame.groupby(keys, dropna=False, sort=False, observed=True))
    cases = pd.DataFrame([key for key, _ in groups], columns=keys)
    names = ["case", *(k for k in (*NAMES[1:], *more) if k in cases and cases[k].nunique() > 1)]
    for (_, group), case, told in zip(groups, cases.to_dict("records"), distinctions(cases, names), strict=True):
        parts = [percent(case[k]) if k == "target" else plain(case[k]) for k in names if present(case[k])]
        yield " · ".join([*parts, *told]) or "unnamed", group


def distinctions(cases: "pd.DataFrame", names: Sequence[str]) -> list[list[str]]:
    """Returns for each case what tells it from the cases of the same names, as "column=value".

    Args:
        cases: one row each, without columns that hold results.
        names: columns that are shown in any case; the others are looked at where these agree.
    """
    own = [name for name in names if name in cases]
    others = [str(column) for column in cases if column not in own]
    told: list[list[str]] = [[] for _ in range(len(cases))]
    group = cases.groupby(own, dropna=False, sort=False, observed=True).ngroup().to_numpy()
    for places in (np.flatnonzero(group == number) for number in range(group.max(initial=-1) + 1)):
        for column in others if len(places) > 1 else ():
            values = cases[column].iloc[places]
            if values.nunique(dropna=False) > 1:
                for place, value in zip(places, values, strict=True):
                    if present(value):
                        told[place].append(_distinction(column, value))
    return told


def _distinction(column: str, value: Any) -> str:
    short = column.removesuffix("_hash")
    return f"{short}={plain(value) if short == column else str(value)[:8]}"


def phase_parts(frame: "pd.DataFrame") -> dict[str, dict[str, float]]:
    """Returns for each case the mean time of each of its phases, in milliseconds for 1,000 images.

    Means add up to the whole, and batches of any size compare. `overhead` is what the timers cost, a share of a step.

    Args:
        frame: from `reports.load`.
    """
    if not {"phase_name", "images"} <= set(frame):
        return {}
    measured = frame[frame["metric"].isin(("phase_time", "phase_overhead"))]
    measured = measured.assign(ms=1e6 * measured["value"] / measured["images"].astype("float64"))
    parts = {}
    for label, group in by_label(measured):
        means = group.groupby("phase_name", observed=True)["ms"].mean()
        if means.empty:
            continue
        parts[label] = {name: float(means[name]) for name in PHASES if name in means}
        overhead = group.loc[group["metric"] == "phase_overhead", "value"]
        if len(overhead):
            parts[label]["overhead"] = float(overhead.mean())
    return parts


def phase_rows(frame: "pd.DataFrame") -> Rows:
    """Returns the header and the cells of the phase table: milliseconds for 1,000 images, and the timers' overhead.

    Args:
        frame: from `reports.load`.
    """
    header = ["case", *PHASES, "overhead"]
    rows = [
        [
            label,
            *(significant(means[name]) if name in means else "" for name in PHASES),
            f"{100 * means['overhead']:+.1f}%" if "overhead" in means else "",
        ]
        for label, means in phase_parts(frame).items()
    ]
    return header, rows


def operator_rows(frame: "pd.DataFrame") -> Rows:
    """Returns the header and the cells of where a profiler found a step's time, by operator.

    Args:
        frame: from `reports.load`.
    """
    header = ["operator", "case", "ms a step", "share", "calls a step"]
    rows = []
    for label, group in by_label(frame[frame["metric"] == "operator_time"]):
        by_operator = group.groupby("operator", sort=False, observed=True)[["value", "calls"]].mean()
        for name, row in by_operator.sort_values("value", ascending=False).iterrows():
            share = f"{100 * row['value'] / by_operator['value'].sum():.1f}%"
            rows.append([str(name), label, significant(1e3 * row["value"]), share, f"{row['calls']:g}"])
    return header, rows


def choice_rows(frame: "pd.DataFrame") -> Rows:
    """Returns the header and the cells of what was measured to choose each unit's convolutions.

    Args:
        frame: from `reports.load`.
    """
    header = ["unit", "eager ms", "fastest ms", "fastest", "failed", "chosen"]
    frame = frame[frame["benchmark"] == "choices"]
    rows = []
    for case, group in frame.groupby("case", sort=False, observed=True):
        times = group[group["metric"] == "latency"].groupby("variant", sort=False, observed=True)["value"].median()
        if times.empty:
            continue
        failed = group.loc[group["status"] == "failed", "variant"]
        eager = next((name for name in times.index if set(name.split(", ")) == {"eager"}), None)
        rows.append(
            [
                f"{case} ({len(group['units'].iloc[0].split())} alike)",
                significant(1e3 * times[eager]) if eager else "failed",
                significant(1e3 * times.min()),
                str(times.idxmin()),
                "; ".join(failed.unique()),
                "; ".join(group.loc[group["chosen"].eq(True), "variant"].unique()),
            ]
        )
    return header, rows


def named_once(rows: Rows) -> list[list[str]]:
    """Returns the cells as they are read from above: a case or a stage is named in the first of its rows."""
    header, cells = rows
    if header[0] not in ("case", "stage"):
        return cells
    names = ["", *(row[0] for row in cells)]
    return [["" if row[0] == above else row[0], *row[1:]] for above, row in zip(names, cells, strict=False)]


def terminal(rows: Rows) -> "Table":
    """Returns the table for `rich.print`; names are shown as they are, never read as markup."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    class Cell(Text):
        def wrap(self, console: Any, width: int, **options: Any) -> Any:
            return Text(broken(self.plain, width)).wrap(console, width, **options)

    header, cells = rows[0], named_once(rows)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in header:
        numeric = name not in WORDS
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=name in ("n", "median"))
    for row in cells:
        table.add_row(*map(Cell, row))
    return table


def broken(text: str, width: int) -> str:
    """Returns text in which words that a column does not hold go on in the next line, after a _, + or = if they can.

    Args:
        text: of a cell.
        width: characters that the column holds, at least 1.
    """

    def lines(word: str) -> str:
        if len(word) <= width:
            return word
        at = 1 + max(word.rfind(mark, 0, width) for mark in "_+=") or width
        return f"{word[:at]}\n{lines(word[at:])}"

    return re.sub(r"\S+", lambda word: lines(word[0]), text)


def markdown(rows: Rows) -> str:
    """Returns the table as GitHub Markdown; names are escaped."""
    import html

    def line(cells: list[str]) -> str:
        escaped = (html.escape(c, quote=False).replace("\\", "\\\\").replace("|", "\\|") for c in cells)
        return "| " + " | ".join(c.replace("\n", "<br>") for c in escaped) + " |"

    header, cells = rows[0], named_once(rows)
    return "\n".join([line(header), "|" + " --- |" * len(header), *map(line, cells)]) + "\n"


def csv(summary: "pd.DataFrame") -> str:
    """Returns a summary as CSV with all its columns, figures in full."""
    return summary.to_csv(index=False)


def present(value: Any) -> bool:
    """Says whether a cell holds something; pandas has three ways of saying no."""
    import pandas as pd

    return isinstance(value, dict | list | tuple) or not (pd.isna(value) or value == "")


def plain(value: Any) -> str:
    """Returns a parameter as it was given: a column that other runs lack holds its whole numbers as floats."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def percent(share: float) -> str:
    """Returns a share in percent, with the digits it has."""
    return f"{100 * share:g}%"


def percent_interval(low: float, high: float, digits: int = 2) -> str:
    """Returns an interval of shares in percent; empty when it is unbounded."""
    return "" if math.isinf(low) else f"[{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def significant(value: float, digits: int = 3) -> str:
    """Returns the value with so many significant digits, in plain notation where that stays short."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else {math.inf: "∞", -math.inf: "−∞"}.get(value, "unknown")
    if not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def interval_text(low: float | None, high: float | None, unit: str = "") -> str:
    """Returns `[low, high]unit`; empty when there is no interval."""
    if low is None or high is None or math.isnan(low) or math.isnan(high) or math.isinf(low):
        return ""
    return f"[{significant(low, 4)}, {significant(high, 4)}]{unit}"


def stacked(*parts: str) -> str:
    """Returns a cell of several lines, without the empty ones."""
    return "\n".join(part for part in parts if part)
