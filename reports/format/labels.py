"""Labels of cases: the shortest that tell the cases of one frame apart."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from wallclock.reports.format.text import percent, plain, present
from wallclock.reports.stats.intervals import KEYS, parameter_columns

# Columns that name a case. All others that make a case are shown only if cases of the same names differ in them.
NAMES = ("case", "variant", "arm", "dataset", "gpu_name")
# Columns that vary within one line or bar: parameters of a phase, and figures computed from its samples.
WITHIN = ("phase_name", "images", "ms", "elapsed_s", "operator", "calls")


def by_label(frame: pd.DataFrame, more: Sequence[str] = ()) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields the samples of each case under the shortest label that tells it from the others in the frame.

    `more` names further columns that tell cases apart.
    """
    if frame.empty:  # grouping an empty frame takes 20 ms, and a page asks a dozen times
        return
    keys = [*KEYS, *(c for c in parameter_columns(frame) if c not in WITHIN), *more]
    groups = list(frame.groupby(keys, dropna=False, sort=False, observed=True))
    cases = pd.DataFrame([key for key, _ in groups], columns=keys)
    names = ["case", *(k for k in (*NAMES[1:], *more) if k in cases and cases[k].nunique() > 1)]
    for (_, group), case, told in zip(groups, cases.to_dict("records"), distinctions(cases, names), strict=True):
        parts = [percent(case[k]) if k == "target" else plain(case[k]) for k in names if present(case[k])]
        yield " · ".join([*parts, *told]) or "unnamed", group


def distinctions(cases: pd.DataFrame, names: Sequence[str]) -> list[list[str]]:
    """Returns the differences of each case from the cases of the same names, as "column=value".

    The frame has one row for each case and no column of results. The columns `names` are always shown; the others are
    compared only among cases that agree in `names`.
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
                        short = column.removesuffix("_hash")
                        told[place].append(f"{short}={plain(value) if short == column else str(value)[:8]}")
    return told
