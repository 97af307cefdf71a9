"""The programs that docs/ and README print are run as they stand there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wallclock import reports

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "models", "loaders", "bench", "reports", "tests")


def programs(name):
    """Yields the first line and the text of each block of Python."""
    for text in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL):
        yield text.partition("\n")[0].removeprefix("# "), text


@pytest.fixture
def copied(tmp_path):
    """A copy of the tree, for an operation to be added to."""
    ignored = shutil.ignore_patterns("__pycache__", "published")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copytree(ROOT / "wallclock", tmp_path / "wallclock", symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_operation_that_is_added_step_by_step_works(copied):
    """As docs/kernels.md prints it: its tests pass, and `run kernels` finds it right and times it."""
    files = {name: text for name, text in programs("docs/kernels.md") if name.endswith(".py")}
    assert len(files) == 4
    for name, text in files.items():
        (copied / name).write_text(text, encoding="utf-8")
    specs = copied / "kernels" / "cases" / "__init__.py"
    text = specs.read_text(encoding="utf-8").replace("        MUON,\n", "        MUON,\n        SQUARED_RELU,\n")
    specs.write_text("from wallclock.kernels.cases.squared_relu import SQUARED_RELU\n" + text, encoding="utf-8")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = str(copied)  # before the tree that is installed

    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", *words], cwd=copied, env=environment, capture_output=True, text=True
        )

    tested = run("pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/kernels/test_squared_relu.py")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    chosen = ("--only", "squared_relu", "--device", "cpu", "--dtype", "fp32", "--out", "runs", "--json")
    measured = run("wallclock", "run", "kernels", *chosen)
    assert measured.returncode == 0, measured.stdout + measured.stderr
    samples = reports.load(copied / "runs")
    assert set(samples["status"]) == {"ok"}
    errors = samples[(samples["metric"] == "error") & (samples["benchmark"] == "kernels")]
    assert "eager" in set(errors["variant"]) and (errors["value"] < 1e-5).all()


@pytest.mark.parametrize("name", ["README.md", "docs/kernels.md", "docs/methodology.md", "docs/recipes.md"])
def test_every_other_program_runs(name, tmp_path):
    (tmp_path / "runs").symlink_to(ROOT / "reports" / "published" / "2026-11-26-xeon-2-cores")
    for title, text in programs(name):
        if title.endswith(".py"):
            continue
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(
            [sys.executable, "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, f"{name}: {title}\n{ran.stderr}"
