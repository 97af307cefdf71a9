"""Kernels: each variant at each case beside the others, with its predicted bytes and the speed of a copy."""

import math
import textwrap
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pandas as pd

from wallclock.reports.format.plotly import Figure, errors, escape, figure, json_numbers, nth_colour, scatter
from wallclock.reports.format.text import Cells, Rows, or_nothing, rounded_percent, significant
from wallclock.reports.stats.intervals import median_interval
from wallclock.reports.store.schema import PLACE
from wallclock.reports.views.view import View

CASE = ("case", "dtype", *PLACE)
WAY = ("case", "dtype", "direction", *PLACE)
GROUP = (*WAY, "cache")
# Operations for each byte moved from which arithmetic may limit a kernel: 990 TFLOP/s to 3.35 TB/s of an
# H100 come to 300, a CPU's 1 TFLOP/s to 30 GB/s to 30.
ARITHMETIC_FLOP_PER_BYTE = 10
# Rows of the summary for one variant at one case, by direction or by state of the cache.
ByKind = dict[str, dict[Hashable, Any]]

TABLED = (
    *("latency", "issue", "predicted_bytes", "operations", "operand_bytes"),
    *("saved_bytes", "saved_beyond_output_bytes", "peak_bytes", "error"),
)
VIEW = View(("kernels",), tabled=[f"{of}/{metric}" for of in ("kernels", "upsampling") for metric in TABLED])
FAILED = View(("kernels", "upsampling"))


@VIEW.summary(
    "kernels", "a row a case and variant: latencies, bytes predicted, counted and kept, error, share of a copy's speed"
)
def kernel_summary(samples: pd.DataFrame, benchmark: str = "kernels") -> pd.DataFrame:
    """Returns one row for each variant of each case, direction and state of the cache.

    A variant that has failed its reference check, before or after it was timed, has no row; see `failed_rows`.

    Returns:
        Columns `operation`, `case`, `variant`, `dtype`, `direction`, `cache`, those of `PLACE`, `n`, `latency_us` with
        `latency_low_us` and `latency_high_us`, `issue_us` (what the host took to queue a call; GPU only),
        `operand_bytes` (counted: what the variant's operators were given and gave back; not of compiled code),
        `predicted_bytes`, `predicted_us` (what they take at the speed of the copy measured in the same run), `gb_per_s`
        and `share_of_copy` (predicted bytes over the latency, and against that copy), `operations`, `tflop_per_s`,
        `saved_mb`, `beyond_output_mb` (of that, what is not the result itself), `peak_mb`, `error`, and for each other
        variant of the case `x_<variant>`: its latency over this one's.
    """
    measured = samples[samples["benchmark"] == benchmark]
    if not len(measured) or "direction" not in measured:
        return pd.DataFrame()
    wrong = measured.loc[_failed(measured), [*CASE, "variant"]].drop_duplicates()
    measured = measured.merge(wrong.assign(wrong=True), how="left", on=[*CASE, "variant"])
    measured = measured[measured["wrong"].isna()]
    latency = measured[measured["metric"] == "latency"]
    if latency.empty:
        return pd.DataFrame()
    copies = measured[measured["metric"] == "copy_bandwidth"].groupby("run_id", observed=True)["value"].median()
    rows: list[dict[str, Any]] = []
    for key, group in latency.groupby([*GROUP, "variant"], dropna=False, sort=False, observed=True):
        middle = median_interval(group["value"])
        rows.append(
            dict(zip([*GROUP, "variant"], key, strict=True))
            | {"operation": group["operation"].iloc[0], "n": len(group), "latency_us": 1e6 * middle.value}
            | {"latency_low_us": 1e6 * middle.low, "latency_high_us": 1e6 * middle.high}
            | {"copy": copies.reindex(group["run_id"].unique()).median()}
        )
    table = pd.DataFrame(rows)

    def add(name: str, metric: str, keys: tuple[str, ...], how: str, factor: float = 1.0) -> None:
        of_metric = measured[measured["metric"] == metric].groupby([*keys, "variant"], dropna=False, observed=True)
        wanted = pd.MultiIndex.from_frame(table[[*keys, "variant"]])
        table[name] = factor * of_metric["value"].agg(how).reindex(wanted).to_numpy()

    add("issue_us", "issue", GROUP, "median", 1e6)
    add("operand_bytes", "operand_bytes", WAY, "max")
    add("predicted_bytes", "predicted_bytes", WAY, "max")
    table["predicted_us"] = 1e-3 * table["predicted_bytes"] / table["copy"]
    table["gb_per_s"] = table["predicted_bytes"] / table["latency_us"] / 1e3
    table["share_of_copy"] = table["predicted_us"] / table["latency_us"]
    add("operations", "operations", WAY, "max")
    table["tflop_per_s"] = table["operations"] / table["latency_us"] / 1e6
    add("saved_mb", "saved_bytes", CASE, "max", 1e-6)
    add("beyond_output_mb", "saved_beyond_output_bytes", CASE, "max", 1e-6)
    add("peak_mb", "peak_bytes", CASE, "max", 1e-6)
    add("error", "error", CASE, "max")
    for variant in dict.fromkeys(table["variant"]):
        others = table[table["variant"] == variant].set_index(list(GROUP))["latency_us"]
        keys = pd.MultiIndex.from_frame(table[list(GROUP)])
        table[f"x_{variant}"] = others.reindex(keys).to_numpy() / table["latency_us"].to_numpy()
    first = ["operation", "case", "variant"]
    return table[first + [c for c in table if c not in (*first, "copy")]]


def _failed(measured: pd.DataFrame) -> pd.Series:
    return (measured["metric"] == "error") & (measured["status"] == "failed")


@FAILED.table(
    "failed-kernels", title="Kernels that failed, and are left out above", heading="Kernels that failed", words=3
)
def failed_rows(samples: pd.DataFrame) -> Cells:
    """Variants that are wrong or could not run: they are in no table of times."""
    failed = samples[samples["benchmark"].isin(("kernels", "upsampling")) & _failed(samples)]
    if failed.empty:  # without rows there is no column "dtype"
        return
    for (variant, error), group in failed.groupby(["variant", "error"], sort=False, observed=True):
        names = list(dict.fromkeys(group["case"] + " " + group["dtype"]))
        more = f", and {len(names) - 1} more" if len(names) > 1 else ""
        yield {"variant": str(variant), "error": str(error), "case": names[0] + more}


@VIEW.table("latencies", title="Kernels: us, hot cache; MB kept for backward")
def kernel_rows(kernels: pd.DataFrame) -> Cells:
    """Yields the rows of the terminal's table, with a hot cache; page and JSON have all columns."""

    def cells(by_direction: ByKind) -> dict[str, str]:
        latency = {way: row["latency_us"] for way, row in by_direction.items()}
        whole = list(by_direction.values())[-1]
        return {
            **{way: significant(latency[way]) if way in latency else "" for way in ("forward", "backward", "both")},
            "of copy": rounded_percent(whole["share_of_copy"]),
            "saved": or_nothing(whole["saved_mb"]),
            "x eager": or_nothing(whole.get("x_eager")),
        }

    if len(kernels):
        yield from _rows_by_case(kernels[kernels["cache"] == "hot"], "direction", cells)


@VIEW.table("details", title="Kernels, whole: us hot (95% interval) and cold; MB kept besides the output")
def kernel_detail_rows(kernels: pd.DataFrame) -> Cells:
    """Yields the rows of what the kernel table leaves out, of both directions or the only one.

    The interval and GB/s are of the hot latency; MB+ is what is kept for backward besides the output.
    """

    def cells(by_cache: ByKind) -> dict[str, str]:
        hot = by_cache.get("hot", {})
        whole = list(by_cache.values())[-1]
        several = hot.get("n", 0) > 1
        ends = f"[{significant(hot['latency_low_us'])}, {significant(hot['latency_high_us'])}]" if several else ""
        return {
            "95% interval": ends,
            "cold": or_nothing(by_cache.get("cold", {}).get("latency_us")),
            "GB/s": or_nothing(hot.get("gb_per_s")),
            "MB+": or_nothing(whole["beyond_output_mb"]),
            "error": _error(whole["error"]),
        }

    if len(kernels):
        ways = kernels.groupby([*CASE, "variant"], dropna=False, sort=False)["direction"].transform("last")
        yield from _rows_by_case(kernels[kernels["direction"] == ways], "cache", cells)


def _rows_by_case(summary: pd.DataFrame, by: str, cells: Callable[[ByKind], dict[str, str]]) -> Cells:
    """Yields a row for each variant of each case: names, then what `cells` makes of its rows by direction or cache."""
    found: dict[int, dict[str, ByKind]] = {}
    places = summary.groupby(list(CASE), dropna=False, sort=False).ngroup()
    for place, row in zip(places, summary.to_dict("records"), strict=True):
        found.setdefault(place, {}).setdefault(str(row["variant"]), {})[row[by]] = row
    for variants in found.values():
        for variant, by_kind in variants.items():
            one = next(iter(by_kind.values()))
            name = "\n".join(textwrap.wrap(f"{one['case']} {one['dtype']}", 18))
            # A long name takes two lines: on one it would break the numbers beside it within 80 columns.
            folded = variant.replace("_", "_\n", 1) if len(variant) > 11 else variant
            yield {"case": name, "variant": folded, **cells(by_kind)}


@VIEW.table("kernels", heading="Kernels", words=4, dense=True)
def kernel_cells(kernels: pd.DataFrame) -> Rows:
    """Median latencies.

    MB predicted is what a variant should move, and us predicted what that takes at the speed of a copy measured in the
    same run; GB/s is those bytes over the latency, and of copy the predicted over the measured time: below 100% it
    takes longer than its bytes need, above it finds them in a cache. MB of operands is counted in a call, not
    predicted: what its operators were given and gave back, each tensor once; where it is more, a variant copies on the
    way, where it is less, an operator reads a tensor twice. us to queue is what the host takes to launch it: where that
    is longer, a loop without a graph waits for the host. MB kept is for backward. Error is the largest against a
    float64 reference, as a share of the reference's largest value. x is how many times as long another variant takes.
    """
    cells = []
    others = [str(column).removeprefix("x_") for column in kernels if str(column).startswith("x_")]
    others.sort(key=("eager", "compile").__contains__, reverse=True)  # PyTorch's own variants come first
    for row in kernels.to_dict("records"):
        arithmetic = row["operations"] >= ARITHMETIC_FLOP_PER_BYTE * row["predicted_bytes"]
        interval = f"[{significant(row['latency_low_us'], 4)}, {significant(row['latency_high_us'], 4)}]"
        cells.append(
            {
                "case": f"{row['case']} {row['dtype']}",
                **{name: str(row[name]) for name in ("variant", "direction", "cache")},
                "us": significant(row["latency_us"], 4),
                "us predicted": or_nothing(row["predicted_us"]),
                "of copy": rounded_percent(row["share_of_copy"]),
                **{f"x {name}": or_nothing(row[f"x_{name}"]) for name in others},
                "95% interval of us": interval if row["n"] > 1 else "",
                "MB predicted": or_nothing(row["predicted_bytes"] / 1e6),
                "MB of operands": or_nothing(row["operand_bytes"] / 1e6),
                "GB/s": or_nothing(row["gb_per_s"]),
                "TFLOP/s": or_nothing(row["tflop_per_s"] if arithmetic else math.nan),
                "us to queue": or_nothing(row["issue_us"]),
                "MB kept": or_nothing(row["saved_mb"]),
                "MB kept beyond y": or_nothing(row["beyond_output_mb"]),
                "MB peak": or_nothing(row["peak_mb"]),
                "error": _error(row["error"]),
            }
        )
    filled = [name for name in (cells[0] if cells else {}) if any(row[name] for row in cells)]
    return filled, [[row[name] for name in filled] for row in cells]


def _error(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.1e}"


@VIEW.figure("speedups", "Kernels: times as fast as eager")
def speedup_map(kernels: pd.DataFrame) -> Figure | None:
    """Hot cache, forward and backward where there is one.

    Blue is faster than eager PyTorch, orange slower.
    """
    if "x_eager" not in kernels:
        return None
    shown = kernels[(kernels["cache"] == "hot") & (kernels["variant"] != "eager") & kernels["x_eager"].notna()]
    whole = shown[shown["direction"].isin(("both", "forward"))].sort_values("direction", kind="stable")
    whole = whole.drop_duplicates(["case", "dtype", "variant", "gpu_name", "cpu"])  # both directions if measured
    if whole.empty:
        return None
    whole = whole.assign(label=whole["case"] + " " + whole["dtype"])
    wide = whole.pivot_table(index="label", columns="variant", values="x_eager", observed=True, sort=False)
    wide = wide.iloc[::-1]
    ratios = wide.to_numpy()
    trace: Figure = {
        "type": "heatmap",
        "x": [escape(str(name)) for name in wide.columns],
        "y": [escape(str(label)) for label in wide.index],
        "z": [json_numbers(row) for row in np.log2(ratios)],
        "text": [[f"{ratio:.2f}" if math.isfinite(ratio) else "" for ratio in row] for row in ratios],
        "texttemplate": "%{text}",
        "zmid": 0,
        "colorscale": [[0, "#d9822b"], [0.5, "#e9e9e4"], [1, "#2f7fd1"]],
        "showscale": False,
        "hovertemplate": "%{y}, %{x}: %{text} x eager<extra></extra>",
        "textfont": {"color": "#1b1d21"},
    }
    return figure([trace], "", "", height=90 + 26 * len(wide))


@VIEW.figure("roofline", "Kernels against the speed of a copy")
def roofline(kernels: pd.DataFrame) -> Figure | None:
    """Each variant's time over the bytes that it should move; the line is what a copy takes for as many.

    Both are measured in the same run. What lies below it finds its bytes in a cache. A whisker reaches to the bytes
    counted at its operators.
    """
    if "predicted_us" not in kernels:
        return None
    shown = kernels[(kernels["predicted_bytes"] > 0) & kernels["predicted_us"].notna()]
    if shown.empty:
        return None
    traces: list[Figure] = []
    for position, (variant, group) in enumerate(shown.groupby("variant", sort=False, observed=True)):
        beyond = 1e-6 * (group["operand_bytes"] - group["predicted_bytes"]).fillna(0)
        more, less = beyond.clip(lower=0), -beyond.clip(upper=0)
        traces.append(
            scatter(
                json_numbers(group["predicted_bytes"] / 1e6),
                json_numbers(group["latency_us"]),
                name=escape(str(variant)),
                text=[
                    escape(f"{row['case']} {row['dtype']}, {row['direction']}, {row['cache']} cache: ")
                    + f"{100 * row['share_of_copy']:.0f}% of a copy"
                    for row in group.to_dict("records")
                ],
                marker={"color": nth_colour(position), "size": 7, "opacity": 0.8},
                error_x=errors(more, less, symmetric=False, thickness=1, width=0),
                customdata=[f"{size / 1e6:.3g} MB" if size == size else "not" for size in group["operand_bytes"]],
                hovertemplate="%{text}, %{x:.3g} MB predicted, %{customdata} counted, %{y:.4g} us"
                "<extra>%{fullData.name}</extra>",
            )
        )
    for _, group in shown.groupby(["gpu_name", "cpu", "host"], dropna=False, observed=True):
        us_per_byte = (group["predicted_us"] / group["predicted_bytes"]).median()
        ends = group["predicted_bytes"].min(), group["predicted_bytes"].max()
        x, y = json_numbers(end / 1e6 for end in ends), json_numbers(end * us_per_byte for end in ends)
        dashed = {"dash": "dash", "width": 1.5, "color": "#888f9a"}
        name = f"a copy: {1e-3 / us_per_byte:,.0f} GB/s"
        traces.append(scatter(x, y, "lines", name=name, line=dashed, hoverinfo="skip"))
    return figure(traces, "predicted bytes, MB", "microseconds", xaxis={"type": "log"}, yaxis={"type": "log"})
