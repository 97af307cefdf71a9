"""Statistics of the measurements: intervals, tests, and summaries that drop no miss."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wallclock.reports.store.read import CARRIED
from wallclock.reports.store.schema import PLACE, SAMPLE_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[np.float64]

# Columns that identify a measurement, besides the parameters and the settings of the environment.
KEYS = ("benchmark", "case", "variant", "arm", *PLACE, "recipe_hash")
TIMES = ("train_eval_s", "resident_s")
CONFIDENCE = 0.95  # of all intervals
STATISTICS = ("n", "failed", "censored", "median", "ci_low", "ci_high", "min", "max")


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    value: float
    low: float
    high: float


def median_interval(samples: npt.ArrayLike) -> Interval:
    """Returns the median and its distribution-free interval, from order statistics (exact binomial ranks).

    With too few samples for the confidence, the interval is the whole range.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    n = len(ordered)
    if n > 1000:  # the binomial is normal enough, and its exact sum is no longer cheap
        rank = math.floor((n + 1) / 2 - NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(n) / 2)
    else:
        rank, term, cumulative = 0, 1, 1
        while cumulative / 2**n <= (1 - CONFIDENCE) / 2:
            rank += 1
            term = term * (n - rank + 1) // rank
            cumulative += term
    low = max(0, rank - 1)
    return Interval(float(np.median(ordered)), float(ordered[low]), float(ordered[n - 1 - low]))


def bootstrap_interval(
    samples: npt.ArrayLike,
    statistic: Callable[[Array], Array] = lambda resamples: resamples.mean(axis=-1),
    *,
    resamples: int = 10_000,
) -> Interval:
    """Returns a statistic of the samples and its bias-corrected and accelerated (BCa) bootstrap interval.

    `statistic` maps [..., n] to [...]. With fewer than two distinct values the interval is unbounded.

    Source: Efron, Better Bootstrap Confidence Intervals, JASA 82 (1987).
    """
    return _bootstrapped(tuple(np.asarray(samples, dtype=np.float64).tolist()), statistic, resamples)


@functools.lru_cache(maxsize=256)  # tables and page ask for the same intervals
def _bootstrapped(samples: tuple[float, ...], statistic: Callable[[Array], Array], resamples: int) -> Interval:
    x = np.array(samples)
    value = float(statistic(x))
    if len(np.unique(x)) < 2:
        return Interval(value, -math.inf, math.inf)
    draws = np.random.default_rng(0).integers(0, len(x), (resamples, len(x)))
    drawn = np.sort(statistic(x[draws]))
    normal, below = NormalDist(), float(np.sum(drawn < value) + np.sum(drawn <= value)) / 2 / resamples
    bias = normal.inv_cdf(min(max(below, 1 / resamples), 1 - 1 / resamples))
    left_out = statistic(np.stack([np.delete(x, i) for i in range(len(x))]))
    deviation = left_out.mean() - left_out
    spread = 6 * np.sum(deviation**2) ** 1.5
    acceleration = np.sum(deviation**3) / spread if spread > 0 else 0.0
    ends = (bias + normal.inv_cdf((1 + side * CONFIDENCE) / 2) for side in (-1, 1))
    low, high = np.quantile(drawn, [normal.cdf(bias + z / (1 - acceleration * z)) for z in ends])
    return Interval(value, float(low), float(high))


def mean_reaches_p(values: npt.ArrayLike, target: float) -> float:
    """Returns the p-value of "the mean is below the target", by a one-sided t-test over one value for each run.

    It is small when the runs show that the target is reached. Fewer than two distinct values show nothing: NaN.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(np.unique(x)) < 2:
        return math.nan
    t = (x.mean() - target) / (x.std(ddof=1) / math.sqrt(len(x)))
    return _student_tail(float(t), len(x) - 1)


def _student_tail(t: float, freedom: int) -> float:
    """Returns P(T > t) of Student's t, without scipy.special, whose import alone would delay every report of seeds.

    Source: the incomplete beta function as a series of positive terms, DLMF 8.17.8.
    """

    def beta(x: float, a: float, b: float) -> float:
        term = math.exp(a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a + 1) - math.lgamma(b))
        total, n = term, 0
        while term > 1e-17 * total:
            term *= x * (a + b + n) / (a + 1 + n)
            total, n = total + term, n + 1
        return total

    of_square = t * t / (freedom + t * t)
    if of_square == 0:
        return 0.5
    if abs(t) < 3:  # takes the series that ends sooner; the difference loses no digit that counts here
        outside = 1 - beta(of_square, 0.5, freedom / 2)
    else:
        outside = beta(freedom / (freedom + t * t), freedom / 2, 0.5)
    return outside / 2 if t > 0 else 1 - outside / 2


def wilson_interval(hits: int, n: int) -> Interval:
    """Returns the share `hits` / `n`, with n at least 1, and its Wilson score interval.

    Source: Wilson, Probable Inference, JASA 22 (1927).
    """
    z, share = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def expected_time_to_target(times: npt.ArrayLike, reached: npt.ArrayLike, *, resamples: int = 10_000) -> Interval:
    """Returns the expected time until a run reaches the target, if each run that misses is followed by another.

    That is the time of all runs over the number of hits: a miss spends its budget and adds no hit, so it is censored
    and never dropped. The interval is a percentile bootstrap over runs; its upper end is infinite when more than the
    tail's share of resamples hold no hit at all. Without a hit the time is infinite; with a single run the interval is
    unbounded.
    """
    time, hit = np.asarray(times, dtype=np.float64), np.asarray(reached, dtype=bool)
    if not hit.any():
        return Interval(math.inf, float(time.sum()), math.inf)
    value = float(time.sum() / hit.sum())
    if len(time) < 2:
        return Interval(value, -math.inf, math.inf)
    draws = np.random.default_rng(0).integers(0, len(time), (resamples, len(time)))
    with np.errstate(divide="ignore"):
        drawn = np.sort(time[draws].sum(axis=1) / hit[draws].sum(axis=1))
    tail = (1 - CONFIDENCE) / 2
    low, high = drawn[math.floor(tail * (resamples - 1))], drawn[math.ceil((1 - tail) * (resamples - 1))]
    return Interval(value, float(low), float(high))


def parameter_columns(frame: "pd.DataFrame") -> list[str]:
    """Returns the columns of a samples frame that hold parameters and settings of the environment."""
    return [c for c in frame.columns if c not in SAMPLE_COLUMNS and c not in CARRIED and c != "run_id"]


def summarise(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Returns one row for each metric of each case in a frame of `reports.load`: number, median with interval, range.

    Warm-up samples are left out, and samples without a number count as `failed`.

    Returns:
        The columns that make the case, then `metric`, `unit`, `better`, `n`, `failed`, `censored`, `median`, `ci_low`,
        `ci_high`, `min`, `max`. The median of times with censored samples is a lower bound.
    """
    import pandas as pd

    steady = frame[frame["phase"] == "steady"]
    keys = [*KEYS, *parameter_columns(frame), "metric", "unit", "better"]
    keys = [k for k in keys if k in ("benchmark", "case", "metric", "unit", "better") or steady[k].nunique() > 0]
    # The keys of a row become one integer: pandas groups a million rows by it far faster than by a dozen columns.
    code = np.zeros(len(steady), dtype=np.int64)
    for key in keys:
        codes, distinct = pd.factorize(steady[key], use_na_sentinel=False)
        code = pd.factorize(code * max(1, len(distinct)) + codes)[0]
    values = steady["value"].to_numpy()
    censored = steady["censored"].fillna(False).to_numpy(dtype=bool)
    order = np.argsort(code, kind="stable")
    starts = np.flatnonzero(np.diff(code[order], prepend=-1))
    names = steady[keys].iloc[order[starts]].astype(object).to_dict("records")
    rows = []
    for name, group in zip(names, np.split(order, starts[1:]) if len(order) else [], strict=True):
        finite = values[group][np.isfinite(values[group])]
        row: dict[Any, Any] = {**name, "n": len(finite), "failed": len(group) - len(finite)}
        row["censored"] = int(censored[group].sum())
        if len(finite):
            middle = median_interval(finite)
            row |= {"median": middle.value, "ci_low": middle.low, "ci_high": middle.high}
            row |= {"min": finite.min(), "max": finite.max()}
        rows.append(row)
    return pd.DataFrame(rows, columns=[*keys, *STATISTICS])


def by_seed(scored: "pd.DataFrame") -> "pd.DataFrame":
    """Returns one row for each seed: a repeated seed is no new draw and adds no evidence.

    The samples are of one metric of one case; each without a `seed` gets its own row.

    Returns:
        `value` (mean; a diverged seed's missing value counts as 0), `reached` (by every repeat, so that running a seed
        again until it hits gains nothing), `diverged` (any repeat).
    """
    import pandas as pd

    seed = scored["seed"].astype("Int64").to_numpy(dtype="float64", na_value=math.nan)
    own = np.where(np.isnan(seed), -1.0 - np.arange(len(scored)), seed)
    parts = {
        "value": scored["value"].fillna(0.0).to_numpy(dtype=np.float64),
        "reached": scored["reached"].fillna(False).to_numpy(dtype=bool),
        "diverged": (scored["status"] == "diverged").to_numpy(dtype=bool),
    }
    return pd.DataFrame(parts).groupby(own).agg({"value": "mean", "reached": "all", "diverged": "any"})


def time_to_target(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Returns one row for each recipe, data set, target, machine and version in a frame of `reports.load`.

    Returns:
        The columns that make the case, `target` the last of them, then `n` (seeds, see `by_seed`), `repeats` (runs of
        a seed beyond its first), `hits`, `diverged`, `mean_accuracy` with `accuracy_low` and `accuracy_high`
        (bootstrap), `hit_share` with `hit_low` and `hit_high` (Wilson), `p_value` (the mean reaches the target), and
        for each clock the expected time to target `<clock>`, `<clock>_low`, `<clock>_high`; and `run_ids`.
    """
    import pandas as pd

    finals = frame[(frame["metric"] == "final_accuracy") & frame["target"].notna()]
    names = [*KEYS, *parameter_columns(frame), "target"]
    names = [k for k in names if k in ("benchmark", "case", "target") or finals[k].nunique() > 0]
    clocks = frame[frame["metric"].isin(TIMES)]
    rows = []
    for key, group in finals.groupby(names, dropna=False, sort=False, observed=True):
        seeds = by_seed(group)
        accuracy = seeds["value"].to_numpy()
        row: dict[str, Any] = dict(zip(names, key, strict=True))
        row |= {"n": len(seeds), "repeats": len(group) - len(seeds)}
        row |= {"hits": int(seeds["reached"].sum()), "diverged": int(seeds["diverged"].sum())}
        for name, interval in (
            (("mean_accuracy", "accuracy_low", "accuracy_high"), bootstrap_interval(accuracy)),
            (("hit_share", "hit_low", "hit_high"), wilson_interval(row["hits"], row["n"])),
        ):
            row |= dict(zip(name, (interval.value, interval.low, interval.high), strict=True))
        row["p_value"] = mean_reaches_p(accuracy, row["target"])
        row["run_ids"] = list(group["run_id"].unique())
        own = clocks[clocks["run_id"].isin(row["run_ids"])]
        same = ["run_id", "case", "variant", "arm", "seed"]
        for clock, times in own.groupby("metric"):
            timed = by_seed(times.merge(group[same], on=same))
            interval = expected_time_to_target(timed["value"], timed["reached"])
            row |= {str(clock): interval.value, f"{clock}_low": interval.low, f"{clock}_high": interval.high}
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else names)
