"""Who reaches a target at what cost, and figures of cost."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plotly.graph_objects
import pytest

from wallclock.reports import Run, RunWriter, Sample, load, time_to_target
from wallclock.reports.views.accuracy import accuracy_rows, leaderboard, leaderboard_rows, time_to_target_dots
from wallclock.reports.views.kernels import kernel_summary, roofline, speedup_map
from wallclock.reports.views.points import _point_costs, point_costs

PUBLISHED = Path(__file__).parents[3] / "reports" / "published"


def test_points_are_timed_on_straight_lines_and_count_when_first_reached() -> None:
    seconds, percents = np.array([10.0, 20.0, 30.0]), np.array([2.0, 1.0, 4.0])
    costs = _point_costs(seconds, percents, None)
    assert costs == pytest.approx({1.0: 5, 2.0: 5, 3.0: 10, 4.0: 10})
    assert _point_costs(seconds, percents, 3.5) == pytest.approx({3.5: 10})
    assert _point_costs(seconds, percents, 4.5) == {}


def test_the_fastest_stands_first_with_its_clocks_energy_and_record(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    ids = {}
    for name, second in (("slow", 20.0), ("fast", 10.0)):
        with RunWriter.create(tmp_path, make_run(recipe_hash=name, gpu_name="GPU 1")) as writer:
            ids[name] = writer.run.run_id
            for seed in range(2):
                own = {"case": name, "seed": seed}
                for step, accuracy in ((1, 0.5), (2, 0.88)):
                    look = {"epoch": step, "step": step, **own}
                    writer.add(make_sample(metric="accuracy", unit="fraction", value=accuracy, **look))
                    writer.add(make_sample(metric="elapsed_train_eval_s", value=step * second / 4, **look))
                scored = {"target": 0.9, "reached": True, "censored": False}
                writer.add(make_sample(metric="final_accuracy", unit="fraction", value=0.91, **scored, **own))
                writer.add(make_sample(metric="train_eval_s", value=second, **scored, **own))
                writer.add(make_sample(metric="resident_s", value=second + 1, **scored, **own))
                writer.add(make_sample(metric="energy_j", unit="J", value=100.0 * (seed + 1), **own))
            writer.add(make_sample(metric="process_s", value=second + 5, **scored, case=name, seed=0))
    board = leaderboard(load(tmp_path))
    assert board["case"].tolist() == ["fast", "slow"]
    best = board.iloc[0]
    assert (best["train_eval_s"], best["resident_s"], best["process_s"], best["energy_j"]) == (10, 11, 15, 150)
    assert best["run_ids"] == [ids["fast"]] and best["date"] == "2026-11-23"
    assert best["last_point_s"] == pytest.approx(5 / 3)  # from 88% at 5 s to 91% at 10 s
    header, rows = leaderboard_rows(board)
    assert "GPU 1" in rows[0] and dict(zip(header, rows[0], strict=True))["energy J"] == "150"


def test_what_was_not_measured_says_so(cifar_root: Path) -> None:
    board = leaderboard(load(cifar_root))
    _, ((*_, process, energy, last, hardware, date, record),) = leaderboard_rows(board)
    assert process == energy == "not measured" and last != "not measured"
    assert date and record == board["run_ids"][0][0]
    assert leaderboard_rows(leaderboard(load(cifar_root).query("metric == 'accuracy'")))[1] == []


def test_each_point_has_the_median_and_the_range_of_the_seeds(cifar_root: Path) -> None:
    ((label, points),) = point_costs(load(cifar_root)).items()
    assert "sprint" in label and max(points) == 90
    median, least, most = points[89.0]
    assert least <= median <= most and math.isfinite(median)


def test_figures_of_cost_are_what_plotly_accepts() -> None:
    kernels = kernel_summary(load(PUBLISHED / "2026-11-26-h200"))
    copies, speedups = roofline(kernels), speedup_map(kernels)
    assert copies is not None and speedups is not None
    for figure in (copies, speedups):
        plotly.graph_objects.Figure(figure)
    line = copies["data"][-1]
    assert line["name"] == "a copy: 4,222 GB/s"
    assert line["y"][0] / line["x"][0] == pytest.approx(1e6 / 4222e3, rel=1e-3)  # us for a MB
    (heat,) = speedups["data"]
    row = [place for place, label in enumerate(heat["y"]) if "256x128x16x16 leaky_relu residual" in label][0]
    assert heat["text"][row][heat["x"].index("triton")] == "1.75"
    assert "eager" not in heat["x"] and heat["z"][row][heat["x"].index("masks")] is None
    nothing = kernel_summary(load(PUBLISHED / "2026-11-25-interpreter"))
    assert roofline(nothing) is None and speedup_map(nothing) is None


def test_a_miss_is_marked_and_moves_the_expected_time(cifar_root: Path) -> None:
    figure = time_to_target_dots(load(cifar_root))
    assert figure is not None
    reached, missed, expected = figure["data"]
    assert reached["x"] == [10, 11, 12, 14] and missed["x"] == [13]
    assert reached["marker"]["symbol"] != missed["marker"]["symbol"]
    assert expected["x"] == [15]


def test_a_recipe_with_something_set_otherwise_is_apart_everywhere(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    for recipe_hash, time in (("aaaa1111", 10.0), ("bbbb2222", 20.0)):
        with RunWriter.create(
            tmp_path / "runs", make_run(run_id=f"run-{recipe_hash}", recipe_hash=recipe_hash)
        ) as writer:
            scored = {"case": "sprint", "seed": 0, "target": 0.9, "reached": True, "censored": False}
            writer.add(make_sample(metric="final_accuracy", unit="fraction", value=0.91, **scored))
            writer.add(make_sample(value=time, **scored))
    figure = time_to_target_dots(load(tmp_path))
    assert figure is not None
    assert figure["layout"]["yaxis"]["ticktext"] == ["sprint · recipe=aaaa1111", "sprint · recipe=bbbb2222"]
    rows = time_to_target(load(tmp_path))
    assert rows["train_eval_s"].tolist() == [10.0, 20.0]
    assert [row[0] for row in accuracy_rows(rows)[1]] == ["sprint\nrecipe=aaaa1111", "sprint\nrecipe=bbbb2222"]
