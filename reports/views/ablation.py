"""What the turns of an ablation come to: each variant beside the plain loop, and what each lever gives."""

from typing import TYPE_CHECKING, Any

import numpy as np

from wallclock.reports.format.text import ABLATIONS, Rows, interval_text, significant
from wallclock.reports.stats.intervals import bootstrap_interval, median_interval

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import pandas as pd

BASELINE, ALL, AS_IS = "baseline", "all levers", "as it is"
ALONE = "kernel_alone_s", "plain_alone_s"


def ablation_summary(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Returns one row for each variant of each interleaved run: its rate, and its rate over others' in the same rounds.

    The baseline is the plain loop, or, of a grid, the recipe as it is.

    Args:
        frame: from `reports.load`; warm-up rounds are left out.

    Returns:
        Columns `run_id`, `benchmark`, `case`, `variant`, `levers`, `changes_mathematics`, `rounds`, `it_per_s` with
        `_low` and `_high` (median, distribution-free), `images_per_s`, `step_s` (a WGAN's is its critic's), `cpu_s`,
        `over_baseline` with `_low` and `_high` (median over rounds of the ratio, bootstrap), `cpu_over_baseline` (the
        same of the baseline's CPU time over this one's: what a machine that others use still shows), `step_flop` where
        it was counted, and `lost`: for a variant without a lever, the rate of all levers over its own, with `_low` and
        `_high`: what the lever gives. Where the lever is a kernel that was timed alone, `kernel_speedup` is what its
        part of an iteration takes without it over with it, and `predicted` what Amdahl's law makes of that: an
        iteration without it over the same less what the part alone saves.
    """
    import pandas as pd

    measured = frame[frame["benchmark"].isin(ABLATIONS) & (frame["phase"] == "steady")]
    rows: list[dict[str, Any]] = []
    for (run_id, benchmark, case), run in measured.groupby(["run_id", "benchmark", "case"], sort=False, observed=True):
        rate, step_s, cpu_s = ABLATIONS[str(benchmark)]
        run = run.drop_duplicates(["metric", "variant", "round"], keep="last")
        rates = run[run["metric"] == rate].pivot_table(index="round", columns="variant", values="value", observed=True)
        cpu = run[run["metric"] == cpu_s].pivot_table(index="round", columns="variant", values="value", observed=True)
        medians = run.groupby(["variant", "metric"], observed=True)["value"].median()
        baseline = BASELINE if BASELINE in rates else AS_IS
        for variant in run["variant"].drop_duplicates():
            if variant not in rates:
                continue
            own = rates[variant].dropna()
            first = run[run["variant"] == variant].iloc[0]
            middle = median_interval(own)
            row: dict[str, Any] = {"run_id": run_id, "benchmark": benchmark, "case": case, "variant": variant}
            row |= {"levers": first["levers"]}
            row |= {"changes_mathematics": bool(first["changes_mathematics"]), "rounds": len(own)}
            row |= {"it_per_s": middle.value, "it_per_s_low": middle.low, "it_per_s_high": middle.high}
            figures = {"images_per_s": "images_per_s", "step_s": step_s, "cpu_s": cpu_s, "step_flop": "step_flop"}
            row |= {name: medians.get((variant, metric)) for name, metric in figures.items()}
            row |= _ratio("over_baseline", rates, variant, baseline)
            row |= _ratio("cpu_over_baseline", cpu, baseline, variant)
            if str(variant).startswith("without "):
                row |= _ratio("lost", rates, ALL, variant)
            row |= _predicted(run, str(variant), rates, baseline)
            rows.append(row)
    return pd.DataFrame(rows)


def _predicted(run: "pd.DataFrame", variant: str, rates: "pd.DataFrame", baseline: str) -> dict[str, float]:
    """Amdahl's law, round by round: all of an iteration but the kernel's part takes as long as without the kernel."""
    own = run[run["variant"] == variant].pivot_table(index="round", columns="metric", values="value", observed=True)
    if not {*ALONE} <= {*own}:
        return {}
    without_s = 1 / rates[variant if variant.startswith("without ") else baseline]
    kernel_s, plain_s = (own[metric] for metric in ALONE)
    return {
        "kernel_speedup": float((plain_s / kernel_s).median()),
        "predicted": float((without_s / (without_s - plain_s + kernel_s)).median()),
    }


def _ratio(name: str, rates: "pd.DataFrame", over: str, under: str) -> dict[str, float]:
    if over not in rates or under not in rates:
        return {}
    ratios = (rates[over] / rates[under]).dropna()
    if ratios.empty:
        return {}
    found = bootstrap_interval(ratios, lambda x: np.median(x, axis=-1))
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def ablation_rows(summary: "pd.DataFrame") -> Rows:
    """Returns the header and the cells of the table of levers.

    Args:
        summary: from `ablation_summary`.
    """
    header = ["case", "variant", "it/s", "step", "x baseline", "x by CPU time", "lever gives"]
    alone = "predicted" in summary
    header += ["by Amdahl"] if alone else []
    rows = []
    runs_of: dict[tuple[Any, Any], set[Any]] = {}
    for row in summary.to_dict("records"):
        runs_of.setdefault((row["benchmark"], row["case"]), set()).add(row["run_id"])
    for row in summary.to_dict("records"):
        label = f"{row['variant']}{' *' if row['changes_mathematics'] else ''}"
        case = f"{str(row['benchmark']).removesuffix(' ablation')} {row['case']}"
        case += f"\nrun {row['run_id'][-8:]}" if len(runs_of[row["benchmark"], row["case"]]) > 1 else ""
        rows.append(
            [
                case,
                label,
                f"{significant(row['it_per_s'])}\n{interval_text(row['it_per_s_low'], row['it_per_s_high'])}",
                f"{1e3 * row['step_s']:,.0f} ms",
                _interval(row, "over_baseline", significant),
                _interval(row, "cpu_over_baseline", significant),
                _interval(row, "lost", _gain),
            ]
            + ([_predicted_cell(row)] if alone else [])
        )
    return header, rows


def flop_rows(frame: "pd.DataFrame", summary: "pd.DataFrame") -> Rows:
    """Returns the header and the cells of the table that sets FLOPs beside seconds.

    Named are the variants that take fewer operations than another and yet more time, in at least 19 of 20 rounds.

    Args:
        frame: from `reports.load`.
        summary: of it, from `ablation_summary`.
    """
    header = ["case", "variant", "GFLOP", "x", "ms", "x time", "TFLOP/s", "fewer FLOPs, and slower than"]
    rows: list[list[str]] = []
    if "step_flop" not in summary:
        return header, rows
    for (run_id, case), run in summary[summary["step_flop"].notna()].groupby(["run_id", "case"], sort=False):
        if run["step_flop"].nunique() < 2:  # levers change no arithmetic
            continue
        first = run[run["variant"] == AS_IS].iloc[0]
        steps = frame[(frame["run_id"] == run_id) & (frame["metric"] == "step_s") & (frame["phase"] == "steady")]
        times = steps.pivot_table(index="round", columns="variant", values="value", observed=True)
        for row in run.sort_values("step_s").to_dict("records"):
            slower = [
                other["variant"]
                for other in run.to_dict("records")
                if row["step_flop"] < other["step_flop"]
                and (times[row["variant"]] > times[other["variant"]]).mean() >= 0.95
            ]
            rows.append(
                [
                    str(case),
                    row["variant"],
                    significant(row["step_flop"] / 1e9),
                    f"{row['step_flop'] / first['step_flop']:.2f}",
                    f"{1e3 * row['step_s']:,.0f}",
                    f"{1 / row['over_baseline']:.2f}",
                    significant(row["step_flop"] / row["step_s"] / 1e12),
                    ", ".join(slower),
                ]
            )
    return header, rows


def _interval(row: "Mapping[Hashable, Any]", name: str, written: Any) -> str:
    value = row.get(name, np.nan)
    if not np.isfinite(value):
        return ""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{written(value)}\n[{written(low)}, {written(high)}]" if np.isfinite(low) else written(value)


def _predicted_cell(row: "Mapping[Hashable, Any]") -> str:
    if not np.isfinite(row.get("predicted", np.nan)):
        return ""
    return f"{_gain(row['predicted'])}\nalone {significant(row['kernel_speedup'])}x"


def _gain(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}%"
