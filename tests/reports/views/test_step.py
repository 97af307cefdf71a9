"""Phases of a step, for a thousand images."""

from pathlib import Path

import pytest

from wallclock.reports import load
from wallclock.reports.views.step import phase_breakdown, phase_rows


def test_phases_are_for_a_thousand_images(cifar_root: Path) -> None:
    header, rows = phase_rows(load(cifar_root))
    assert header == ["case", "data", "forward", "backward", "optimiser", "evaluation", "overhead"]
    assert rows == [["sprint", "2.00", "20.0", "40.0", "4.00", "40.0", "+2.0%"]]
    assert phase_rows(load(cifar_root).query("metric != 'phase_time'"))[1] == []


def test_phases_are_means_for_1000_images(cifar_root: Path) -> None:
    figure = phase_breakdown(load(cifar_root))
    assert figure is not None
    parts = {
        (label, trace["name"]): x for trace in figure["data"] for label, x in zip(trace["y"], trace["x"], strict=True)
    }
    steps = {("sprint", n): ms for n, ms in (("data", 2), ("forward", 20), ("backward", 40), ("optimiser", 4))}
    assert figure["caption"].endswith("the timers cost +2.0% a step, which the bars hold.")
    assert parts == pytest.approx({**steps, ("sprint · evaluation", "evaluation"): 40})
