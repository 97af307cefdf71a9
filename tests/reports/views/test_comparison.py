import json

import numpy as np
import pandas as pd
import pytest

from wallclock import reports
from wallclock.reports.format import text as tables
from wallclock.reports.stats.verdicts import Rule, judge_paired
from wallclock.reports.views.comparison import _decided, comparison_rows, comparison_summary, stored_summary

PLACE = {"host": "here", "cpu": "c", "cpu_cores": 2, "torch": "2"}


def store(tmp_path, name, rows, *, request=None, **place):
    run = reports.Run(
        run_id=name, started_utc="2026-01-01T00:00:00Z", command="", request=request or {}, **PLACE | place
    )
    with reports.RunWriter.create(tmp_path, run) as writer:
        writer.add(*(reports.Sample(**{"unit": "s", "better": "lower", "metric": "process_s", **row}) for row in rows))
    return tmp_path / name


def rounds(ratio=1.0, *, n=12, noise=0.003, name="b", again=1.0, **fields):
    draw = np.random.default_rng(0)
    for number in range(n):
        for arm, factor in (("base", 1.0), ("head", ratio), ("base again", again)):
            value = factor * float(np.exp(draw.normal(0, noise)))
            yield {"benchmark": "comparison", "case": name, "arm": arm, "round": number, "value": value, **fields}


def judged(tmp_path, rows, **request):
    path = store(tmp_path, "r", list(rows), request={"benchmark": "comparison", "rule": {"tolerance": 0.02}, **request})
    return comparison_summary(reports.load(path), reports.load_runs(path))


def test_a_ratio_is_of_the_metric_and_a_verdict_of_what_is_better(tmp_path):
    slower = [*rounds(1.1), *rounds(1.1, metric="rate", unit="it/s", better="higher")]
    summary = judged(tmp_path, slower).set_index("metric")
    assert list(summary["verdict"]) == ["regressed", "improved"]
    for ratio, low, high in summary[["ratio", "ratio_low", "ratio_high"]].to_numpy():
        assert 1.09 < low < ratio < high < 1.11
    assert summary.loc["process_s", "detectable"] == pytest.approx(0.025, abs=0.005)
    assert summary.loc["process_s", "again_ratio"] == pytest.approx(1, abs=0.01)


def test_the_unit_is_the_round_and_not_what_a_process_printed_in_it(tmp_path):
    inner = [
        {**row, "index": i, "value": row["value"] * (1 + 0.001 * i)} for row in rounds(1.05, n=3) for i in range(50)
    ]
    (row,) = judged(tmp_path, inner).to_dict("records")
    assert row["rounds"] == 3 and row["verdict"] == "inconclusive" and row["reason"].startswith("too_few_rounds")


def test_a_machine_on_which_the_base_differs_from_itself_gives_no_verdict(tmp_path):
    (row,) = judged(tmp_path, rounds(1.1, again=1.1)).to_dict("records")
    assert row["verdict"] == "invalid" and row["reason"].startswith("runner_unfit") and "1.1" in row["reason"]


def test_the_base_against_itself_errs_no_more_often_among_many_benchmarks():
    """At tolerance 0, twenty equal benchmarks in each of 400 gates: by itself each would be unfit in one of twenty."""
    draw, rule, unfit = np.random.default_rng(0), Rule(tolerance=0.0), 0
    for _ in range(400):
        rows = []
        for _ in range(20):
            differences, same = judge_paired(draw.normal(0, 0.03, (2, 12)), rule)
            rows.append({"better": "lower", "differences": differences, "same": same, "share": 1.0, "again_ratio": 1.0})
        unfit += any(row["verdict"] == "invalid" for row in _decided(rows, rule))
    assert unfit / 400 < 0.08


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"unit": "ms"}, "unit is s on the base's side and ms on the head's side"),
        ({"better": "higher"}, "better is lower on the base's side and higher on the head's side"),
    ],
)
def test_figures_of_another_unit_or_direction_are_not_compared(changes, why, tmp_path):
    rows = [row | (changes if row["arm"] == "head" else {}) for row in rounds(metric="wait")]
    (row,) = judged(tmp_path, rows).to_dict("records")
    assert row["verdict"] == "invalid" and row["reason"] == f"other_figures: {why}"


def test_a_metric_that_the_sides_print_in_other_rounds_is_not_judged(tmp_path):
    rows = [row for row in rounds() if (row["arm"] == "head") == (row["round"] % 2 == 0)]
    (row,) = judged(tmp_path, rows).to_dict("records")
    assert row["verdict"] == "inconclusive" and "none in which both sides printed it" in row["reason"]


def test_nothing_on_both_sides_is_equal_and_on_one_side_no_ratio(tmp_path):
    waits = [{**row, "metric": "wait_s", "value": 0.0} for row in rounds()]
    (row,) = judged(tmp_path, waits).to_dict("records")
    assert row["verdict"] == "equivalent" and row["reason"] == "zero_on_both_sides"
    one = [row | ({"value": 1.0} if row["arm"] == "head" else {}) for row in waits]
    (row,) = judged(tmp_path / "one", one).to_dict("records")
    assert row["verdict"] == "invalid" and row["reason"].startswith("not_positive")


def test_a_gpu_that_was_throttled_gives_no_verdict(tmp_path):
    rows = list(rounds(1.1, sm_clock_mhz=1980.0))
    rows[4] |= {"sm_clock_mhz": 1200.0, "parameters": {"throttled": "hw_thermal_slowdown"}}
    (row,) = judged(tmp_path, rows).to_dict("records")
    assert row["verdict"] == "invalid"
    assert row["reason"] == "throttled: hw_thermal_slowdown in 1 of 36 turns, at 1,200 to 1,980 MHz"


def test_of_a_round_taken_again_only_the_last_attempt_counts(tmp_path):
    """Half of round 11 was measured before an interruption, when the base took twice as long."""
    rows = list(rounds(1.0, n=11))
    rows.append({**rows[-3], "round": 11, "value": 2.0})
    again = [{**row, "parameters": {"attempt": 1}} for row in rounds(1.0, n=14) if row["round"] >= 11]
    (row,) = judged(tmp_path, rows + again).to_dict("records")
    (whole,) = judged(tmp_path / "whole", rows[:-1] + again).to_dict("records")
    assert row["rounds"] == whole["rounds"] == 14
    assert row["ratio"] == whole["ratio"] and row["base"] == whole["base"]


def test_what_failed_is_invalid_however_good_the_rest_looks(tmp_path):
    rows = [*rounds(0.5), {**next(rounds()), "round": 12, "status": "failed", "error": "exit 1: boom", "value": 1.0}]
    (row,) = judged(tmp_path, rows).to_dict("records")
    assert row["verdict"] == "invalid" and "boom" in row["reason"]


def test_a_benchmark_of_one_side_alone_is_added_or_removed(tmp_path):
    rows = [row for row in rounds(name="new") if row["arm"] == "head"]
    rows += [row for row in rounds(name="old") if row["arm"] == "base"]
    summary = judged(tmp_path, rows).set_index("benchmark")
    assert summary.loc["new", "verdict"] == "added" and summary.loc["old", "verdict"] == "removed"


@pytest.mark.parametrize(
    ("base", "head", "verdict"),
    [([100, 100], [100, 100], "equivalent"), ([100, 100], [104, 103], "regressed"), ([100, 100], [90, 91], "improved"),
     ([0, 0], [0, 0], "equivalent"), ([0, 0], [1, 1], "regressed"), ([100, 110], [105, 120], "inconclusive")],
)  # fmt: skip
def test_counts_need_no_statistics(tmp_path, base, head, verdict):
    rows = [
        {"benchmark": "comparison", "case": "c", "arm": arm, "round": number, "value": value, "metric": "graph_breaks",
         "unit": "count"}
        for arm, values in (("base", base), ("head", head))
        for number, value in enumerate(values)
    ]  # fmt: skip
    (row,) = judged(tmp_path, rows).to_dict("records")
    assert row["verdict"] == verdict


def test_tolerances_are_each_benchmarks_own_and_false_discoveries_all_together(tmp_path):
    rows = [*rounds(1.03, name="strict"), *rounds(1.03, name="lax")]
    summary = judged(tmp_path, rows, tolerances={"strict": 0.01, "lax": 0.1}).set_index("benchmark")
    assert summary.loc["strict", "verdict"] == "regressed" and summary.loc["lax", "verdict"] == "equivalent"


def test_what_could_not_run_is_told(tmp_path):
    summary = judged(tmp_path, rounds(name="works"), invalid={"broken": "build_failed: no compiler (head)"})
    row = summary.set_index("benchmark").loc["broken"]
    assert row["verdict"] == "invalid" and "no compiler" in row["reason"]


def trainings(tmp_path, name, times, *, missed=(), **place):
    rows = [
        {"benchmark": "cifar", "case": "sprint", "metric": "train_eval_s", "seed": seed, "value": value, "target": 0.9,
         "reached": seed not in missed, "censored": seed in missed, "status": "missed" if seed in missed else "ok"}
        for seed, value in enumerate(times)
    ]  # fmt: skip
    return reports.load(store(tmp_path, name, rows, **place))


def test_stored_trainings_are_compared_by_seed_and_a_miss_is_worst(tmp_path):
    base = trainings(tmp_path, "base", [10, 10.1, 10.2, 10.3, 10.4, 10.5])
    head = trainings(tmp_path, "head", [12, 12.1, 12.2, 12.3, 12.4, 12.5])
    (row,) = stored_summary(base, head, Rule()).to_dict("records")
    assert row["verdict"] == "regressed" and row["ratio"] == pytest.approx(12.25 / 10.25, rel=0.01)
    fast = trainings(tmp_path, "fast", [5.0] * 6, missed=range(6))
    (row,) = stored_summary(base, fast, Rule()).to_dict("records")
    assert row["verdict"] == "regressed" and row["ratio"] == np.inf


def test_a_single_run_of_many_samples_says_nothing_of_another(tmp_path):
    one = store(tmp_path, "one", [{"benchmark": "kernels", "index": i, "value": 1 + i / 1e4} for i in range(500)])
    two = store(tmp_path, "two", [{"benchmark": "kernels", "index": i, "value": 2 + i / 1e4} for i in range(500)])
    (row,) = stored_summary(reports.load(one), reports.load(two), Rule()).to_dict("records")
    assert row["verdict"] == "inconclusive" and row["rounds"] == 1


def test_figures_of_another_machine_are_refused_by_name(tmp_path):
    here, there = trainings(tmp_path, "a", [1.0]), trainings(tmp_path, "b", [1.0], cpu="another")
    with pytest.raises(ValueError, match="cpu is c and another"):
        stored_summary(here, there, Rule())


def test_pytest_benchmarks_files_are_both_ends_of_a_comparison(tmp_path):
    def stored(side, factor):
        (tmp_path / side).mkdir()
        for number in range(6):
            stats = {"data": [factor * (1 + number / 1e3)] * 5}
            document = {
                "machine_info": {"node": "here", "cpu": {"brand_raw": "c"}},
                "datetime": f"2026-01-01T00:00:0{number}",
                "benchmarks": [{"name": "test_it", "fullname": "t.py::test_it", "params": None, "stats": stats}],
            }
            (tmp_path / side / f"{number}.json").write_text(json.dumps(document))
        return reports.load(list((tmp_path / side).glob("*.json")))

    (row,) = stored_summary(stored("base", 1.0), stored("head", 1.2), Rule()).to_dict("records")
    assert row["verdict"] == "regressed" and row["ratio"] == pytest.approx(1.2, rel=0.01)


def test_comparisons_of_the_same_figures_are_told_apart(tmp_path):
    request = {"benchmark": "comparison", "rule": {}}
    for name in ("first-0", "second-1"):
        store(tmp_path, name, rounds(n=3), request=request)
    _, both = comparison_rows(comparison_summary(reports.load(tmp_path), reports.load_runs(tmp_path)))
    assert [row[0].splitlines()[2] for row in both] == ["run first-0", "run second-1"]
    one = tmp_path / "first-0"
    ((name, *_),) = comparison_rows(comparison_summary(reports.load(one), reports.load_runs(one)))[1]
    assert len(name.splitlines()) == 2


def test_the_table_fits_into_80_columns(tmp_path, capsys):
    from rich.console import Console

    rows = [*rounds(1.1, name="a-rather-long-name-of-a-benchmark"), *rounds(again=1.1, name="b")]
    summary = judged(tmp_path, rows)
    Console(width=80).print(tables.terminal(comparison_rows(summary)))
    told = capsys.readouterr().out
    assert "regressed" in told and "1.100" in told and max(map(len, told.splitlines())) <= 80
    assert isinstance(summary, pd.DataFrame)
