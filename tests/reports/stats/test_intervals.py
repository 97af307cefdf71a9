"""The statistics against SciPy's, against cases worked by hand, and on frames whose answer is known."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from wallclock.reports import Run, RunWriter, Sample, load, summarise, time_to_target
from wallclock.reports.stats.intervals import (
    bootstrap_interval,
    expected_time_to_target,
    mean_reaches_p,
    median_interval,
    wilson_interval,
)


@pytest.mark.parametrize("n", [5, 30])
@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_bca_agrees_with_scipy(n: int, statistic: Callable[..., np.ndarray]) -> None:
    x = np.random.default_rng(n).lognormal(size=n)
    ours = bootstrap_interval(x, lambda r: statistic(r, axis=-1), resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (x,), statistic, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.value == statistic(x)
    # Two drawings of 20,000 differ at the tails by a few per cent of the interval's width; a median jumps.
    slack = (theirs.high - theirs.low) * (0.06 if statistic is np.mean else 0.25)
    assert ours.low == pytest.approx(theirs.low, abs=slack)
    assert ours.high == pytest.approx(theirs.high, abs=slack)


def test_bca_is_unbounded_where_values_do_not_vary_and_repeats_itself() -> None:
    assert (bootstrap_interval([2.0]).low, bootstrap_interval([2.0, 2.0]).high) == (-math.inf, math.inf)
    assert bootstrap_interval([1.0, 2.0, 4.0]) == bootstrap_interval((1.0, 2.0, 4.0))


@pytest.mark.parametrize("n", [2, 3, 4, 10, 20, 200, 2000])
def test_p_value_agrees_with_scipy(n: int) -> None:
    accuracy = np.random.default_rng(n).normal(0.9405, 0.0013, n)
    error = accuracy.std(ddof=1) / math.sqrt(n)
    for t in (0.0, 1e-200, 1e-9, 0.01, 0.5, 1.7, 2.999, 3.0, 3.001, 7.0, 30.0):
        for target in (accuracy.mean() - t * error, accuracy.mean() + t * error):
            theirs = scipy.stats.ttest_1samp(accuracy, target, alternative="greater").pvalue
            assert mean_reaches_p(accuracy, target) == pytest.approx(theirs, rel=1e-9)


def test_p_value_of_what_does_not_vary_is_unknown() -> None:
    assert math.isnan(mean_reaches_p([0.95], 0.94)) and math.isnan(mean_reaches_p([0.95, 0.95], 0.94))


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 5), (4, 5), (5, 5), (1093, 2000)])
def test_wilson_agrees_with_scipy(hits: int, n: int) -> None:
    theirs = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
    ours = wilson_interval(hits, n)
    assert (ours.value, ours.low, ours.high) == pytest.approx((hits / n, theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("n", [6, 17, 100, 1001, 5000])
def test_median_interval_covers_as_promised_by_the_binomial(n: int) -> None:
    interval = median_interval(np.arange(n))
    rank = int(interval.low)  # of n sorted values, `rank` lie below the lower end
    assert interval.high == n - 1 - rank
    outside = 2 * scipy.stats.binom.cdf(rank, n, 0.5)
    assert outside <= 0.05 * 1.01
    assert 2 * scipy.stats.binom.cdf(rank + 1, n, 0.5) > 0.05 * 0.99


def test_few_samples_give_the_whole_range() -> None:
    interval = median_interval([3.0, 1.0, 2.0])
    assert (interval.value, interval.low, interval.high) == (2.0, 1.0, 3.0)


def test_a_miss_costs_its_time_and_is_never_dropped() -> None:
    all_hit = expected_time_to_target([10, 12], [True, True])
    assert all_hit.value == 11 and 10 <= all_hit.low <= all_hit.high <= 12
    missed = expected_time_to_target([10, 12, 11, 13, 14], [True, True, True, False, True])
    assert missed.value == 60 / 4
    assert missed.low < 15 < missed.high < math.inf
    none = expected_time_to_target([10, 12], [False, False])
    assert (none.value, none.low, none.high) == (math.inf, 22, math.inf)
    assert expected_time_to_target([10] * 4, [True, False, False, False]).high == math.inf
    assert expected_time_to_target([10], [True]).low == -math.inf


def test_expected_time_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):  # hits with probability 0.8, a run takes 10 s on average: the truth is 12.5 s
        interval = expected_time_to_target(rng.normal(10, 0.2, 40), rng.random(40) < 0.8, resamples=400)
        covered += interval.low <= 12.5 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_time_to_target_of_known_runs(cifar_root: Path) -> None:
    (row,) = time_to_target(load(cifar_root)).to_dict("records")
    accuracy = [0.905, 0.906, 0.907, 0.89, 0.909]
    assert (row["case"], row["dataset"], row["target"]) == ("sprint", "cifar10-jpeg", 0.9)
    assert (row["n"], row["hits"], row["diverged"]) == (5, 4, 0)
    assert row["mean_accuracy"] == pytest.approx(np.mean(accuracy))
    assert row["p_value"] == pytest.approx(scipy.stats.ttest_1samp(accuracy, 0.9, alternative="greater").pvalue)
    assert row["train_eval_s"] == pytest.approx((10 + 11 + 12 + 13 + 14) / 4)


def test_diverged_seeds_count_as_nothing_learned_and_are_listed(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    with RunWriter.create(tmp_path, make_run()) as writer:
        for seed, (value, status) in enumerate([(0.95, "ok"), (math.nan, "diverged")]):
            fields = {"metric": "final_accuracy", "unit": "fraction", "better": "higher", "status": status}
            writer.add(make_sample(value=value, seed=seed, target=0.94, reached=status == "ok", **fields))
    (row,) = time_to_target(load(tmp_path)).to_dict("records")
    assert (row["n"], row["hits"], row["diverged"], row["mean_accuracy"]) == (2, 1, 1, 0.475)
    (row,) = summarise(load(tmp_path)).to_dict("records")
    assert (row["n"], row["failed"], row["median"]) == (1, 1, 0.95)


def test_a_seed_that_is_run_again_is_no_new_draw(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    for again, accuracies in enumerate([(0.95, 0.93, 0.96), (0.95, 0.95, 0.94)]):
        with RunWriter.create(tmp_path, make_run(run_id=f"run-{again}")) as writer:
            for seed, accuracy in enumerate(accuracies):
                scored = {"seed": seed, "target": 0.94, "reached": accuracy >= 0.94}
                fields = {"metric": "final_accuracy", "unit": "fraction", "better": "higher"}
                writer.add(make_sample(value=accuracy, **fields, **scored))
                writer.add(make_sample(value=10.0 + 2 * again + seed, **scored))
    (row,) = time_to_target(load(tmp_path)).to_dict("records")
    assert (row["n"], row["repeats"], row["hits"]) == (3, 3, 2)  # seed 1 hit only when it was run again
    means = [0.95, 0.94, 0.95]
    assert row["mean_accuracy"] == pytest.approx(np.mean(means))
    assert row["p_value"] == pytest.approx(scipy.stats.ttest_1samp(means, 0.94, alternative="greater").pvalue)
    assert row["train_eval_s"] == pytest.approx((11 + 12 + 13) / 2)


def test_one_run_of_two_cases_keeps_them_apart(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    with RunWriter.create(tmp_path, make_run()) as writer:
        for case, time in (("sprint", 10.0), ("darknet", 50.0)):
            scored = {"case": case, "seed": 0, "target": 0.9, "reached": True, "censored": False}
            writer.add(make_sample(metric="final_accuracy", unit="fraction", better="higher", value=0.91, **scored))
            writer.add(make_sample(value=time, **scored))
    rows = time_to_target(load(tmp_path)).set_index("case")
    assert rows["train_eval_s"].to_dict() == {"sprint": 10.0, "darknet": 50.0}


def test_summary_groups_by_case_and_parameters_and_leaves_warm_up_out(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    with RunWriter.create(tmp_path, make_run()) as writer:
        for batch in (32, 64):
            for i in range(9):
                writer.add(make_sample(value=batch + i, index=i, parameters={"batch": batch}))
            writer.add(make_sample(value=1e9, phase="warm-up", parameters={"batch": batch}))
        writer.add(make_sample(value=7.0, reached=False, censored=True, status="missed"))
    rows = summarise(load(tmp_path)).sort_values("min")
    assert rows["median"].tolist() == [7.0, 36.0, 68.0]
    assert rows["n"].tolist() == [1, 9, 9]
    assert rows["censored"].tolist() == [1, 0, 0]
    assert rows["max"].tolist() == [7.0, 40.0, 72.0]
    assert rows["batch"].tolist()[1:] == [32, 64]
