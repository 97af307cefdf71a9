import json

import numpy as np
import pytest

from wallclock import reports
from wallclock.reports.views.history import changes, history_rows, history_summary

PLACE = {"host": "here", "cpu": "c", "cpu_cores": 2, "torch": "2"}


def store(tmp_path, values, *, name="b", noise=0.005, start=0, sha="{:040x}", **place):
    draw = np.random.default_rng(len(name))
    for number, value in enumerate(values, start=start):
        run = reports.Run(
            run_id=f"{name}-{number:03}", started_utc=f"2026-01-{number + 1:02}T00:00:00Z", command="",
            git_sha=sha.format(number), source_hash=str(number), **PLACE | place,
        )  # fmt: skip
        with reports.RunWriter.create(tmp_path, run) as writer:
            for index in range(3):
                value_now = value * float(np.exp(draw.normal(0, noise)))
                writer.add(
                    reports.Sample(
                        benchmark=name, metric="step_s", unit="s", better="lower", value=value_now, index=index
                    )
                )


def summary(tmp_path):
    return history_summary(reports.load(tmp_path), reports.load_runs(tmp_path))


def test_a_change_is_found_at_its_commit(tmp_path):
    store(tmp_path, [1.0] * 8 + [1.1] * 6)
    (row,) = summary(tmp_path).to_dict("records")
    (change,) = row["changes"]
    assert change["git_sha"] == f"{8:040x}" and change["worse"] and change["ratio"] == pytest.approx(1.1, rel=0.01)
    assert row["runs"] == 14 and row["since_first"] == pytest.approx(1.1, rel=0.01)
    _, ((*_, told),) = history_rows(summary(tmp_path))
    assert told == f"0000000000 x{change['ratio']:.3f}, worse"


def quiet(noise, n, draw):
    """A series without a change, as logarithms."""
    logs = 0.03 * draw.standard_normal(n)
    if noise == "an outlier":
        logs[draw.integers(n)] += np.log(1.3)
    elif noise == "two clock speeds":
        logs = 0.2 * logs + 0.08 * (draw.random(n) < 0.25)
    elif noise == "heavy tails":
        logs = 0.03 * draw.standard_t(2, n)
    elif noise == "neighbours alike":
        for at in range(1, n):
            logs[at] = 0.7 * logs[at - 1] + (1 - 0.7**2) ** 0.5 * logs[at]
    return logs


@pytest.mark.parametrize("n", [8, 12, 20, 30, 60])
@pytest.mark.parametrize("noise", ["normal", "an outlier", "two clock speeds", "heavy tails", "neighbours alike"])
def test_at_most_one_in_twenty_quiet_series_shows_a_change(noise, n):
    draw = np.random.default_rng(n)
    found = sum(bool(changes(np.exp(quiet(noise, n, draw)))) for _ in range(300))
    assert found <= 0.05 * 300 + 3 * (0.05 * 0.95 * 300) ** 0.5


@pytest.mark.parametrize(("slower", "spread", "often"), [(1.2, 0.03, 0.95), (1.05, 0.01, 0.9), (1.1, 0.03, 0.7)])
def test_the_named_commit_is_the_first_of_the_new_level(slower, spread, often):
    draw, named = np.random.default_rng(0), 0
    for _ in range(200):
        logs = spread * draw.standard_normal(30)
        logs[20:] += np.log(slower)
        named += changes(np.exp(logs)) == [20]
    assert named / 200 >= often


def test_two_slow_runs_at_the_end_are_no_level_yet_and_name_no_innocent_commit():
    draw, found = np.random.default_rng(0), []
    for _ in range(200):
        logs = 0.03 * draw.standard_normal(30)
        logs[-2:] += np.log(1.2)
        found.append(changes(np.exp(logs)))
    assert sum(map(bool, found)) <= 10 and sum(27 in cuts for cuts in found) <= 4


def test_creeping_worse_is_seen_since_the_first(tmp_path):
    store(tmp_path, 1.01 ** np.arange(20), noise=0.001)
    (row,) = summary(tmp_path).to_dict("records")
    assert row["since_first"] > 1.15 and all(change["worse"] for change in row["changes"])


def test_another_machine_or_setting_is_another_series(tmp_path):
    store(tmp_path, [1.0] * 4)
    store(tmp_path, [2.0] * 4, start=4, cpu="another")
    store(tmp_path, [3.0] * 4, start=8, environment={"OMP_NUM_THREADS": "1"})
    rows = summary(tmp_path)
    assert sorted(rows["runs"]) == [4, 4, 4] and not any(rows["changes"])


def test_less_than_counts_is_no_change():
    assert changes(np.array([1.0] * 10 + [1.015] * 10)) == [] and changes(np.array([1.0] * 10 + [1.03] * 10)) == [10]


def test_short_or_constant_series_have_no_changes():
    assert changes(np.ones(5)) == [] and changes(np.ones(20)) == []
    assert changes(np.array([1.0] * 10 + [2.0] * 10)) == [10]
    assert changes(np.array([0.0] * 20)) == []


def test_runs_stand_in_the_order_of_their_times_and_not_of_their_names(tmp_path):
    for number in range(6):
        stats = {"data": [1.0 + number]}
        document = {"machine_info": {"node": "here"}, "datetime": f"2026-01-0{number + 1}T00:00:00"}
        document["benchmarks"] = [{"name": "test_it", "stats": stats}]
        (tmp_path / f"week-{7 + number}").mkdir()
        (tmp_path / f"week-{7 + number}" / "b.json").write_text(json.dumps(document))
    (row,) = summary(sorted(tmp_path.glob("*/b.json"), key=str)).to_dict("records")
    assert (row["first"], row["latest"]) == (1, 6)


def test_a_comparisons_points_are_its_heads(tmp_path):
    for number in range(3):
        request = {"benchmark": "comparison", "rule": {}, "base": {}, "head": {"revision": f"{number:040x}"}}
        run = reports.Run(
            run_id=f"r{number}", started_utc=f"2026-01-0{number + 1}T00:00:00Z", command="", request=request, **PLACE
        )
        with reports.RunWriter.create(tmp_path, run) as writer:
            for arm, value in (("base", 9.0), ("head", 1.0 + number), ("base again", 9.0)):
                writer.add(
                    reports.Sample(benchmark="comparison", case="work", arm=arm, round=0, metric="process_s", unit="s",
                                   better="lower", value=value)
                )  # fmt: skip
    from wallclock.reports.views.history import series

    ((key, points),) = series(reports.load(tmp_path), reports.load_runs(tmp_path))
    assert key["case"] == "work" and list(points["value"]) == [1, 2, 3]
    assert list(points["git_sha"]) == [f"{n:040x}" for n in range(3)]


def test_other_commands_and_other_turns_are_other_series(tmp_path):
    compared = [{"benchmark": "comparison", "rule": {}, "base": {}, "head": {"text": text}} for text in ("a", "b", "a")]
    taken = [{"variants": {"how": how, "grid": [name]}} for how, name in (("study", "schedule"), ("grid", "epochs=1"))]
    for number, request in enumerate([*compared, *taken]):
        run = reports.Run(
            run_id=f"r{number}", started_utc=f"2026-01-0{number + 1}T00:00:00Z", command="", request=request, **PLACE
        )
        name = "comparison" if number < len(compared) else "cifar ablation"
        with reports.RunWriter.create(tmp_path, run) as writer:
            writer.add(
                reports.Sample(benchmark=name, case="work", arm="head", round=0, metric="step_s", unit="s",
                               better="lower", value=1.0 + number)
            )  # fmt: skip
    from wallclock.reports.views.history import series

    ((key, points),) = series(reports.load(tmp_path), reports.load_runs(tmp_path))
    assert key["subject"] == "a" and list(points["value"]) == [1, 3]


def test_the_page_draws_it(tmp_path):
    store(tmp_path / "runs", [1.0] * 8 + [1.1] * 6)
    page = reports.build_page(
        reports.load(tmp_path / "runs"), reports.load_runs(tmp_path / "runs"), tmp_path / "page.html"
    )
    html = page.read_text()
    assert "Trends" in html and "diamond-open" in html
