"""Files of pytest-benchmark stand beside our own runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wallclock.reports import StoreError, load, load_runs, summarise
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
    plain = frame[frame["case"] == "test_plain"]
    assert plain["benchmark"].unique().tolist() == ["pytest-benchmark"]
    assert (
        plain["value"].tolist() == next(b for b in document["benchmarks"] if b["name"] == "test_plain")["stats"]["data"]
    )
    named = frame[frame["benchmark"] == "kernels"]
    assert named["case"].unique().tolist() == ["residual x"] and named["dtype"].unique().tolist() == ["bf16"]
    assert "nested" not in frame and len(named) == 5
    assert summarise(frame).set_index("case").loc["test_plain", "n"] == 7
    (run,) = load_runs(written).to_dict("records")
    assert run["host"] == document["machine_info"]["node"] and run["run_status"] == "done"


def test_its_kernels_are_rows_of_the_kernel_table(written: Path) -> None:
    _, rows = kernel_rows(kernel_summary(load(written)))
    assert len(rows) == 1 and rows[0][1] == "eager" and rows[0][4] != ""


def test_it_stands_beside_runs(written: Path, cifar_root: Path) -> None:
    assert load([cifar_root, written])["run_id"].nunique() == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"a": 1}', '{"machine_info": {}, "benchmarks": [{}], "datetime": ""}']
)
def test_damage_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(StoreError, match="not a whole file of pytest --benchmark-json"):
        load(tmp_path / "b.json")
