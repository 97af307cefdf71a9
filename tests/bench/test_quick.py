"""`quick` and `suite` as a user runs them, whole: within their time, their memory and their budget."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import reports
from bench.timing import now_s

ROOT = Path(__file__).parents[2]


def timed(*arguments):
    """Runs wallclock in a process of its own: (exit code, output, errors, seconds)."""
    begun = now_s()
    done = subprocess.run(
        [sys.executable, "-m", "bench.cli", *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr, now_s() - begun


@pytest.mark.slow
def test_quick_takes_at_most_3_minutes_and_4_gib_and_leaves_tables_and_a_page(tmp_path):
    code, out, err, elapsed = timed("quick", "--out", tmp_path, "--device", "cpu")
    assert code == 0, err
    assert elapsed < 180
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 << 20  # KiB; the largest child so far
    (page,) = tmp_path.rglob("*.html")
    assert "Time to accuracy" in out and f"report: {page}" in out
    assert page.stat().st_size > 1 << 20
    accuracies = reports.load(tmp_path).query("metric == 'final_accuracy'")["value"]
    assert len(accuracies) >= 2 and accuracies.min() >= 0.94


@pytest.mark.slow
def test_suite_stops_inside_its_budget_with_what_it_could_measure(real_images, tmp_path):
    part = tmp_path / "part"
    part.mkdir()
    for name, rows in (("train", 2000), ("test", 500)):
        pq.write_table(pq.read_table(real_images / f"{name}.parquet").slice(0, rows), part / f"{name}.parquet")
    code, out, err, elapsed = timed(
        "suite", "--budget", "100s", "--data", part, "--out", tmp_path / "out", "--device", "cpu", "--json"
    )
    assert code == 0, err
    assert elapsed < 100
    assert "wrn22: skipped, its full run takes hours on a CPU" in err
    document = json.loads(out)
    measured = {row["case"] for row in document["summary"] if row["metric"] == "step_time"}
    assert "sprint" in measured
    assert {run["run_status"] for run in document["runs"]} <= {"done", "stopped"}
    assert list((tmp_path / "out").rglob("*.html"))
