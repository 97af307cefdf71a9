"""Parts of a step's time: its phases, the evaluation, and the operators in a profile."""

import pandas as pd

from wallclock.reports.format.labels import by_label
from wallclock.reports.format.plotly import COLOURS, Figure, bar, escape, json_number, stacked_bars
from wallclock.reports.format.text import Cells, rounded_percent, significant
from wallclock.reports.views.view import View

PHASES = ("data", "forward", "backward", "optimiser", "evaluation")

VIEW = View(("phase_time", "operator_time"), tabled=("phase_time", "phase_overhead", "operator_time"))


def phase_parts(frame: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Returns the mean time of each phase in each case, in milliseconds for 1,000 images.

    Means add up to the whole, and batches of any size compare. `overhead` is the cost of the timers, a share of a step.
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


@VIEW.table("phases", title="Phases of a step, and evaluation, in ms for 1,000 images")
def phase_rows(samples: pd.DataFrame) -> Cells:
    """Yields the rows of the phase table: milliseconds for 1,000 images, and the timers' overhead."""
    for label, means in phase_parts(samples).items():
        figures = {name: significant(means[name]) if name in means else "" for name in PHASES}
        yield {"case": label, **figures, "overhead": rounded_percent(means.get("overhead"), "+.1f")}


@VIEW.table(
    "operators", title="Where a step's time goes, by operator", heading="Where a step's time goes, by operator", words=2
)
def operator_rows(samples: pd.DataFrame) -> Cells:
    """A profiler's pass of its own over steps at full resolution: time within each operator, without those it calls.

    On a GPU, of the kernels that it launched. The profiler slows a step, so shares are what holds.
    """
    for label, group in by_label(samples[samples["metric"] == "operator_time"]):
        by_operator = group.groupby("operator", sort=False, observed=True)[["value", "calls"]].mean()
        for name, row in by_operator.sort_values("value", ascending=False).iterrows():
            yield {
                **{"operator": str(name), "case": label, "ms a step": significant(1e3 * row["value"])},
                "share": f"{100 * row['value'] / by_operator['value'].sum():.1f}%",
                "calls a step": f"{row['calls']:g}",
            }


@VIEW.figure("phases", "Where a step's time goes")
def phase_breakdown(samples: pd.DataFrame) -> Figure | None:
    """Measured in a pass of its own."""
    parts: dict[str, dict[str, float]] = {}
    for label, means in phase_parts(samples).items():
        parts[escape(label)] = {name: means[name] for name in PHASES[:-1] if name in means}
        if "evaluation" in means:
            parts[f"{escape(label)} · evaluation"] = {"evaluation": means["evaluation"]}
    traces = []
    for name, colour in zip(PHASES, COLOURS, strict=False):
        own = {label: json_number(part[name]) for label, part in parts.items() if name in part}
        hover = f"{name}: %{{x:.3g}} ms<extra></extra>"
        traces += [bar(name, [*own.values()], [*own], colour, hover)] if own else []
    if not parts:
        return None
    overheads = samples.loc[samples["metric"] == "phase_overhead", "value"].dropna()
    cost = f"the timers cost {100 * overheads.median():+.1f}% a step, which the bars hold"
    cost = cost if len(overheads) else "the timers' overhead was not recorded"
    made = stacked_bars(traces, [*parts], "milliseconds for 1,000 images", 42)
    return made | {"caption": f"Measured in a pass of its own; {cost}."}
