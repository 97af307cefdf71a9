"""Calibration of the verdicts: comparisons whose truth is known, simulated or measured, and their verdicts."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wallclock.reports.format.text import Cells, present
from wallclock.reports.stats.intervals import wilson_interval
from wallclock.reports.stats.verdicts import (
    LOOKS,
    Array,
    Rule,
    decide,
    detectable,
    discoveries,
    early_share,
    found_paired,
    judge_paired,
    spent_share,
)
from wallclock.reports.views.comparison import AGAIN, BASE, HEAD
from wallclock.reports.views.view import View

if TYPE_CHECKING:
    import pandas as pd

BENCHMARK = "calibration"
RESAMPLED = 100  # comparisons whose rounds are resampled, for the power that is stated
TOGETHER = 20  # simulated or measured comparisons that count as the benchmarks of one gate
FIGURES = (
    *("comparisons", "regressed", "improved", "unfit", "regressed_of_many", "improved_of_many"),
    *("regressed_in_looks", "improved_in_looks", "stated_power", "printed_detectable", "true_detectable"),
)

VIEW = View((BENCHMARK,), tabled=(BENCHMARK,))


def tally_verdicts(base: Array, head: Array, again: Array, planted: float, rule: Rule) -> dict[str, float]:
    """Counts the verdicts on comparisons with one known truth.

    Times of base, head and the base's second turn are [comparisons, rounds]; the head is truly slower by the share
    `planted`.

    Returns:
        `FIGURES`: `comparisons`; how many are `regressed` and `improved`, each judged alone, and `unfit`: the base
        differs from itself, which excludes both verdicts; `_of_many`, judged in groups of `TOGETHER` as the benchmarks
        of one gate; `_in_looks`, looked at during the rounds until one is clear; `stated_power` to find what was
        planted; the worsening that the rows print as detectable, and the one that is truly found with the rule's power
        in such noise.
    """
    d, same = np.log(head / base), np.log(again / base)
    rows = judge_paired(d, rule)
    fit = [decide([row], rule)[0][0] not in ("regressed", "improved") for row in judge_paired(same, rule)]
    alone = [decide([row], rule)[0][0] if ok else "unfit" for row, ok in zip(rows, fit, strict=True)]
    many: list[str] = []
    for start in range(0, len(rows), TOGETHER):
        part = rows[start : start + TOGETHER]
        standing = discoveries([row.p for row in part], rule.error_rate)
        many += [
            "unfit" if not ok else "" if not stands else "regressed" if row.p_worse < row.p_better else "improved"
            for row, stands, ok in zip(part, standing, fit[start : start + TOGETHER], strict=True)
        ]
    looked = _judged_in_looks(d, rule)
    found = [found_paired(row, rule) for row in d[:RESAMPLED]]
    return {
        "comparisons": len(rows),
        **{name: alone.count(name) for name in ("regressed", "improved", "unfit")},
        **{f"{name}_of_many": many.count(name) for name in ("regressed", "improved")},
        **{f"{name}_in_looks": looked.count(name) for name in ("regressed", "improved")},
        "stated_power": float(np.mean([np.mean(worsenings <= planted) for worsenings in found])),
        "printed_detectable": float(np.median([detectable(worsenings, rule) for worsenings in found])),
        "true_detectable": _found_with_power(d - math.log1p(planted), rule),
    }


def _judged_in_looks(d: Array, rule: Rule) -> list[str]:
    """Returns the first verdict on each comparison's rounds, or "inconclusive", looked at as time goes by."""
    verdicts, spent, rounds = ["inconclusive"] * len(d), 0.0, d.shape[1]
    looks = [(n, early_share(n)) for n in range(1, rounds) if early_share(n)]
    for elapsed in (*LOOKS, 1.0):
        looks.append((math.ceil(elapsed * rounds), spent_share(elapsed, rule) - spent))
        spent = spent_share(elapsed, rule)
    for n, share in sorted(looks):
        for number, row in enumerate(judge_paired(d[:, :n], rule, share)):
            if verdicts[number] == "inconclusive":
                verdicts[number] = decide([row], rule, [share])[0][0]
    return verdicts


def _found_with_power(d: Array, rule: Rule) -> float:
    """Returns the worsening that is found with the rule's power when it is added to differences without a change."""
    low, high = 0.0, 20 * float(np.std(d)) + math.log1p(rule.tolerance)
    for _ in range(16):
        middle = (low + high) / 2
        found = [row.p <= rule.error_rate and row.p_worse < row.p_better for row in judge_paired(d + middle, rule)]
        low, high = (middle, high) if np.mean(found) < rule.power else (low, middle)
    return math.expm1(high)


@VIEW.summary("calibration", "a row a kind of noise: how many verdicts were false, power stated and true")
def calibration_summary(samples: "pd.DataFrame", runs: "pd.DataFrame") -> "pd.DataFrame":
    """Returns one row for each kind of noise and planted worsening: `noise`, `planted`, and `FIGURES`."""
    import pandas as pd

    own = samples[samples["benchmark"] == BENCHMARK]
    rows: list[dict[str, Any]] = []
    for run_id, run in own.groupby("run_id", sort=False, observed=True):
        request = runs.loc[runs["run_id"] == run_id, "request"].iloc[0]
        rule = Rule(**request["rule"])
        simulated = run[run["metric"] != "process_s"].groupby(["case", "planted"], sort=False, observed=True)
        for (noise, planted), part in simulated:
            figures = dict(zip(part["metric"], part["value"], strict=True))
            rows.append({"noise": noise, "planted": float(str(planted)), **figures})
        for (noise, planted), part in run[run["metric"] == "process_s"].groupby(["case", "planted"], sort=False):
            planted = float(str(planted))
            sides = _measured(part[part["phase"] == "steady"])
            if sides is not None:
                rows.append({"noise": noise, "planted": planted, **tally_verdicts(*sides, planted, rule)})
    made = pd.DataFrame(rows, columns=["noise", "planted", *FIGURES])
    order = {noise: place for place, noise in enumerate(dict.fromkeys(made["noise"]))}
    return made.sort_values(["noise", "planted"], key=lambda c: c.map(order) if c.name == "noise" else c)


def _measured(samples: "pd.DataFrame") -> tuple[Array, Array, Array] | None:
    """Returns times of base, head and base again, [comparisons, rounds], of the complete comparisons; else None."""
    wide = samples.pivot_table(index="comparison", columns=["arm", "round"], values="value", observed=True).dropna()
    if wide.empty or not {BASE, HEAD, AGAIN} <= set(wide.columns.get_level_values(0)):
        return None
    base, head, again = (wide[arm].to_numpy() for arm in (BASE, HEAD, AGAIN))
    return base, head, again


@VIEW.table(
    "calibration",
    title="Verdicts whose truth is known: alone, of 20 at once, in looks; power stated",
    heading="Do the verdicts hold?",
)
def calibration_rows(calibration: "pd.DataFrame") -> Cells:
    """Comparisons whose truth is known: of a program with itself, and with one that was slowed by a known share.

    Shares of n with 95% intervals; those regressed, and improved, when 20 are judged at once, and when each is looked
    at five times until it is clear; the chance of finding what was planted, as stated; the smallest worsening that the
    rows say they find, above the one that is found in truth.
    """
    for row in calibration.to_dict("records"):
        n = int(row["comparisons"])
        found = wilson_interval(int(row["regressed"]), n)
        yield {
            **{"noise": str(row["noise"]), "slower": f"{100 * row['planted']:g}%"},
            "n": f"{n}" + (f"\n{row['unfit']:g} unfit" if row["unfit"] else ""),
            "regressed": f"{100 * found.value:.1f}%\n[{100 * found.low:.1f}, {100 * found.high:.1f}]",
            "improved": f"{100 * row['improved'] / n:.1f}%",
            "of 20": f"{100 * row['regressed_of_many'] / n:.1f}%\n{100 * row['improved_of_many'] / n:.1f}%",
            "looks": f"{100 * row['regressed_in_looks'] / n:.1f}%\n{100 * row['improved_in_looks'] / n:.1f}%"
            if present(row["regressed_in_looks"])  # older simulations have none
            else "",
            "stated": f"{100 * row['stated_power']:.0f}%",
            "finds": f"{100 * row['printed_detectable']:.1f}%\n{100 * row['true_detectable']:.1f}%",
        }


def false_verdicts(summary: "pd.DataFrame", rule: Rule) -> Sequence[str]:
    """Returns messages about excess false verdicts, which claim a change where it is no larger than the tolerance.

    A message means that even the lower end of the share's interval lies above the rule's error rate.
    """
    found, allowed = [], rule.error_rate
    for row in summary[summary["planted"] <= rule.tolerance].to_dict("records"):
        n = int(row["comparisons"])
        for words, count in (
            ("each alone", row["regressed"] + row["improved"]),
            ("many at once", row["regressed_of_many"] + row["improved_of_many"]),
            ("looked at often", row["regressed_in_looks"] + row["improved_in_looks"]),
        ):
            if wilson_interval(int(count), n).low > allowed:
                found.append(f"{row['noise']}, {words}: {count:g} of {n} are false")
    return found
