"""Verdicts on "is it slower?": tests and intervals over rounds, by ranks.

The unit is the round, in which base and head are measured once, close together. A difference d is ln(head / base), its
sign reversed where higher is better, so that positive is worse. Order statistics decide: interval and test agree by
construction, a single wild round moves neither far, and a run that missed its target counts as worse than any that
reached it, without an invented number.

Paired rounds use Wilcoxon's signed-rank distribution over the averages of every two differences (Walsh averages); runs
stored apart use the Mann-Whitney distribution over all differences between a head's and a base's run. Both are exact.

The detectable worsening comes from the rounds themselves: the very test is run on resamples of them.

Sources: Hodges and Lehmann, Estimates of Location Based on Rank Tests (1963); Benjamini and Hochberg, Controlling the
False Discovery Rate (1995); Schuirmann's two one-sided tests for equivalence (1987); Lan and DeMets, Discrete
Sequential Boundaries for Clinical Trials (1983).
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
LOOKS = (0.1, 0.2, 0.3, 0.45, 0.67)  # shares of a budget after which verdicts are looked at, before its end
EARLY_ROUNDS, EARLY_SHARE = 10, 0.1  # of the first early look; what all early looks may use of the error rate
MOST_BLOCKS = 500  # rounds up to which each counts alone; of more, each block of neighbours
RESAMPLES = 400  # of the rounds, by which the detectable worsening is found


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Settings of the verdicts.

    Attributes:
        tolerance: largest change, as a share, that does not matter; a verdict is about more than it.
        error_rate: chance of a false `regressed` or `improved` for one benchmark; the false discovery rate for many.
        power: chance of finding a worsening of the detectable size.
        spend: whether rounds may be added until the verdict is clear; each look may then use only its share of the
            error rate, see `spent_share`.
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
        n: number of rounds or their blocks, or of runs on the smaller side.
        tolerance: tolerance of the rule, as a logarithm.
        value: Hodges-Lehmann estimate of the difference.
        low: lower end of the interval at the rule's error rate.
        high: upper end of the interval at the rule's error rate.
        inner_low: lower end of the interval that must lie within the tolerance for `equivalent` (90% at a rate of 5%).
        inner_high: upper end of that inner interval.
        p_worse: one-sided p-value of "it is not worse by more than the tolerance".
        p_better: one-sided p-value of "it is not better by more than the tolerance".
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

    @property
    def p(self) -> float:
        """Two-sided p-value of "it differs by no more than the tolerance"."""
        return min(1.0, 2 * min(self.p_worse, self.p_better))


def spent_share(elapsed: float, rule: Rule) -> float:
    """Returns the share of the error rate that all looks up to now may use together, from 0 to 1, but for early ones.

    Lan and DeMets' spending function of the kind of O'Brien and Fleming: next to nothing early, so that most is left
    for the last look. A look may use what has become free since the one before; by the union bound repeated looks then
    err no more often than a single one, whatever the noise and however the looks depend on each other.

    Args:
        elapsed: share of the budget that is spent, from 0 to 1.
        rule: gives the error rate.
    """
    from scipy.special import ndtr, ndtri

    if elapsed <= 0:
        return 0.0
    tail = float(ndtr(ndtri(rule.error_rate / 2) / math.sqrt(min(1.0, elapsed))))
    return (1 - EARLY_SHARE) * 2 * tail / rule.error_rate


def early_share(rounds: int) -> float:
    """Returns the share of the error rate that an early look after so many rounds may use; 0 where there is no look.

    What is plain at first sight should not take a part of a long budget: looks after 10, 15, 23, 35, ... rounds use
    1/2, 1/4, 1/8, ... of `EARLY_SHARE`.
    """
    at, share = EARLY_ROUNDS, EARLY_SHARE / 2
    while at < rounds:
        at, share = math.ceil(1.5 * at), share / 2
    return share if at == rounds else 0.0


def rounds_needed(benchmarks: int, rule: Rule) -> int:
    """Returns the number of rounds below which even the clearest result may be chance among so many benchmarks."""
    share = spent_share(1.0, rule) - spent_share(LOOKS[-1], rule) if rule.spend else 1.0
    return math.ceil(math.log2(2 * benchmarks / (rule.error_rate * share)))


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


def judge_paired(differences: npt.ArrayLike, rule: Rule, share: float = 1.0) -> list[Differences]:
    """Judges each comparison by its rounds, in which base and head were measured together.

    Args:
        differences: ln(head / base) of each round, positive where worse, [n] or [comparisons, n].
        rule: gives tolerance and error rate.
        share: share of the error rate that this look may use.
    """
    d = _in_blocks(np.atleast_2d(np.asarray(differences, dtype=np.float64)))
    return _judge(walsh_averages(d), _signed_rank_tail(d.shape[-1]), d.shape[-1], rule, share)


def _in_blocks(d: Array) -> Array:
    """Returns the medians of blocks of neighbouring rounds, [..., n]: all pairs of thousands of rounds take minutes.

    They are as symmetric as the rounds, and less wild and less alike one after the other.
    """
    size = math.ceil(d.shape[-1] / MOST_BLOCKS)
    whole = d[..., : d.shape[-1] // size * size]
    return np.asarray(np.median(whole.reshape(*d.shape[:-1], -1, size), axis=-1))


def judge_unpaired(base: npt.ArrayLike, head: npt.ArrayLike, rule: Rule) -> Differences:
    """Judges base and head runs that were made at different times, such as stored ones.

    Each side is the logarithms of its runs, with signs reversed where higher is better; infinity for a miss.
    """
    b, h = np.asarray(base, dtype=np.float64), np.asarray(head, dtype=np.float64)
    ordered = _between(b[None], h[None])
    return _judge(ordered, _rank_sum_tail(len(b), len(h)), min(len(b), len(h)), rule, 1.0)[0]


def _between(base: Array, head: Array) -> Array:
    """Returns the sorted differences between every head's and every base's run, [comparisons, M]."""
    with np.errstate(invalid="ignore"):
        between = (head[:, :, None] - base[:, None, :]).reshape(len(base), -1)
    return np.sort(np.nan_to_num(between, nan=0.0, posinf=np.inf, neginf=-np.inf), axis=-1)


def _judge(ordered: Array, tail: Array, n: int, rule: Rule, share: float) -> list[Differences]:
    """Judges sorted pairwise differences, [comparisons, M], by the chance of as many of them on one side."""
    tau = math.log1p(rule.tolerance)
    low, high = _order_statistics(ordered, tail, rule.error_rate * share / 2)  # half for worse, half for better
    inner_low, inner_high = _order_statistics(ordered, tail, rule.error_rate * share)
    p_worse = tail[np.sum(ordered > tau, axis=-1)]
    p_better = tail[np.sum(ordered < -tau, axis=-1)]
    columns = (np.median(ordered, axis=-1), low, high, inner_low, inner_high, p_worse, p_better)
    return [Differences(n, tau, *map(float, row)) for row in zip(*columns, strict=True)]


def found_paired(differences: npt.ArrayLike, rule: Rule, share: float = 1.0) -> Array:
    """Returns from which worsening on the test of `judge_paired` finds one, in each of some resamples of the rounds.

    Args:
        differences: differences of one comparison, [n].
        rule: gives tolerance and error rate.
        share: share of the error rate that the look may use.

    Returns:
        Worsenings as shares, [resamples]; infinite where no result of so many rounds can be a verdict.
    """
    d = _in_blocks(np.asarray(differences, dtype=np.float64))
    n = len(d)
    if n < 2 or not np.isfinite(d).all():  # a single round, or a run that missed its target
        return np.full(1, np.inf)
    spread = (d - np.median(walsh_averages(d))) * _widening(n)
    drawn, draw = _draws(n)
    signs = draw.choice((-1.0, 1.0), drawn.shape)  # the order of turns is drawn, so that noise has no direction
    return _found(walsh_averages(signs * spread[drawn]), _signed_rank_tail(n), rule, share)


def found_unpaired(base: Array, head: Array, rule: Rule) -> Array:
    """Returns from which worsening on the test of `judge_unpaired` finds one; see `found_paired`."""
    if min(len(base), len(head)) < 2 or not np.isfinite([*base, *head]).all():
        return np.full(1, np.inf)
    sides = []
    for side in (np.asarray(base, dtype=np.float64), np.asarray(head, dtype=np.float64)):
        drawn, _ = _draws(len(side))
        sides.append(((side - np.median(side)) * _widening(len(side)))[drawn])
    return _found(_between(*sides), _rank_sum_tail(len(sides[0][0]), len(sides[1][0])), rule, 1.0)


def detectable(found: Array, rule: Rule) -> float:
    """Returns the smallest worsening that is found with the rule's power; see `found_paired`."""
    return float(np.quantile(found, rule.power, method="higher"))  # between infinities nothing can be interpolated


def _widening(n: int) -> float:
    """Returns the factor by which n values are spread before they are resampled, which else would understate the noise.

    Chosen so that the detectable worsening is within a fifth of the true one from 6 rounds on, in each of the noises of
    `bench.compare.calibration`; `tests/bench/compare/test_calibration.py` holds it to that.
    """
    return math.sqrt((n + 1.5) / (n - 1))


def _draws(n: int) -> "tuple[npt.NDArray[np.int64], np.random.Generator]":
    """Returns indices of resamples, [resamples, n], fewer where n is large, and the generator that drew them."""
    draw = np.random.default_rng(n)
    return draw.integers(0, n, (max(100, min(RESAMPLES, 5_000_000 // n**2)), n)), draw


def _found(ordered: Array, tail: Array, rule: Rule, share: float) -> Array:
    """Returns the worsenings that the test on sorted pairwise differences of equal sides, [resamples, M], finds."""
    low, _ = _order_statistics(ordered, tail, rule.error_rate * share / 2)
    with np.errstate(over="ignore"):
        return np.expm1(math.log1p(rule.tolerance) - low)


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


def decide(rows: Sequence[Differences], rule: Rule, shares: Sequence[float] = ()) -> list[tuple[Verdict, str]]:
    """Returns verdict and reason of each benchmark of one comparison, judged together.

    Args:
        rows: the benchmarks that could be judged, each with its own tolerance.
        rule: gives the error rate.
        shares: share of the error rate that each row's look may use; 1 for each by default.
    """
    spent = [min(1.0, row.p / max(share, 1e-300)) for row, share in zip(rows, shares or [1.0] * len(rows), strict=True)]
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
