import math
import re
from dataclasses import replace

import numpy as np
import pytest

from wallclock import reports
from wallclock.bench.compare import calibration
from wallclock.bench.compare.calibration import LOADED, NOISES, CalibrationRequest, CalibrationRun, simulated_times
from wallclock.bench.measure.processes import time_process
from wallclock.reports.stats.verdicts import Rule
from wallclock.reports.views.calibration import calibration_rows, calibration_summary, false_verdicts, tally_verdicts


@pytest.mark.parametrize("noise", NOISES)
def test_no_noise_makes_verdicts_false_and_what_is_stated_is_found(noise):
    rule = Rule()
    for planted in (0.0, rule.tolerance):
        found = tally_verdicts(*simulated_times(noise, 2000, 12, planted, 0), planted, rule)
        assert found["regressed"] + found["improved"] <= 0.05 * 2000
        assert found["regressed_of_many"] + found["improved_of_many"] <= 0.05 * 2000
        assert found["regressed_in_looks"] + found["improved_in_looks"] <= 0.05 * 2000
    found = tally_verdicts(*simulated_times(noise, 2000, 12, 0.10, 0), 0.10, rule)
    assert found["regressed"] / 2000 == pytest.approx(found["stated_power"], abs=0.1) and found["improved"] <= 2


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("rounds", [6, 8, 12, 24])
def test_the_worsening_that_is_printed_is_found_four_times_in_five(noise, rounds):
    found = tally_verdicts(*simulated_times(noise, 2000, rounds, 0.0, 1), 0.0, Rule())
    assert found["printed_detectable"] == pytest.approx(found["true_detectable"], rel=0.2)


def test_in_rounds_too_few_for_a_verdict_no_worsening_is_printed():
    found = tally_verdicts(*simulated_times("normal", 200, 5, 0.0, 1), 0.0, Rule())
    assert found["printed_detectable"] == math.inf and found["stated_power"] == 0


def test_the_arms_meet_the_same_noise():
    base, head, again = simulated_times("drift", 500, 12, 0.0, 1)
    assert base.shape == head.shape == again.shape == (500, 12)
    assert np.median(head / base) == pytest.approx(1, abs=0.01) == np.median(again / base)
    assert np.median(base[:, -1] / base[:, 0]) > 1.1  # the machine slows
    assert np.median(simulated_times("normal", 500, 12, 0.05, 1)[1]) == pytest.approx(1.05, abs=0.01)


def test_a_calibration_is_measured_recorded_and_tabled(tmp_path, monkeypatch):
    measured, noise = [], np.random.default_rng(0)

    def quiet(command, **options):
        """The process as it is, but for its time, which a busy machine would decide."""
        loops = int(re.search(r"\d+", command[-1])[0])
        done = time_process(command, **options) if not measured else measured[0]
        measured.append(done)
        return replace(done, seconds=(0.01 + 2e-8 * loops) * float(noise.normal(1, 0.001)))

    monkeypatch.setattr(calibration, "time_process", quiet)
    request = CalibrationRequest(comparisons=3, planted=2, loaded=1, simulated=40, rounds=6, worsenings=(2.0,))
    run = CalibrationRun(request, tmp_path, "test")
    lines = []
    assert run.execute(lines.append) == "done" and measured[0].seconds > 0
    summary = calibration_summary(reports.load(tmp_path), reports.load_runs(tmp_path))
    real = summary[~summary["noise"].str.endswith("simulated")].set_index(["noise", "planted"])
    assert real.loc[("this machine", 0.0), "comparisons"] == 3 and real.loc[("this machine", 2.0), "regressed"] == 2
    assert (LOADED, 0.0) in real.index and any("a core busy: 2 of 2" in line for line in lines)
    assert set(summary["noise"]) >= {f"{noise}, simulated" for noise in NOISES}
    _, rows = calibration_rows(summary)
    assert len(rows) == len(summary) and rows[0][0] == "normal, simulated"


def test_false_verdicts_are_said_and_end_the_command_with_3(tmp_path, wallclock, monkeypatch):
    small = ("--comparisons", "0", "--planted", "0", "--loaded", "0", "--simulated", "200", "--out", tmp_path)
    code, out, err = wallclock("calibrate", *small)
    tables, _, _ = out.partition("report: ")
    assert code == 0 and "normal" in tables and max(map(len, tables.splitlines())) <= 80, err
    monkeypatch.setattr(calibration, "simulated_times", lambda *a: simulated_times(*a[:3], 0.2, a[4]))  # a lie
    code, _, err = wallclock("calibrate", *small)
    assert code == 3 and "too many false verdicts: normal, simulated, each alone" in err


def test_requests_out_of_range_are_refused(wallclock):
    code, _, err = wallclock("calibrate", "--rounds", "3")
    assert code == 2 and "expected 6 or more" in err
    assert false_verdicts(calibration_summary(*_nothing()), Rule()) == []


def _nothing():
    import pandas as pd

    return pd.DataFrame({"benchmark": [], "run_id": [], "metric": []}), pd.DataFrame()
