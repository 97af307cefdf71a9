"""`quick` and `suite` as a user runs them, whole: within their time, their memory and their budget."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from record_shape import record_shape
from rich.console import Console

from wallclock import reports
from wallclock.bench.measure.environment import cpu_bf16
from wallclock.bench.measure.timing import Deadline, now_s
from wallclock.bench.runs.job import Context
from wallclock.bench.tasks.cifar.task import quick_request

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """What a command printed, took, and had in memory at most, it and its children each."""

    code: int
    out: str
    err: str
    seconds: float
    peak_kib: int


def ran(folder, *arguments):
    """Runs wallclock in a process of its own."""
    begun = now_s()
    with (folder / "stdout").open("w+") as out, (folder / "stderr").open("w+") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "wallclock", *map(str, arguments)],
            stdout=out, stderr=err, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = now_s() - begun
        for stream in (out, err):
            stream.seek(0)
        return Ended(process.returncode, out.read(), err.read(), seconds, usage.ru_maxrss)


@pytest.mark.slow
@pytest.mark.timed
def test_quick_takes_at_most_3_minutes_and_4_gib_and_leaves_tables_and_a_page(tmp_path):
    quick = ran(tmp_path, "quick", "--out", tmp_path, "--device", "cpu")
    assert quick.code == 0, quick.err
    assert quick.seconds < 180 or not cpu_bf16()  # README promises it of CPUs that multiply bfloat16
    assert quick.peak_kib < 4 << 20
    (page,) = tmp_path.rglob("*.html")
    assert "Time to accuracy" in quick.out and f"report: {page}" in quick.out
    assert page.stat().st_size > 1 << 20
    assert record_shape(tmp_path) == json.loads(Path(__file__).with_name("quick_records.json").read_text())
    accuracies = reports.load(tmp_path).query("metric == 'final_accuracy'")["value"]
    assert len(accuracies) >= 2 and accuracies.min() >= 0.94


@pytest.mark.slow
@pytest.mark.timed
def test_suite_stops_inside_its_budget_with_what_it_could_measure(real_images, tmp_path):
    part = tmp_path / "part"
    part.mkdir()
    for name, rows in (("train", 2000), ("test", 500)):
        pq.write_table(pq.read_table(real_images / f"{name}.parquet").slice(0, rows), part / f"{name}.parquet")
    suite = ran(
        tmp_path, "suite", "--budget", "100s", "--data", part, "--out", tmp_path / "out", "--device", "cpu", "--json"
    )
    assert suite.code == 0, suite.err
    assert suite.seconds < 100
    assert "wrn22: skipped, its full run takes hours on a CPU" in suite.err
    document = json.loads(suite.out)
    measured = {row["case"] for row in document["summary"] if row["metric"] == "step_time"}
    assert "sprint" in measured
    assert {run["run_status"] for run in document["runs"]} <= {"done", "stopped"}
    assert list((tmp_path / "out").rglob("*.html"))


@pytest.mark.parametrize(("flags", "precision"), [({"avx2", "amx_bf16"}, "bf16"), ({"avx2"}, "fp32")])
def test_quick_trains_in_float32_where_bfloat16_is_emulated(monkeypatch, flags, precision):
    monkeypatch.setattr("wallclock.bench.measure.environment.cpu_flags", lambda: frozenset(flags))
    context = Context(Path(), None, "cpu", Deadline(None), Console(), "wallclock quick")
    assert quick_request(context).recipe.precision == precision
