"""Cards at the top of the page: a verdict on each recipe and target, with the statistics behind it."""

import math
from typing import Any

import pandas as pd

from wallclock.reports.format.labels import NAMES, distinctions
from wallclock.reports.format.text import interval_text, percent, percent_interval, present, significant, stack_lines
from wallclock.reports.views.accuracy import CLOCK

WHERE = ("variant", "dataset", "device", "gpu_name", "cpu", "host")


def score_cards(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns a card for each row of the leaderboard: one for each recipe and target."""
    cards = []
    distinguished = distinctions(scores.loc[:, :"target"], [*NAMES, "target"])
    for row, told in zip(scores.to_dict("records"), distinguished, strict=True):
        target, n, hits = row["target"], row["n"], row["hits"]
        p, time = row["p_value"], row.get(CLOCK, math.inf)
        if not hits:
            kind, word = "bad", "target missed"
            reason = f"No run of {n} reached {percent(target)}: the time to target is unknown."
        elif p < 0.05:
            kind, word = "good", "mean at or above target"
            reason = f"The runs show that the mean accuracy is at least {percent(target)} (p = {significant(p)})."
        else:
            kind, word = "open", "not shown"
            why = f"p = {significant(p)}" if p == p else "a test needs two different results"
            reason = f"{n} run{'s do' if n > 1 else ' does'} not show a mean accuracy of at least {percent(target)} "
            reason += f"({why})."
        diverged = f"{row['diverged']} diverged (0%)" if row["diverged"] else ""
        repeated = f"{row['repeats']} repeated" if row["repeats"] else ""
        details = [
            ("Reached", stack_lines(f"{hits} of {n}", diverged, repeated)),
            ("P(reach)", f"{100 * row['hit_share']:.0f}%\n{percent_interval(row['hit_low'], row['hit_high'], 0)}"),
            (
                "Mean accuracy",
                f"{100 * row['mean_accuracy']:.2f}%\n{percent_interval(row['accuracy_low'], row['accuracy_high'])}",
            ),
            ("p (mean ≥ target)", significant(p, 2)),
        ]
        cards.append(
            {
                "name": row["case"] or row["benchmark"],
                "where": " · ".join([*(str(row[k]) for k in WHERE if present(row.get(k))), *told]),
                "target": percent(target),
                "kind": kind,
                "word": word,
                "reason": reason,
                "time": f"{significant(time)} s" if time < math.inf else "unknown",
                "interval": interval_text(row.get(f"{CLOCK}_low"), row.get(f"{CLOCK}_high"), " s"),
                "details": details,
            }
        )
    return cards
