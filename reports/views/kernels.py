"""What the samples of `wallclock run kernels` come to: each variant at each case beside the others and the machine."""

import math
import textwrap
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from wallclock.reports.format.text import Rows, significant
from wallclock.reports.stats.intervals import median_interval
from wallclock.reports.store.schema import PLACE

if TYPE_CHECKING:
    import pandas as pd

CASE = ("case", "dtype", *PLACE)
WAY = ("case", "dtype", "direction", *PLACE)
GROUP = (*WAY, "cache")
# Operations for each byte moved from which on arithmetic may be what limits a kernel: 990 TFLOP/s to 3.35 TB/s of an
# H100 come to 300, a CPU's 1 TFLOP/s to 30 GB/s to 30.
ARITHMETIC_FLOP_PER_BYTE = 10
ByKind = dict[
    str, dict[Hashable, Any]
]  # of a variant at a case: a row of the summary by direction or state of the cache


def kernel_summary(frame: "pd.DataFrame", benchmark: str = "kernels") -> "pd.DataFrame":
    """Returns one row for each variant of each case, direction and state of the cache.

    A variant that has failed its reference check, before or after it was timed, has no row; see `failed_rows`.

    Args:
        frame: from `reports.load`.
        benchmark: whose samples; "upsampling" has the same ones.

    Returns:
        Columns `operation`, `case`, `variant`, `dtype`, `direction`, `cache`, those of `PLACE`, `n`, `latency_us` with
        `latency_low_us` and `latency_high_us`, `issue_us` (what the host took to queue a call; GPU only),
        `operand_bytes` (counted: what the variant's operators were given and gave back; not of compiled code),
        `predicted_bytes`, `predicted_us` (what they take at the speed of the copy measured in the same run), `gb_per_s`
        and `share_of_copy` (predicted bytes over the latency, and against that copy), `operations`, `tflop_per_s`,
        `saved_mb`, `beyond_output_mb` (of that, what is not the result itself), `peak_mb`, `error`, and for each other
        variant of the case `x_<variant>`: its latency over this one's.
    """
    import pandas as pd

    measured = frame[frame["benchmark"] == benchmark]
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


def _failed(measured: "pd.DataFrame") -> "pd.Series":
    return (measured["metric"] == "error") & (measured["status"] == "failed")


def failed_rows(frame: "pd.DataFrame") -> Rows:
    """Returns the header and the cells of the table of variants that are wrong or could not run, with the reason.

    Args:
        frame: from `reports.load`.
    """
    header = ["variant", "error", "case"]
    failed = frame[frame["benchmark"].isin(("kernels", "upsampling")) & _failed(frame)]
    if failed.empty:  # no column "dtype" then
        return header, []
    rows = []
    for (variant, error), group in failed.groupby(["variant", "error"], sort=False, observed=True):
        names = list(dict.fromkeys(group["case"] + " " + group["dtype"]))
        rows.append([variant, error, names[0] + (f", and {len(names) - 1} more" if len(names) > 1 else "")])
    return header, rows


def kernel_rows(summary: "pd.DataFrame") -> Rows:
    """Returns the header and the cells of the kernel table, with a hot cache; all columns are in the page and the JSON.

    Args:
        summary: from `kernel_summary`.
    """
    header = ["case", "variant", "forward", "backward", "both", "of copy", "saved", "x eager"]

    def cells(by_direction: ByKind) -> list[str]:
        latency = {way: row["latency_us"] for way, row in by_direction.items()}
        whole = list(by_direction.values())[-1]
        return [
            *(significant(latency[way]) if way in latency else "" for way in ("forward", "backward", "both")),
            _percent(whole["share_of_copy"]),
            _or_nothing(whole["saved_mb"]),
            _or_nothing(whole.get("x_eager", math.nan)),
        ]

    return header, _rows_by_case(summary[summary["cache"] == "hot"], "direction", cells) if len(summary) else []


def kernel_detail_rows(summary: "pd.DataFrame") -> Rows:
    """Returns the header and the cells of what the kernel table leaves out, of both directions or the only one.

    The interval and GB/s are of the hot latency; MB+ is what is kept for backward besides the output.

    Args:
        summary: from `kernel_summary`.
    """
    header = ["case", "variant", "95% interval", "cold", "GB/s", "MB+", "error"]

    def cells(by_cache: ByKind) -> list[str]:
        hot = by_cache.get("hot", {})
        whole = list(by_cache.values())[-1]
        return [
            f"[{significant(hot['latency_low_us'])}, {significant(hot['latency_high_us'])}]"
            if hot.get("n", 0) > 1
            else "",
            _or_nothing(by_cache.get("cold", {}).get("latency_us", math.nan)),
            _or_nothing(hot.get("gb_per_s", math.nan)),
            _or_nothing(whole["beyond_output_mb"]),
            _error(whole["error"]),
        ]

    if summary.empty:
        return header, []
    ways = summary.groupby([*CASE, "variant"], dropna=False, sort=False)["direction"].transform("last")
    return header, _rows_by_case(summary[summary["direction"] == ways], "cache", cells)


def _rows_by_case(summary: "pd.DataFrame", by: str, cells: Callable[[ByKind], list[str]]) -> list[list[str]]:
    """Returns a row for each variant of each case: names, and what `cells` makes of its rows by direction or cache."""
    found: dict[int, dict[str, ByKind]] = {}
    places = summary.groupby(list(CASE), dropna=False, sort=False).ngroup()
    for place, row in zip(places, summary.to_dict("records"), strict=True):
        found.setdefault(place, {}).setdefault(str(row["variant"]), {})[row[by]] = row
    rows = []
    for variants in found.values():
        for variant, by_kind in variants.items():
            one = next(iter(by_kind.values()))
            name = "\n".join(textwrap.wrap(f"{one['case']} {one['dtype']}", 18))
            rows.append([name, _folded(variant), *cells(by_kind)])
    return rows


def kernel_cells(summary: "pd.DataFrame") -> list[dict[str, str]]:
    """Returns each row of the summary as text by column, for the page; columns that are empty throughout are left out.

    Args:
        summary: from `kernel_summary`.
    """
    cells = []
    others = [str(column).removeprefix("x_") for column in summary if str(column).startswith("x_")]
    others.sort(key=("eager", "compile").__contains__, reverse=True)  # what a user has today comes first
    for record in summary.to_dict("records"):
        row = {str(name): value for name, value in record.items()}
        arithmetic = row["operations"] >= ARITHMETIC_FLOP_PER_BYTE * row["predicted_bytes"]
        interval = f"[{significant(row['latency_low_us'], 4)}, {significant(row['latency_high_us'], 4)}]"
        cells.append(
            {
                "case": f"{row['case']} {row['dtype']}",
                **{name: str(row[name]) for name in ("variant", "direction", "cache")},
                "us": significant(row["latency_us"], 4),
                "us predicted": _or_nothing(row["predicted_us"]),
                "of copy": _percent(row["share_of_copy"]),
                **{f"x {name}": _or_nothing(row[f"x_{name}"]) for name in others},
                "95% interval of us": interval if row["n"] > 1 else "",
                "MB predicted": _or_nothing(row["predicted_bytes"] / 1e6),
                "MB of operands": _or_nothing(row["operand_bytes"] / 1e6),
                "GB/s": _or_nothing(row["gb_per_s"]),
                "TFLOP/s": _or_nothing(row["tflop_per_s"] if arithmetic else math.nan),
                "us to queue": _or_nothing(row["issue_us"]),
                "MB kept": _or_nothing(row["saved_mb"]),
                "MB kept beyond y": _or_nothing(row["beyond_output_mb"]),
                "MB peak": _or_nothing(row["peak_mb"]),
                "error": _error(row["error"]),
            }
        )
    filled = [name for name in (cells[0] if cells else {}) if any(row[name] for row in cells)]
    return [{name: row[name] for name in filled} for row in cells]


def _or_nothing(value: float) -> str:
    return "" if math.isnan(value) else significant(value)


def _folded(variant: str) -> str:
    """A name on two lines where one would break numbers beside it within 80 columns."""
    return variant.replace("_", "_\n", 1) if len(variant) > 11 else variant


def _error(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.1e}"


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.0f}%"


def static_rows(frame: "pd.DataFrame") -> Rows:
    """Returns the header and the cells of the table of compiled kernels: the worst of each kernel for each target.

    Args:
        frame: from `reports.load`.
    """
    header = ["kernel", "sm", "n", "regs", "spill", "instr", "shared", "load", "store", "warps"]
    static = frame[frame["benchmark"] == "static"]
    rows: list[list[str]] = []
    if static.empty:  # no column "architecture" then
        return header, rows
    for key, group in static.groupby(["case", "architecture", "run_id"], sort=False, observed=True):
        worst = {
            name: (values.min() if better == "higher" else values.max())
            for (name, better), values in group.groupby(["metric", "better"], observed=True)["value"]
        }
        names = ("registers", "spilled_bytes", "instructions", "shared_bytes", "load_bytes", "store_bytes")
        figures = [f"{worst[name]:.0f}" if name in worst else "" for name in names]
        forms = str((group["metric"] == "registers").sum())
        rows.append(
            [
                str(key[0]).removesuffix("_kernel"),
                str(key[1]).removeprefix("sm_"),
                forms,
                *figures,
                f"{100 * worst['occupancy']:.0f}%",
            ]
        )
    rows.sort(key=lambda row: (row[0], int(row[1])))
    return header, rows
