"""Results of an ablation's turns: each variant beside the plain loop, the gain of each lever, and FLOPs beside time."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from wallclock.reports.format.plotly import Figure, escape, figure, json_numbers, nth_colour, ratio_dots, scatter
from wallclock.reports.format.text import Cells, interval_text, significant
from wallclock.reports.stats.intervals import bootstrap_interval, median_interval
from wallclock.reports.views.view import View

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import pandas as pd

BASELINE, ALL, AS_IS = "baseline", "all levers", "as it is"
ALONE = "kernel_alone_s", "plain_alone_s"

VIEW = View(("* ablation",), tabled=("* ablation",))


@VIEW.summary("levers", "a row a variant of an ablation: rates, ratios with intervals, what Amdahl's law predicts")
def ablation_summary(samples: "pd.DataFrame") -> "pd.DataFrame":
    """Returns one row for each variant of each interleaved run: its rate, and its rate over others' in the same rounds.

    The baseline is the plain loop, or, of a grid, the recipe as it is. Warm-up rounds are left out.

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

    measured = samples[samples["benchmark"].str.endswith(" ablation") & (samples["phase"] == "steady")]
    rows: list[dict[str, Any]] = []
    for (run_id, benchmark, case), run in measured.groupby(["run_id", "benchmark", "case"], sort=False, observed=True):
        rate, step_s, cpu_s = _main_metrics(run)
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


def _main_metrics(run: "pd.DataFrame") -> tuple[str, str, str]:
    """Returns the metrics of a turn's rate, of its first kind of step, and of the CPU time; a turn records them so."""
    units = run.drop_duplicates("metric").set_index("metric")["unit"]
    times = [str(metric) for metric in units.index[units == "s"] if metric not in ALONE]
    (cpu_s,) = (metric for metric in times if metric.endswith("_cpu_s"))
    return str(units.index[units == "it/s"][0]), next(metric for metric in times if metric != cpu_s), cpu_s


def _predicted(run: "pd.DataFrame", variant: str, rates: "pd.DataFrame", baseline: str) -> dict[str, float]:
    """Predicts by Amdahl's law, round by round: the iteration outside the kernel's part takes as long as without it."""
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


@VIEW.table(
    "levers",
    title="Levers: iterations/s by variant, in turns; * computes other numbers",
    heading="What each lever gives",
    words=2,
)
def ablation_rows(levers: "pd.DataFrame") -> Cells:
    """Turns of all variants alternate within each round; ratios are medians over rounds, with 95% intervals.

    A WGAN's it/s are critic iterations, the generator steps between them included. The baseline is the published loop
    as it stands there: eager, NCHW, float32. Lever gives: how much faster all levers are than all but that one. *
    computes other numbers than the baseline: see the run's notes.
    """
    if levers.empty:
        return
    several = levers.groupby(["benchmark", "case"])["run_id"].transform("nunique") > 1
    for row, numbered in zip(levers.to_dict("records"), several, strict=True):
        case = f"{str(row['benchmark']).removesuffix(' ablation')} {row['case']}"
        yield {
            "case": f"{case}\nrun {row['run_id'][-8:]}" if numbered else case,
            "variant": f"{row['variant']}{' *' if row['changes_mathematics'] else ''}",
            "it/s": f"{significant(row['it_per_s'])}\n{interval_text(row['it_per_s_low'], row['it_per_s_high'])}",
            "step": f"{1e3 * row['step_s']:,.0f} ms",
            "x baseline": _interval(row, "over_baseline", significant),
            "x by CPU time": _interval(row, "cpu_over_baseline", significant),
            "lever gives": _interval(row, "lost", _gain),
            **({"by Amdahl": _predicted_cell(row)} if "predicted" in levers else {}),
        }


@VIEW.table("flops", title="FLOPs against seconds, fastest first", heading="FLOPs against seconds", words=2)
def flop_rows(samples: "pd.DataFrame", levers: "pd.DataFrame") -> Cells:
    """Fastest first; x and x time are relative to the recipe as it is.

    The last column names the variants that take more operations and yet less time, in at least 19 of 20 rounds.
    """
    if "step_flop" not in levers:
        return
    for (run_id, case), run in levers[levers["step_flop"].notna()].groupby(["run_id", "case"], sort=False):
        if run["step_flop"].nunique() < 2:  # levers change no arithmetic
            continue
        first = run[run["variant"] == AS_IS].iloc[0]
        steps = samples[
            (samples["run_id"] == run_id) & (samples["metric"] == "step_s") & (samples["phase"] == "steady")
        ]
        times = steps.pivot_table(index="round", columns="variant", values="value", observed=True)
        for row in run.sort_values("step_s").to_dict("records"):
            slower = [
                other["variant"]
                for other in run.to_dict("records")
                if row["step_flop"] < other["step_flop"]
                and (times[row["variant"]] > times[other["variant"]]).mean() >= 0.95
            ]
            yield {
                **{"case": str(case), "variant": row["variant"], "GFLOP": significant(row["step_flop"] / 1e9)},
                "x": f"{row['step_flop'] / first['step_flop']:.2f}",
                "ms": f"{1e3 * row['step_s']:,.0f}",
                "x time": f"{1 / row['over_baseline']:.2f}",
                "TFLOP/s": significant(row["step_flop"] / row["step_s"] / 1e12),
                "fewer FLOPs, and slower than": ", ".join(slower),
            }


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


@VIEW.figure("variants", "Variants against the first")
def variant_rates(levers: "pd.DataFrame") -> Figure | None:
    """Rates within the same rounds over those of the recipe as it is, or of the plain loop.

    Medians with their 95% bootstrap intervals.
    """
    if "over_baseline_low" not in levers:
        return None
    shown = levers[levers["over_baseline_low"] > 0]  # the first has no interval against itself
    return ratio_dots(shown, "over_baseline", ("case", "variant"), "run_id", "x the first") if len(shown) else None


@VIEW.figure("waterfall", "From the plain loop to all levers")
def waterfall(levers: "pd.DataFrame") -> Figure | None:
    """What leaving each lever out costs, as factors of the rate; together is what they do to each other."""
    if "lost" not in levers:
        return None
    traces: list[Figure] = []
    for position, ((_, case), run) in enumerate(levers.groupby(["run_id", "case"], sort=False)):
        rates = run.set_index("variant")["it_per_s"]
        left_out = run[run["lost"].notna()].sort_values("lost", ascending=False)
        if left_out.empty or not {BASELINE, ALL} <= set(rates.index):
            continue
        names = [str(variant).removeprefix("without ") for variant in left_out["variant"]]
        gains = [math.log2(ratio) for ratio in left_out["lost"]]
        whole = rates[ALL] / rates[BASELINE]
        gains.append(math.log2(whole) - sum(gains))
        predicted = [*left_out.get("predicted", left_out["lost"] * math.nan), math.nan]
        notes = [f"<br>Amdahl x{ratio:.2f}" if math.isfinite(ratio) else "" for ratio in predicted]
        texts = [f"x{2**gain:.2f}{note}" for gain, note in zip(gains, notes, strict=True)]
        traces.append(
            {
                "type": "waterfall",
                "name": escape(str(case)),
                "measure": ["absolute", *["relative"] * len(gains), "total"],
                "x": [escape(name) for name in ("plain loop", *names, "together", ALL)],
                "y": [0, *json_numbers(gains), 0],
                "text": ["1", *texts, f"x{whole:.2f}"],
                "textposition": "outside",
                "increasing": {"marker": {"color": nth_colour(2)}},
                "decreasing": {"marker": {"color": nth_colour(1)}},
                "totals": {"marker": {"color": nth_colour(position)}},
                "hovertemplate": f"{escape(str(case))}, %{{x}}: %{{text}}<extra></extra>",
            }
        )
    return figure(traces, "", "speed-up, powers of two") if traces else None


@VIEW.figure("flops-seconds", "Operations and the time they take")
def flops_against_seconds(levers: "pd.DataFrame") -> Figure | None:
    """A step of each variant: what lies to the left and above takes fewer operations and more time."""
    if "step_flop" not in levers:
        return None
    counted = levers[levers["step_flop"].notna()]
    counted = counted[counted.groupby("run_id")["step_flop"].transform("nunique") > 1]
    traces = [
        scatter(
            json_numbers(group["step_flop"] / 1e9),
            json_numbers(group["step_s"]),
            name=escape(str(case)),
            text=[escape(str(variant)) for variant in group["variant"]],
            marker={"color": nth_colour(position), "size": 9},
            hovertemplate="%{text}: %{x:.4g} GFLOP, %{y:.4g} s<extra></extra>",
        )
        for position, ((_, case), group) in enumerate(counted.groupby(["run_id", "case"], sort=False, observed=True))
    ]
    zero, several = {"rangemode": "tozero"}, len(traces) > 1
    titles = "GFLOP a step", "seconds a step"
    return figure(traces, *titles, showlegend=several, xaxis=zero, yaxis=zero) if traces else None
