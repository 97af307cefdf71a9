"""Devices that are projected from one's steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wallclock.reports import Run, RunWriter, Sample, load
from wallclock.reports.views.ablation import AS_IS
from wallclock.reports.views.scaling import scaling_rows, scaling_summary


def test_a_projection_is_the_step_of_a_part_and_the_exchange_after_it(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    """A machine that is twice as slow in one round leaves the ratios alone; a round cut short does not count."""
    measured = ((AS_IS, 512, 0.8), ("part of 2 devices", 256, 0.4), ("part of 8 devices", 64, 0.2))
    with RunWriter.create(tmp_path / "runs", make_run()) as writer:
        for variant, batch, step_s in measured:
            named: dict[str, Any] = {"benchmark": "cifar ablation", "case": "wrn22", "variant": variant}
            named["parameters"] = {"batch_size": batch}
            writer.add(make_sample(metric="gradient_bytes", unit="B", value=4e7, **named))
            for number, slower in enumerate((9, 1, 2, 1)):  # the first is warm-up
                if (number, variant) != (3, "part of 8 devices"):
                    phase = "steady" if number else "warm-up"
                    writer.add(make_sample(metric="step_s", value=slower * step_s, phase=phase, round=number, **named))
    rows = scaling_summary(load(tmp_path)).set_index("devices")
    assert rows["at_most"].to_dict() == pytest.approx({2: 2, 8: 4})
    assert rows["part"].to_dict() == {2: 256, 8: 64}
    exchange_s = 2 * 7 / 8 * 4e7 / 10e9
    assert rows.loc[8, "at_10"] == pytest.approx((0.8 / (0.2 + exchange_s) + 1.6 / (0.4 + exchange_s)) / 2)
    assert rows.loc[2, "at_100"] == pytest.approx(0.8 / (0.4 + 4e7 / 100e9))
    header, cells = scaling_rows(load(tmp_path))
    assert len(header) == len(cells[0]) and [row[1] for row in cells] == ["2", "8"]


def test_an_ablation_of_something_else_projects_nothing(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    with RunWriter.create(tmp_path / "runs", make_run()) as writer:
        writer.add(make_sample(benchmark="cifar ablation", metric="step_s", value=1.0, variant=AS_IS, round=1))
    assert scaling_rows(load(tmp_path))[1] == []
