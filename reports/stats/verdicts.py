"""Verdicts on "is it slower?": tests and intervals over rounds, by ranks.

The unit is the round, in which base and head are measured once, close together. A difference d is ln(head / base), its
sign reversed where higher is better, so that positive is worse. Order statistics decide: interval and test agree by
construction, a single wild round moves neither far, and a run that missed its target counts as worse than any that
reached it, without an invented number.

Paired rounds use Wilcoxon's signed-rank distribution over the averages of every two differences (Walsh averages); runs
stored apart use the Mann-Whitney distribution over all differences between a head's and a base's run. Both are exact.

Sources: Hodges and Lehmann, Estimates of Location Based on Rank Tests (1963); Benjamini and Hochberg, Controlling the
False Discovery Rate (1995); Schuirmann's two one-sided tests for equivalence (1987).
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Verdict = Literal["regressed", "improved", "equivalent", "inconclusive", "invalid", "added", "removed"]
EXACT_UP_TO = 60  # runs up to which the tail is exact; above, the normal approximation is good to three digits
FIRST_LOOK, LOOKS_APART = 6, 1.5


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Settings of the verdicts.

    Attributes:
        tolerance: largest change, as a share, that does not matter; a verdict is about more than it.
        error_rate: chance of a false `regressed` or `improved` for one benchmark; the false discovery rate for many.
        power: chance of finding a worsening of the detectable size.
        spend: whether rounds may be added until the verdict is clear; each look may then use only its share of the
            error rate, see `share_of_look`.
    """

    tolerance: float = 0.02
    error_rate: float = 0.05
    power: float = 0.8
    spend: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance}; expected a share from 0 to below 1, such as 0.02 for 2%")
        if not 0 < self.error_rate < 0.5 or not 0.5 <= self.power < 1:
            raise ValueError(
                f"error_rate is {self.error_rate} and power {self.power}; expected 0 to 0.5, and 0.5 to 1, such as "
                "0.05 and 0.8"
            )


@dataclass(frozen=True)
class Differences:
    """Statistics of one benchmark's differences. Shares are natural logarithms; positive is worse.

    Attributes:
        n: number of rounds, or of runs on the smaller side.
        tolerance: tolerance of the rule, as a logarithm.
        value: Hodges-Lehmann estimate of the difference.
        low: lower end of the interval at the rule's error rate.
        high: upper end of the interval at the rule's error rate.
        inner_low: lower end of the interval that must lie within the tolerance for `equivalent` (90% at a rate of 5%).
        inner_high: upper end of that inner interval.
        p_worse: one-sided p-value of "it is not worse by more than the tolerance".
        p_better: one-sided p-value of "it is not better by more than the tolerance".
        detectable: smallest worsening that as many rounds, as noisy as these, find with the rule's power.
    """

    n: int
    tolerance: float
    value: float
    low: float
    high: float
    inner_low: float
    inner_high: float
    p_worse: float
    p_better: float
    detectable: float

    @property
    def p(self) -> float:
        """Two-sided p-value of "it differs by no more than the tolerance"."""
        return min(1.0, 2 * min(self.p_worse, self.p_better))


def share_of_look(rounds: int, rule: Rule) -> float:
    """Returns the share of the error rate that a look after `rounds` rounds may use.

    With `rule.spend` looks are taken after 6, 9, 14, 21, ... rounds, each time half as many again. The k-th may use
    1 / (k (k + 1)) of the error rate: 1/2, 1/6, 1/12, ... Any number of shares adds up to less than one, so repeated
    looks err no more often than a single look (a union bound, which assumes nothing about how the looks depend on each
    other).
    """
    if not rule.spend:
        return 1.0
    look, at = 1, FIRST_LOOK
    while at < rounds:  # a stop between two looks counts as the next one
        look, at = look + 1, next_look(at)
    return 1 / (look * (look + 1))


def next_look(rounds: int) -> int:
    """Returns the number of rounds after which to look again."""
    return FIRST_LOOK if rounds < FIRST_LOOK else math.ceil(LOOKS_APART * rounds)


def stated_power(row: Differences, worsening: float, rule: Rule) -> float:
    """Returns the chance that rounds as noisy as these find a worsening (a share), as implied by `row.detectable`."""
    from scipy.special import stdtr, stdtrit

    freedom = max(1, row.n - 1)
    t_level = -stdtrit(freedom, rule.error_rate * share_of_look(row.n, rule) / 2)
    error = (row.detectable - row.tolerance) / (t_level + stdtrit(freedom, rule.power))
    return float(stdtr(freedom, (math.log1p(worsening) - row.tolerance) / error - t_level)) if error > 0 else 1.0


def rounds_needed(benchmarks: int, rule: Rule) -> int:
    """Returns the number of rounds below which even the clearest result may be chance among so many benchmarks."""
    return max(FIRST_LOOK, math.ceil(math.log2(2 * benchmarks / rule.error_rate)))


@functools.cache
def _signed_rank_tail(n: int) -> Array:
    """Returns P(W >= w) for w from 0 to n (n + 1) / 2 + 1, both signs being equally likely."""
    total = n * (n + 1) // 2
    if n > EXACT_UP_TO:
        return _normal_tail(total, n * (n + 1) * (2 * n + 1) / 24)
    chance = np.zeros(total + 1)
    chance[0] = 1.0
    for rank in range(1, n + 1):
        moved = np.zeros_like(chance)
        moved[rank:] = chance[:-rank]
        chance = (chance + moved) / 2
    return np.append(np.cumsum(chance[::-1])[::-1], 0.0)


@functools.cache
def _rank_sum_tail(n: int, m: int) -> Array:
    """Returns P(U >= u) for u from 0 to n m + 1, all orders of the n and the m being equally likely."""
    total = n * m
    if max(n, m) > EXACT_UP_TO:
        return _normal_tail(total, total * (n + m + 1) / 12)
    counts = [0] * (total + 1)
    counts[0] = 1
    for i in range(1, min(n, m) + 1):  # the Gaussian binomial coefficient, in whole numbers
        step = max(n, m) + i
        for u in range(total, step - 1, -1):
            counts[u] -= counts[u - step]
        for u in range(i, total + 1):
            counts[u] += counts[u - i]
    orders = math.comb(n + m, n)
    return np.append(np.cumsum(np.array([count / orders for count in counts])[::-1])[::-1], 0.0)


def _normal_tail(total: int, variance: float) -> Array:
    from scipy.special import ndtr

    w = np.arange(total + 2)
    return np.asarray(ndtr(-(w - 0.5 - total / 2) / math.sqrt(variance)), dtype=np.float64)


def walsh_averages(differences: npt.ArrayLike) -> Array:
    """Returns the sorted averages of every two of [..., n] differences, each with itself too: [..., n (n + 1) / 2].

    An infinity stands for a side that missed; the average of two opposite ones is zero.
    """
    d = np.asarray(differences, dtype=np.float64)
    first, second = np.triu_indices(d.shape[-1])
    with np.errstate(invalid="ignore"):
        averages = (d[..., first] + d[..., second]) / 2
    return np.sort(np.nan_to_num(averages, nan=0.0, posinf=np.inf, neginf=-np.inf), axis=-1)


def judge_paired(differences: npt.ArrayLike, rule: Rule) -> list[Differences]:
    """Judges each comparison by its rounds, in which base and head were measured together.

    The differences are ln(head / base) of each round, positive where worse, [n] or [comparisons, n].
    """
    d = np.atleast_2d(np.asarray(differences, dtype=np.float64))
    n = d.shape[-1]
    return _judge(walsh_averages(d), _signed_rank_tail(n), n, n - 1, np.sqrt(_variance(d) / n), rule)


def judge_unpaired(base: npt.ArrayLike, head: npt.ArrayLike, rule: Rule) -> Differences:
    """Judges base and head runs that were made at different times, such as stored ones.

    Each side is the logarithms of its runs, with signs reversed where higher is better; infinity for a miss.
    """
    b, h = np.asarray(base, dtype=np.float64), np.asarray(head, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        between = (h[:, None] - b[None, :]).ravel()
    ordered = np.sort(np.nan_to_num(between, nan=0.0, posinf=np.inf, neginf=-np.inf))
    n, freedom = min(len(b), len(h)), len(b) + len(h) - 2
    error = np.sqrt(_variance(b[None]) / len(b) + _variance(h[None]) / len(h))
    return _judge(ordered[None], _rank_sum_tail(len(b), len(h)), n, freedom, error, rule)[0]


def _variance(values: Array) -> Array:
    """Returns the unbiased variance along the last axis; infinite for a single value and for infinities."""
    if values.shape[-1] < 2:
        return np.full(values.shape[:-1], np.inf)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(values.var(axis=-1, ddof=1), nan=np.inf)


def _judge(ordered: Array, tail: Array, n: int, freedom: int, error: Array, rule: Rule) -> list[Differences]:
    """Judges sorted pairwise differences, [comparisons, M], by the chance of as many of them on one side."""
    from scipy.special import stdtrit

    share, tau = share_of_look(n, rule), math.log1p(rule.tolerance)
    level = rule.error_rate * share / 2  # half for worse, half for better
    low, high = _order_statistics(ordered, tail, level)
    inner_low, inner_high = _order_statistics(ordered, tail, rule.error_rate * share)
    p_worse = tail[np.sum(ordered > tau, axis=-1)]
    p_better = tail[np.sum(ordered < -tau, axis=-1)]
    # Half of a 68% interval is a standard error too, by ranks. The larger of the two is honest: with heavy tails
    # the ranks see less noise than there is, and with clocks of two speeds they may happen to see one speed alone.
    at_low, at_high = _order_statistics(ordered, tail, 0.1587)
    freedom = max(1, freedom)
    t_level, t_power = -stdtrit(freedom, level), stdtrit(freedom, rule.power)
    with np.errstate(invalid="ignore"):
        of_ranks = np.nan_to_num((at_high - at_low) / 2 / -stdtrit(freedom, 0.1587), nan=np.inf)
    value = np.median(ordered, axis=-1)
    with np.errstate(over="ignore"):
        detectable = tau + (t_level + t_power) * np.maximum(error, of_ranks)
    columns = (value, low, high, inner_low, inner_high, p_worse, p_better, detectable)
    return [Differences(n, tau, *map(float, row)) for row in zip(*columns, strict=True)]


def _order_statistics(ordered: Array, tail: Array, level: float) -> tuple[Array, Array]:
    """Returns the interval that one-sided tests at `level` do not reject; unbounded if they reject nothing."""
    count = ordered.shape[-1]
    outside = int(np.sum(tail[: count + 1] > level))  # the smallest W with a tail of at most `level`
    if outside > count:
        unbounded = np.full(ordered.shape[:-1], np.inf)
        return -unbounded, unbounded
    return ordered[..., count - outside], ordered[..., outside - 1]


def discoveries(p_values: Sequence[float], error_rate: float) -> list[bool]:
    """Returns which p-values stand as discoveries: on average at most the share `error_rate` of these is false.

    Source: Benjamini and Hochberg (1995).
    """
    order = np.argsort(p_values, kind="stable")
    m = len(order)
    below = [k for k, place in enumerate(order, start=1) if p_values[place] <= error_rate * k / m]
    standing = set(order[: max(below, default=0)])
    return [place in standing for place in range(m)]


def decide(rows: Sequence[Differences], rule: Rule) -> list[tuple[Verdict, str]]:
    """Returns verdict and reason of each benchmark of one comparison, judged together.

    The rows are the benchmarks that could be judged, each with its own tolerance; the rule gives the error rate.
    """
    spent = [min(1.0, row.p / share_of_look(row.n, rule)) for row in rows]
    stands = discoveries(spent, rule.error_rate)
    return [_verdict(row, stood, len(rows), rule) for row, stood in zip(rows, stands, strict=True)]


def _verdict(row: Differences, stands: bool, benchmarks: int, rule: Rule) -> tuple[Verdict, str]:
    needed = rounds_needed(benchmarks, rule)
    tau = row.tolerance
    if stands:
        worse = row.p_worse < row.p_better
        return ("regressed", "worse_beyond_tolerance") if worse else ("improved", "better_beyond_tolerance")
    if -tau <= row.inner_low and row.inner_high <= tau and tau > 0:
        return "equivalent", "within_tolerance"
    if row.n < needed:
        return "inconclusive", f"too_few_rounds: {row.n}, and {needed} are needed"
    if row.low > tau or row.high < -tau:
        return "inconclusive", f"one_of_many: alone it would be clear, not among {benchmarks}"
    return "inconclusive", "interval_reaches_beyond_tolerance"
