import math

import numpy as np
import pytest
from scipy import stats

from wallclock.reports.stats.verdicts import (
    LOOKS,
    Differences,
    Rule,
    decide,
    detectable,
    discoveries,
    early_share,
    found_paired,
    found_unpaired,
    judge_paired,
    judge_unpaired,
    rounds_needed,
    spent_share,
    walsh_averages,
)

EXACT = Rule(tolerance=0.0)


def normal(n, spread=0.03, shift=0.0, seed=0, comparisons=1):
    return np.random.default_rng(seed).normal(shift, spread, (comparisons, n))


@pytest.mark.parametrize("n", [6, 7, 12, 25, 61])
def test_paired_p_values_are_wilcoxons(n):
    for row in normal(n, shift=0.01, comparisons=5):
        (found,) = judge_paired(row, EXACT)
        method = "exact" if n <= 60 else "asymptotic"
        wanted = stats.wilcoxon(row, alternative="greater", method=method, correction=n > 60).pvalue
        assert found.p_worse == pytest.approx(wanted, rel=1e-9 if n <= 60 else 1e-3)
        assert found.value == pytest.approx(np.median(walsh_averages(row)))


@pytest.mark.parametrize(("n", "m"), [(3, 4), (8, 5), (12, 12), (61, 20)])
def test_unpaired_p_values_are_mann_whitneys(n, m):
    base, head = normal(n)[0], normal(m, shift=0.02, seed=1)[0]
    method = "exact" if max(n, m) <= 60 else "asymptotic"
    wanted = stats.mannwhitneyu(head, base, alternative="greater", method=method).pvalue
    assert judge_unpaired(base, head, EXACT).p_worse == pytest.approx(wanted, rel=1e-9 if max(n, m) <= 60 else 1e-3)


@pytest.mark.parametrize("n", [6, 9, 20])
def test_the_interval_holds_what_the_test_does_not_reject_and_nothing_else(n):
    row = normal(n, seed=3)[0]
    (found,) = judge_paired(row, EXACT)
    inside, outside = 1e-9, -1e-9
    for edge, side in ((found.low, 1), (found.high, -1)):
        for step, rejected in ((inside, False), (outside, True)):
            (moved,) = judge_paired(row - (edge + side * step), EXACT)
            assert (moved.p <= EXACT.error_rate) is rejected


@pytest.mark.parametrize("tolerance", [0.0, 0.02])
@pytest.mark.parametrize("n", [8, 12, 30])
@pytest.mark.parametrize("noise", ["normal", "heavy", "two speeds"])
def test_of_the_same_code_at_most_5_percent_are_called_changed(n, noise, tolerance):
    draw = np.random.default_rng(n)
    sides = {
        "normal": lambda: draw.normal(0, 0.03, (4000, n)),
        "heavy": lambda: 0.03 * draw.standard_t(2, (4000, n)),
        "two speeds": lambda: draw.normal(0, 0.005, (4000, n)) + 0.08 * (draw.random((4000, n)) < 0.3),
    }[noise]
    p = np.array([row.p for row in judge_paired(sides() - sides(), Rule(tolerance=tolerance))])
    assert np.mean(p <= 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)
    if not tolerance and noise == "normal":
        assert np.mean(p <= 0.05) >= 0.03  # and it is no test that never speaks


def test_the_detectable_change_is_found_four_times_in_five():
    d = normal(12, comparisons=4000)
    printed = np.median([detectable(found_paired(row, Rule()), Rule()) for row in d[:200]])
    rows = judge_paired(d + math.log1p(printed), Rule())
    assert 0.7 <= np.mean([row.p <= 0.05 and row.p_worse < row.p_better for row in rows]) <= 0.9


def test_the_detectable_change_between_stored_runs_is_found_four_times_in_five():
    base, head = normal(8, comparisons=1000), normal(10, comparisons=1000, seed=1)
    sides = list(zip(base, head, strict=True))
    printed = np.median([detectable(found_unpaired(*pair, Rule()), Rule()) for pair in sides[:200]])
    rows = [judge_unpaired(b, h + math.log1p(printed), Rule()) for b, h in sides]
    assert 0.7 <= np.mean([row.p <= 0.05 and row.p_worse < row.p_better for row in rows]) <= 0.9


@pytest.mark.parametrize("n", [1, 2, 3])
def test_rounds_too_few_for_a_verdict_detect_nothing(n):
    assert detectable(found_paired(normal(n + 2)[0], Rule()), Rule()) == math.inf
    assert detectable(found_unpaired(normal(n)[0], normal(3)[0], Rule()), Rule()) == math.inf


def test_looks_share_the_error_rate_and_looking_often_errs_no_more():
    rule, n = Rule(tolerance=0.0, spend=True), 60
    early = {rounds: share for rounds in range(1, 10_000) if (share := early_share(rounds))}
    assert list(early)[:4] == [10, 15, 23, 35] and spent_share(0, rule) == 0
    assert spent_share(1, rule) == spent_share(1.2, rule) and spent_share(1, rule) + sum(early.values()) <= 1
    # Lan and DeMets' table for a rate of 0.05: 0.00557 of it is spent at half of the time.
    assert rule.error_rate * spent_share(0.5, rule) / spent_share(1, rule) == pytest.approx(0.00557, abs=0.00001)
    looks = [(rounds, share) for rounds, share in early.items() if rounds < n]
    spent = 0.0
    for elapsed in (*LOOKS, 1.0):
        looks.append((math.ceil(elapsed * n), spent_share(elapsed, rule) - spent))
        spent = spent_share(elapsed, rule)
    d = normal(n, comparisons=3000)
    called, once = np.zeros(len(d), dtype=bool), np.zeros(len(d), dtype=bool)
    for rounds, share in looks:
        rows = judge_paired(d[:, :rounds], rule, share)
        called |= np.array([row.p <= rule.error_rate * share for row in rows])
        once |= np.array([row.p <= rule.error_rate for row in rows])
    assert 0.03 <= np.mean(called) <= 0.05 < 0.1 < np.mean(once)  # looking without paying errs over twice as often


def test_what_is_left_for_the_last_look_finds_nearly_as_much_as_one_look():
    """A worsening that one look at the end finds in about half of cases."""
    rule = Rule(tolerance=0.0, spend=True)
    rows = judge_paired(normal(60, shift=0.0076, comparisons=2000), rule)
    last = spent_share(1, rule) - spent_share(LOOKS[-1], rule)
    once, left = (np.mean([row.p <= rule.error_rate * share for row in rows]) for share in (1, last))
    assert 0.4 < once < 0.6 and 0.8 * once < left < once


def test_thousands_of_rounds_are_judged_in_blocks_that_err_no_more():
    called = [row.p <= 0.05 for row in judge_paired(normal(2500, comparisons=200), EXACT)]
    assert np.mean(called) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)
    d = normal(9001, shift=0.002)[0]
    (found,) = judge_paired(d, EXACT)
    assert found.n == 473 and found.p < 1e-4 and found.value == pytest.approx(0.002, abs=0.001)
    finds = 1.25 * (1.96 + 0.84) * 0.03 / 9001**0.5  # 1.25: of medians
    assert detectable(found_paired(d, EXACT), EXACT) == pytest.approx(finds, rel=0.2)


def test_discoveries_are_benjamini_and_hochbergs():
    p = [0.001, 0.3, 0.021, 0.02, 0.9]
    wanted = stats.false_discovery_control(p) <= 0.05
    assert discoveries(p, 0.05) == list(wanted) and discoveries([], 0.05) == []


@pytest.mark.parametrize(
    ("shift", "spread", "verdict", "reason"),
    [
        (0.10, 0.01, "regressed", "worse_beyond_tolerance"),
        (-0.10, 0.01, "improved", "better_beyond_tolerance"),
        (0.0, 0.004, "equivalent", "within_tolerance"),
        (0.005, 0.003, "equivalent", "within_tolerance"),
        (0.0, 0.2, "inconclusive", "interval_reaches_beyond_tolerance"),
    ],
)
def test_verdicts(shift, spread, verdict, reason):
    assert decide(judge_paired(normal(12, spread, shift), Rule()), Rule()) == [(verdict, reason)]


def test_among_many_benchmarks_one_has_to_be_clearer():
    rule = Rule()
    clear = judge_paired(normal(6, 0.001, 0.1), rule)
    assert decide(clear, rule)[0][0] == "regressed"  # six of six the same way: p = 2 / 64
    rest = judge_paired(normal(6, 0.001, 0.0, comparisons=9), rule)
    assert decide([*clear, *rest], rule)[0][0] == "inconclusive"
    assert rounds_needed(1, rule) == 6 and rounds_needed(10, rule) == 9
    clear, rest = judge_paired(normal(9, 0.001, 0.1), rule), judge_paired(normal(9, 0.001, 0.0, comparisons=9), rule)
    assert decide([*clear, *rest], rule)[0][0] == "regressed"


def test_too_few_rounds_are_no_verdict():
    for n in (1, 2, 5):
        (row,) = judge_paired(normal(n, 0.0001, 0.5), Rule())
        ((verdict, reason),) = decide([row], Rule())
        assert verdict == "inconclusive" and reason.startswith(f"too_few_rounds: {n}, and 6")
        assert row.low == -math.inf and row.high == math.inf


def test_a_run_that_missed_its_target_is_worse_than_any_that_did_not():
    base, missed = np.log(np.arange(10.0, 16.0)), np.full(6, np.inf)
    found = judge_unpaired(base, missed, Rule())
    assert decide([found], Rule())[0][0] == "regressed" and found.value == math.inf
    assert detectable(found_unpaired(base, missed, Rule()), Rule()) == math.inf
    assert decide([judge_unpaired(missed, base, Rule())], Rule())[0][0] == "improved"
    both = judge_unpaired(missed, missed, Rule())
    assert both.p == 1 and both.value == 0
    one = np.log([10.0, 11, 12, 13, 14, np.inf])
    assert decide([judge_unpaired(base, one, Rule())], Rule())[0][0] == "inconclusive"


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, math.nan])
def test_a_tolerance_that_is_no_share_is_refused(tolerance):
    with pytest.raises(ValueError, match="expected a share"):
        Rule(tolerance=tolerance)


def test_no_round_can_move_the_verdict_alone():
    d = normal(12, 0.003)
    wild = d.copy()
    wild[0, 0] = 5.0
    (calm,), (shaken,) = judge_paired(d, Rule()), judge_paired(wild, Rule())
    assert isinstance(shaken, Differences)
    assert abs(shaken.value - calm.value) < 0.003 and decide([shaken], Rule())[0][0] == "equivalent"
