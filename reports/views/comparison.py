"""Verdicts on base and head: from the rounds of a comparison, or from runs stored at different times."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from wallclock.reports.format.plotly import Figure, nth_colour, ratio_dots
from wallclock.reports.format.text import Rows, arrow, interval_text, plain, present, significant
from wallclock.reports.stats.intervals import parameter_columns
from wallclock.reports.stats.verdicts import (
    Array,
    Differences,
    Rule,
    decide,
    detectable,
    found_paired,
    found_unpaired,
    judge_paired,
    judge_unpaired,
)
from wallclock.reports.store.schema import PLACE
from wallclock.reports.views.view import View

if TYPE_CHECKING:
    import pandas as pd

BENCHMARK = "comparison"
BASE, HEAD, AGAIN = "base", "head", "base again"
# Metrics of a whole process that are judged only where a benchmark names them; once, its CPU time was one of them.
CONTEXT = ("process_peak_bytes",)
CONTEXT_BEFORE = ("process_cpu_s", *CONTEXT)
SPENT = "error_spent"  # metric of a look: the share of the error rate that it may use, after so many rounds
# Units of counts: the same code gives the same count, so one figure is enough.
COUNTED = ("count", "instructions", "allocated bytes")
COLUMNS = (
    *("benchmark", "metric", "unit", "better", "rounds", "base", "head", "ratio", "ratio_low", "ratio_high"),
    *("p_worse", "p_better", "detectable", "again_ratio", "tolerance", "verdict", "reason"),
)

VIEW = View((BENCHMARK,), tabled=(BENCHMARK,))


def rule_of(request: dict[str, Any], benchmark: str) -> Rule:
    """Returns the rule in a comparison's request for one of its benchmarks."""
    named = {k: v for k, v in request["rule"].items() if k in ("tolerance", "error_rate", "power", "spend")}
    own = request.get("tolerances", {}).get(benchmark)
    return Rule(**(named if own is None else {**named, "tolerance": own}))


@VIEW.summary("comparisons", "a row a comparison, as `compare` prints it")
def comparison_summary(samples: "pd.DataFrame", runs: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the verdicts of all comparisons in the frames, one row for each metric of each benchmark.

    Returns:
        `run_id` and `COLUMNS`: `base` and `head` medians, `ratio` head / base with its interval at the error rate,
        `detectable` the smallest worsening that so many rounds would have found (a share), `again_ratio` that of the
        base measured twice, `verdict` and `reason`.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for run_id, request in zip(runs["run_id"], runs["request"], strict=True):
        if request.get("benchmark") == BENCHMARK:  # also for a run in which nothing could be measured
            rows += [{"run_id": run_id, **row} for row in judge_rounds(samples[samples["run_id"] == run_id], request)]
    return pd.DataFrame(rows, columns=["run_id", *COLUMNS])


def judge_rounds(samples: "pd.DataFrame", request: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the verdicts of one comparison, from the samples and the request of its run."""
    rows = []
    if "attempt" in samples:  # after an interruption, rounds are measured again
        attempts = samples["attempt"].fillna(0)
        last = attempts.groupby([samples["case"], samples["phase"], samples["round"]], observed=True).transform("max")
        samples = samples[(attempts == last) | samples["round"].isna()]
    failed = {*samples.loc[samples["status"] == "failed", "case"]}
    looks = samples[samples["metric"] == SPENT].groupby("case", observed=True).last()
    for (name, metric), group in samples[samples["metric"] != SPENT].groupby(
        ["case", "metric"], sort=False, observed=True
    ):
        if name in failed and not (group["status"] == "failed").any():  # one row says so
            continue
        asked = request.get("metrics", {}).get(name) or ()
        unasked = metric not in asked if asked else metric in request.get("context", CONTEXT_BEFORE)
        if unasked and not (group["status"] == "failed").any():  # a failure is reported in any case
            continue
        rule, share = rule_of(request, str(name)), 1.0
        if rule.spend:
            share = float(looks["value"].get(name, 0.0))
        rows.append(_row(group, str(name), rule, share, looks["round"].get(name, math.inf)))
    apart = {name: ("invalid", why) for name, why in request.get("invalid", {}).items()}
    apart |= {name: ("added", f"only the {HEAD} declares it") for name in request.get("added", ())}
    apart |= {name: ("removed", f"only the {BASE} declares it") for name in request.get("removed", ())}
    for name, (verdict, why) in apart.items():
        rows.append({"benchmark": name, "metric": "process_s", "verdict": verdict, "reason": why})
    return _decided(rows, rule_of(request, ""))


def _row(group: "pd.DataFrame", name: str, rule: Rule, share: float, end: float) -> dict[str, Any]:
    """Returns a row for one metric of one benchmark: `differences` where it can be judged, else a verdict.

    A look may use `share` of the error rate, and has seen the rounds before `end`.
    """
    row: dict[str, Any] = {k: str(group[k].iloc[0]) for k in ("metric", "unit", "better")}
    row |= {"benchmark": name, "tolerance": rule.tolerance}
    steady = group[(group["phase"] == "steady") & (group["round"].fillna(0) < end)]
    # The median of what a process printed in a round is the unit of the statistics.
    base, head, again = (steady[steady["arm"] == arm].groupby("round")["value"].median() for arm in (BASE, HEAD, AGAIN))
    row |= {"base": float(base.median()), "head": float(head.median())}
    if (failed := group[group["status"] == "failed"]).size:
        one = failed.iloc[0]
        return row | {"verdict": "invalid", "reason": f"failed: {one['arm']}, {one['error']}"}
    if "throttled" in steady and (slowed := steady[steady["throttled"].notna()]).size:
        clocks = steady["sm_clock_mhz"]
        return row | {
            "verdict": "invalid",
            "reason": f"throttled: {slowed['throttled'].iloc[0]} in {len(slowed)} of {len(steady)} turns, at "
            f"{clocks.min():,.0f} to {clocks.max():,.0f} MHz",
        }
    if group["phase"].eq("warm-up").all() and {BASE, HEAD} <= set(group["arm"]):
        return row | {"verdict": "inconclusive", "reason": "too_few_rounds: none"}
    for column in ("unit", "better") if len(base) and len(head) else ():
        of = {arm: sorted(set(steady.loc[steady["arm"] == arm, column])) for arm in (BASE, HEAD)}
        if of[BASE] != of[HEAD] or len(of[BASE]) > 1:
            told = " and ".join(f"{', '.join(values)} on the {arm}'s side" for arm, values in of.items())
            return row | {"verdict": "invalid", "reason": f"other_figures: {column} is {told}"}
    if settled := _settled(np.asarray(base, np.float64), np.asarray(head, np.float64), row, rule):
        return row | settled
    sign = 1 if row["better"] == "lower" else -1
    both, twice = (base.index.intersection(other.index) for other in (head, again))
    if not len(both):
        return row | {"verdict": "inconclusive", "reason": "too_few_rounds: none in which both sides printed it"}
    differences = sign * np.log(head[both].to_numpy() / base[both].to_numpy())
    row |= {"share": share, "rounds": len(both)}
    (row["differences"],) = judge_paired(differences, rule, share)
    row["detectable"] = detectable(found_paired(differences, rule, share), rule)
    if len(twice):
        (row["same"],) = judge_paired(sign * np.log(again[twice].to_numpy() / base[twice].to_numpy()), rule, share)
        row["again_ratio"] = math.exp(sign * row["same"].value)
    return row


def _settled(base: Array, head: Array, row: dict[str, Any], rule: Rule) -> dict[str, Any]:
    """Returns the verdict on two sides that need no statistics; empty if they need some."""
    if not len(base) or not len(head):
        verdict, side = ("removed", BASE) if len(base) else ("added", HEAD)
        return {"verdict": verdict, "reason": f"only the {side} has it"}
    if row["unit"] in COUNTED:
        return _counted(base, head, row["better"], rule.tolerance)
    if not base.any() and not head.any():
        return {"rounds": min(len(base), len(head)), "verdict": "equivalent", "reason": "zero_on_both_sides"}
    if (base <= 0).any() or (head <= 0).any():
        return {"verdict": "invalid", "reason": "not_positive: a ratio needs figures above zero"}
    return {}


def _counted(base: Array, head: Array, better: str, tolerance: float) -> dict[str, Any]:
    """Compares counts, which do not vary: all counts of either side, without statistics."""
    low, high = base.min(), base.max()
    up, down = head.min() > high * (1 + tolerance), head.max() < low * (1 - tolerance)
    ratio = math.nan if np.median(base) == 0 else float(np.median(head) / np.median(base))
    if base.min() == head.min() and base.max() == head.max():
        ratio = 1.0
    made = {"rounds": min(len(base), len(head)), "ratio": ratio}
    if up or down:
        worse = up == (better == "lower")
        return made | {"verdict": "regressed" if worse else "improved", "reason": "counted_beyond_tolerance"}
    if head.max() <= high * (1 + tolerance) and head.min() >= low * (1 - tolerance):
        return made | {"verdict": "equivalent", "reason": "counted_within_tolerance"}
    return made | {"verdict": "inconclusive", "reason": "counts_overlap: they vary from round to round"}


def _decided(rows: list[dict[str, Any]], rule: Rule) -> list[dict[str, Any]]:
    """Decides all rows that can be judged at once, so that false discoveries stay rare among them.

    First the fitness of the machine: the base against itself, by the same rule as the head against the base.
    """
    twice = [row for row in rows if "same" in row]
    fitness = decide([row.pop("same") for row in twice], rule, [row["share"] for row in twice])
    for row, (verdict, _) in zip(twice, fitness, strict=True):
        if verdict in ("regressed", "improved"):
            unfit = f"runner_unfit: the base differs from itself, ratio {row['again_ratio']:.3f}"
            row |= {"verdict": "invalid", "reason": unfit}
    open_rows = [row for row in rows if "differences" in row and "verdict" not in row]
    verdicts = decide([row["differences"] for row in open_rows], rule, [row["share"] for row in open_rows])
    for row, (verdict, reason) in zip(open_rows, verdicts, strict=True):
        row |= {"verdict": verdict, "reason": reason}
    for row in rows:
        if (differences := row.pop("differences", None)) is not None:
            row |= _ratios(differences, row["better"])
    return rows


def _ratios(differences: Differences, better: str) -> dict[str, Any]:
    """Returns the differences as ratios head / base of the metric."""
    d = differences
    value, low, high = (d.value, d.low, d.high) if better == "lower" else (-d.value, -d.high, -d.low)
    return {
        "ratio": _exp(value),
        "ratio_low": _exp(low),
        "ratio_high": _exp(high),
        "p_worse": d.p_worse,
        "p_better": d.p_better,
    }


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def stored_summary(base: "pd.DataFrame", head: "pd.DataFrame", rule: Rule) -> "pd.DataFrame":
    """Returns the verdicts between runs stored at different times; the unit is the run, or the seed of a training.

    The samples of one process do not show how far processes differ, so that a single run on either side is never
    enough for a verdict.

    Returns:
        `COLUMNS`, one row for each metric of each case.

    Raises:
        ValueError: if they were measured in different places; names what differs.
    """
    import pandas as pd

    refuse_other_places(base, head)
    sides = [dict(_stored_units(frame)) for frame in (base, head)]
    rows: list[dict[str, Any]] = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        name, metric, unit, better = key
        row: dict[str, Any] = {"benchmark": name, "metric": metric, "unit": unit, "better": better}
        row["tolerance"] = rule.tolerance
        own = [side.get(key, np.empty(0)) for side in sides]
        for side, values in zip((BASE, HEAD), own, strict=True):
            row[side] = float(np.median(values)) if len(values) else math.nan
        if settled := _settled(own[0], own[1], row, rule):
            row |= settled
        else:
            sign = 1 if better == "lower" else -1
            before, after = (sign * np.log(values) for values in own)
            row |= {"differences": judge_unpaired(before, after, rule), "share": 1.0}
            row["rounds"] = min(map(len, own))
            row["detectable"] = detectable(found_unpaired(before, after, rule), rule)
        rows.append(row)
    return pd.DataFrame(_decided(rows, rule), columns=list(COLUMNS))


def _stored_units(frame: "pd.DataFrame") -> Iterator[tuple[tuple[str, str, str, str], Array]]:
    """Yields each metric of each case with one figure for every run, or for every seed; a miss is infinitely slow."""
    steady = frame[(frame["phase"] == "steady") & ~frame["metric"].isin(CONTEXT_BEFORE)]
    steady = steady[np.isfinite(steady["value"].to_numpy()) | steady["censored"].fillna(False).to_numpy(dtype=bool)]
    names = ["benchmark", "case", "variant", *parameter_columns(frame)]
    names = [name for name in names if steady[name].nunique(dropna=False) > 1 or name == "benchmark"]
    for key, group in steady.groupby([*names, "metric", "unit", "better"], dropna=False, sort=False, observed=True):
        missed = group["censored"].fillna(False).to_numpy(dtype=bool) & (group["better"] == "lower").to_numpy()
        values = group.assign(value=np.where(missed, np.inf, group["value"]))
        units = values.groupby(["run_id", "seed"], dropna=False, observed=True)["value"].median()
        name = " ".join(plain(part) for part in key[:-3] if present(part))
        yield (name, *map(str, key[-3:])), units.to_numpy(dtype=np.float64)  # type: ignore[misc]


def refuse_other_places(base: "pd.DataFrame", head: "pd.DataFrame") -> None:
    """Refuses to compare figures from two machines or two versions of torch.

    Raises:
        ValueError: if the places differ; names what differs.
    """
    for column in (c for c in PLACE if c != "source_hash"):
        sides = [sorted({str(v) for v in frame[column].dropna().unique()}) for frame in (base, head)]
        if sides[0] != sides[1]:
            told = " and ".join(", ".join(side) or "none" for side in sides)
            raise ValueError(f"they were measured apart: {column} is {told}; measure both sides in one place")


@VIEW.table("comparisons", title="Head against base: ratios of medians of rounds, with intervals", heading="Verdicts")
def comparison_rows(comparisons: "pd.DataFrame") -> Rows:
    """Medians of rounds.

    The ratio is Hodges and Lehmann's over paired rounds, its interval and the test are Wilcoxon's signed ranks. Finds:
    the smallest worsening that so many rounds, as noisy as these, would have found four times in five. Verdicts hold
    for all rows together: of those called regressed or improved, at most one in twenty is false on average.
    """
    header = ["benchmark", "base", "head", "head / base", "finds", "verdict"]
    rows = []
    # Comparisons of commands share the names of their figures; the last part of a run's name tells them apart.
    shared = comparisons.duplicated(["benchmark", "metric"], keep=False) & ("run_id" in comparisons)
    for row, of_several in zip(comparisons.to_dict("records"), shared, strict=True):
        unit = row["unit"] if present(row["unit"]) else ""
        figures = [f"{significant(row[side])}" if present(row[side]) else "" for side in (BASE, HEAD)]
        ratio = f"{row['ratio']:.3f}" if present(row["ratio"]) else ""
        finds = row["detectable"]
        rounds = f"\n{row['rounds']:g} rounds" if present(row["rounds"]) else ""
        which = f"\nrun {row['run_id'][-8:]}" if of_several else ""
        reason, _, detail = str(row["reason"]).partition(": ")
        rows.append(
            [
                f"{row['benchmark']}\n{row['metric']} {arrow(row['better'])}, {unit}{which}",
                *figures,
                "\n".join(part for part in (ratio, interval_text(row["ratio_low"], row["ratio_high"])) if part),
                (f"{100 * finds:.1f}%" if present(finds) and math.isfinite(finds) else "") + rounds,
                "\n".join(part for part in (row["verdict"], detail or reason.replace("_", " ")) if part),
            ]
        )
    return header, rows


@VIEW.figure("ratios", "Head against base")
def ratios(comparisons: "pd.DataFrame") -> Figure | None:
    """The unit is the round: each side once, in fresh processes, in a drawn order.

    An interval that touches the band is no proof of a change beyond the tolerance.
    """
    shown = comparisons[
        comparisons["ratio_low"].notna() & (comparisons["ratio_low"] > 0) & (comparisons["ratio_high"] < 100)
    ]
    if shown.empty:
        return None
    figure = ratio_dots(shown, "ratio", ("benchmark", "metric"), "verdict", "head / base; the band is the tolerance")
    widest = max(shown["tolerance"])
    figure["layout"]["shapes"].insert(
        0,
        {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "x0": 1 / (1 + widest), "x1": 1 + widest}
        | {"line": {"width": 0}, "fillcolor": nth_colour(0), "opacity": 0.12, "layer": "below"},
    )
    return figure
