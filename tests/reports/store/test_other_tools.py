"""Files of other benchmarking tools stand beside our own runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wallclock.reports import StoreError, load, load_runs, summarise
from wallclock.reports.report import Report
from wallclock.reports.views.kernels import kernel_rows, kernel_summary

TESTS = """
def test_plain(benchmark):
    benchmark.pedantic(lambda: sum(range(1000)), rounds=7, iterations=2)

def test_named(benchmark):
    benchmark.extra_info |= {"benchmark": "kernels", "case": "residual x", "variant": "eager", "operation": "residual"}
    benchmark.extra_info |= {"dtype": "bf16", "direction": "both", "cache": "hot", "shape": "2x3", "nested": [1]}
    benchmark.pedantic(lambda: sum(range(1000)), rounds=5)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as pytest-benchmark writes it."""
    folder = tmp_path_factory.mktemp("perf")
    (folder / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "--benchmark-only", "--benchmark-json", "b.json", "test_some.py"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=alone)
    return folder / "b.json"


def test_its_samples_are_those_in_the_file(written: Path) -> None:
    frame = load(written)
    document = json.loads(written.read_text())
    plain = frame[frame["case"] == "test_some.py::test_plain"]
    assert plain["benchmark"].unique().tolist() == ["pytest-benchmark"]
    assert (
        plain["value"].tolist() == next(b for b in document["benchmarks"] if b["name"] == "test_plain")["stats"]["data"]
    )
    named = frame[frame["benchmark"] == "kernels"]
    assert named["case"].unique().tolist() == ["residual x"] and named["dtype"].unique().tolist() == ["bf16"]
    assert "nested" not in frame and len(named) == 5
    assert summarise(frame).set_index("case").loc["test_some.py::test_plain", "n"] == 7
    (run,) = load_runs(written).to_dict("records")
    assert run["host"] == document["machine_info"]["node"] and run["run_status"] == "done"


def test_its_times_are_in_the_report(written: Path) -> None:
    _, rows = Report(written).tables()["Other metrics"]
    assert [row[:3] for row in rows] == [["test_some.py::test_plain", "latency ↓", "7"]]


def test_its_kernels_are_rows_of_the_kernel_table(written: Path) -> None:
    _, rows = kernel_rows(kernel_summary(load(written)))
    assert len(rows) == 1 and rows[0][1] == "eager" and rows[0][4] != ""


def test_it_stands_beside_runs(written: Path, cifar_root: Path) -> None:
    assert load([cifar_root, written])["run_id"].nunique() == 2


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"a": 1}', '{"machine_info": {}, "benchmarks": [{}], "datetime": ""}', '{"results": [{}]}',
     '{"context": {"date": "now"}, "benchmarks": []}', '{"commit_hash": "a", "result_columns": [], "results": 3}'],
)  # fmt: skip
def test_damage_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(StoreError, match="is no whole file of pytest-benchmark, google-benchmark, asv, hyperfine"):
        load(tmp_path / "b.json")


def test_a_file_without_a_benchmark_is_told(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text('{"results": []}')
    with pytest.raises(StoreError, match="holds no benchmark"):
        load(tmp_path / "b.json")


def test_medians_are_read_where_no_round_is_stored(tmp_path: Path, written: Path) -> None:
    """As `--benchmark-autosave` writes a file without `--benchmark-save-data`."""
    document = json.loads(written.read_text())
    for test in document["benchmarks"]:
        del test["stats"]["data"]
    (tmp_path / "b.json").write_text(json.dumps(document))
    frame = load(tmp_path / "b.json")
    assert frame["value"].tolist() == [test["stats"]["median"] for test in document["benchmarks"]]
    assert "pytest --benchmark-save-data" in load_runs(tmp_path / "b.json")["notes"].iloc[0][0]


def test_tests_of_one_name_are_told_apart(tmp_path: Path) -> None:
    names = ("a.py::test_it", "a.py::TestB::test_it", "b.py::test_it")
    tests = [{"name": "test_it", "fullname": name, "stats": {"data": [1.0, 1.1]}} for name in names]
    document = {"machine_info": {"node": "here"}, "datetime": "2026-01-01T00:00:00", "benchmarks": tests}
    (tmp_path / "b.json").write_text(json.dumps(document))
    assert load(tmp_path / "b.json")["case"].unique().tolist() == list(names)


@pytest.mark.skipif(shutil.which("hyperfine") is None, reason="hyperfine is not installed")
def test_hyperfines_processes_are_samples_of_its_commands(tmp_path: Path) -> None:
    command = ["hyperfine", "-N", "--runs", "3", "--export-json", "h.json", "-L", "t", "0.001,0.002", "sleep {t}"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    frame, document = load(tmp_path), json.loads((tmp_path / "h.json").read_text())
    assert frame.groupby("case")["value"].agg(list).to_dict() == {r["command"]: r["times"] for r in document["results"]}
    assert set(frame["metric"]) == {"process_s"} and set(frame["t"]) == {"0.001", "0.002"}


def test_google_benchmarks_repetitions_are_samples_in_seconds(tmp_path: Path) -> None:
    context = {"date": "2026-01-01T02:00:00+01:00", "host_name": "here", "num_cpus": 4, "executable": "./bench"}
    shared = {"name": "BM_it/8", "run_name": "BM_it/8", "run_type": "iteration", "time_unit": "us"}
    tests = [shared | {"repetition_index": n, "real_time": 2.0 + n, "cpu_time": 1.0 + n} for n in range(2)]
    median = {"name": "BM_it/8_median", "run_name": "BM_it/8", "run_type": "aggregate", "aggregate_name": "median"}
    tests.append(median | {"time_unit": "us", "real_time": 2.5, "cpu_time": 1.5})
    (tmp_path / "g.json").write_text(json.dumps({"context": context, "benchmarks": tests}))
    frame = load(tmp_path / "g.json")
    wall = frame[frame["metric"] == "latency"]["value"]
    assert wall.tolist() == pytest.approx([2e-6, 3e-6]) and set(frame["metric"]) == {"latency", "cpu_s"}
    run = load_runs(tmp_path / "g.json").iloc[0]
    assert run["started_utc"] == "2026-01-01T01:00:00Z" and run["host"] == "here" and run["command"] == "./bench"
    (tmp_path / "g.json").write_text(json.dumps({"context": context, "benchmarks": tests[2:]}))
    assert load(tmp_path / "g.json")["value"].tolist() == pytest.approx([2.5e-6, 1.5e-6])


def test_asvs_results_are_samples_by_parameters(tmp_path: Path) -> None:
    results = {
        "suite.time_sort": [[0.2, None], [["'a'", "'b'"]], "v", 1, 2, None, None, None, None, None, None,
                            [[0.19, 0.21], None]],
        "suite.peakmem_sort": [[1e6], [], "v"],
        "suite.time_gone": [None, [], "v"],
    }  # fmt: skip
    columns = ["result", "params", "version", "started_at", "duration", "stats_ci_99_a", "stats_ci_99_b", "stats_q_25",
               "stats_q_75", "stats_number", "stats_repeat", "samples", "profile"]  # fmt: skip
    document = {"commit_hash": "ab" * 20, "env_name": "py3.11", "date": 1767225600000, "python": "3.11", "version": 2}
    document |= {"params": {"machine": "here", "cpu": "c", "num_cpu": "2"}, "result_columns": columns}
    (tmp_path / "a.json").write_text(json.dumps(document | {"results": results}))
    (tmp_path / "machine.json").write_text('{"arch": "x86_64", "version": 1}')  # stands beside the results
    frame = load(tmp_path)
    assert frame["value"].tolist() == [0.19, 0.21, 1e6] and frame["unit"].tolist() == ["s", "s", "bytes"]
    assert frame["param0"].dropna().tolist() == ["'a'", "'a'"]
    run = load_runs(tmp_path).iloc[0]
    assert run["git_sha"] == "ab" * 20 and run["started_utc"] == "2026-01-01T00:00:00Z" and run["cpu_cores"] == 2
