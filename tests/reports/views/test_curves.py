"""Curves over a training: what Plotly accepts, with the recorded values."""

import json
from collections.abc import Callable
from pathlib import Path

import plotly.graph_objects
import pytest

from wallclock.reports import Run, RunWriter, Sample, load
from wallclock.reports.format.plotly import Figure
from wallclock.reports.views import accuracy, curves, step


@pytest.mark.parametrize("make", [curves.accuracy_over_time, accuracy.time_to_target_dots, step.phase_breakdown])
def test_figures_are_what_plotly_accepts(cifar_root: Path, make: Callable[..., Figure | None]) -> None:
    figure = make(load(cifar_root))
    assert figure is not None
    figure.pop("caption", None)
    plotly.graph_objects.Figure(figure)  # raises on any property that plotly.js does not know
    assert json.loads(json.dumps(figure, allow_nan=False)) == figure
    assert make(load(cifar_root).query("metric == 'nothing'")) is None


def test_accuracy_lines_hold_the_samples(cifar_root: Path) -> None:
    figure = curves.accuracy_over_time(load(cifar_root))
    assert figure is not None
    least, most = (trace for trace in figure["data"] if trace["meta"]["epoch"] is None)
    assert (least["x"][0], least["x"][-1]) == (7, 10) == (most["x"][0], most["x"][-1])  # where all five have been
    assert most["fill"] == "tonexty" and all(a <= b for a, b in zip(least["y"], most["y"], strict=True))
    lines = [trace for trace in figure["data"] if trace["meta"]["epoch"]]
    assert len(lines) == 5
    for seed, trace in enumerate(lines):
        assert trace["x"] == trace["meta"]["time"] == [(10 + seed) / 2, 10 + seed]
        assert trace["meta"]["epoch"] == [1, 2]
        assert trace["y"][0] == 50
    assert [shape["y0"] for shape in figure["layout"]["shapes"]] == [90]
    assert [trace["showlegend"] for trace in lines] == [True, False, False, False, False]


def test_of_a_seed_that_was_begun_anew_the_last_attempt_is_drawn(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    with RunWriter.create(tmp_path, make_run()) as writer:
        for attempt in (1, 2):
            at = {"seed": 0, "epoch": 1, "step": 100}
            writer.add(make_sample(metric="accuracy", unit="fraction", better="higher", value=attempt / 10, **at))
            writer.add(make_sample(metric="elapsed_train_eval_s", value=float(attempt), **at))
            writer.add(make_sample(metric="train_loss", unit="nats", value=float(attempt), **at))
    for make, axis, value in ((curves.accuracy_over_time, "y", 20), (curves.training_loss, "y", 2)):
        figure = make(load(tmp_path))
        assert figure is not None
        assert [trace[axis] for trace in figure["data"]] == [[value]]


def test_long_losses_are_thinned_to_means(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    with RunWriter.create(tmp_path, make_run()) as writer:
        for step in range(1000):
            writer.add(make_sample(metric="train_loss", unit="nats", value=step, step=step, seed=0))
    figure = curves.training_loss(load(tmp_path), most_points=100)
    assert figure is not None
    plotly.graph_objects.Figure(figure)
    assert figure["data"][0]["x"][:2] == [9, 19]
    assert figure["data"][0]["y"][:2] == [4.5, 14.5]
