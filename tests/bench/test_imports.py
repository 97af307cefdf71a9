"""The five packages as a whole: who may import whom, who reads clocks, whose packages they are, and a fast `--help`."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wallclock import PACKAGES
from wallclock.bench.measure.timing import now_s

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ALLOWED = {
    "bench": {"bench", "models", "loaders", "kernels", "reports"},
    "models": {"models", "kernels", "reports"},
    "loaders": {"loaders", "kernels", "reports"},
    "kernels": {"kernels", "reports"},
    "reports": {"reports"},
}
CLOCKS = {
    *("time.perf_counter", "time.perf_counter_ns", "time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns"),
    *("time.process_time", "time.process_time_ns", "time.thread_time", "timeit", "torch.cuda.synchronize"),
    *("torch.cuda.Event", "torch.Event"),
}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> Iterator[str]:
    """Yields the dotted names a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def clock_reads(path: Path) -> set[str]:
    """Returns what a module names of `CLOCKS`, whether it imports the function or reaches it through its module."""
    tree = ast.parse(path.read_text())
    reached = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | set(imported(path))
    return {name for name in reached if name in CLOCKS or name.endswith((".synchronize", ".elapsed_time"))} - {
        "wallclock.bench.measure.timing.synchronize"
    }


def test_every_package_has_modules() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(PACKAGES)
    assert {"kernels", "loaders", "torch"} <= roots(ROOT / "loaders" / "device.py")  # so imports are found


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_imports_only_point_down(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert roots(path) & set(PACKAGES) <= ALLOWED[package]


@pytest.mark.parametrize("path", [p for p in MODULES if p.is_relative_to(ROOT / "reports")], ids=named)
def test_reports_import_no_torch(path: Path) -> None:
    assert not roots(path) & {"torch", "torchvision", "triton"}


@pytest.mark.parametrize("path", [p for p in MODULES if p.is_relative_to(ROOT / "kernels")], ids=named)
def test_kernels_import_torch_and_triton_only(path: Path) -> None:
    assert roots(path) <= {"torch", "triton", "kernels", "reports"} | sys.stdlib_module_names


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_only_the_timer_reads_clocks(path: Path) -> None:
    assert clock_reads(path) == set() or path == ROOT / "bench" / "timing.py"


def test_the_search_for_clocks_finds_those_of_the_timer() -> None:
    found = clock_reads(ROOT / "bench" / "timing.py")
    assert {"time.perf_counter", "time.time", "torch.cuda.Event", "torch.cuda.synchronize"} <= found
    assert {"start.elapsed_time", "first.elapsed_time"} <= found


def python(*arguments: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    """Runs Python with `path` as PYTHONPATH, and with leave to write bytecode."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = path
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["models", "reports"])
@pytest.mark.parametrize("kind", ["package", "module"])
def test_a_foreign_package_in_front_is_refused_by_name_and_path(tmp_path: Path, name: str, kind: str) -> None:
    foreign = tmp_path / name if kind == "package" else tmp_path / f"{name}.py"
    if kind == "package":
        foreign.mkdir()
        (foreign / "__init__.py").write_text("")
    else:
        foreign.write_text("")
    done = python("-c", "import bench", cwd=tmp_path, path=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"ImportError: wallclock needs its own package '{name}' from {ROOT}")
    assert f"'{name}' is {foreign}; take that path off PYTHONPATH" in message


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    """The environment has the project installed, so that `-S` keeps its packages out of sight."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text((ROOT / "bench" / "__init__.py").read_text())
    done = python("-S", "-c", "import bench", cwd=tmp_path)
    assert done.returncode == 1
    assert "its own package 'kernels'" in done.stderr and "'kernels' cannot be imported" in done.stderr


def test_the_own_packages_are_accepted_behind_others(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()  # without __init__.py: a folder of that name, no package
    done = python("-c", "import bench", cwd=tmp_path, path=f"{tmp_path}{os.pathsep}{ROOT}")
    assert (done.returncode, done.stderr) == (0, "")


def test_help_imports_nothing_heavy() -> None:
    done = python("-X", "importtime", "-m", "wallclock", "--help", cwd=ROOT)
    assert done.returncode == 0 and "Usage" in done.stdout
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in modules
    assert not modules & {"torch", "pandas", "numpy", "scipy", "plotly", "pyarrow", "pydantic", "jinja2"}


@pytest.mark.slow
@pytest.mark.timed
def test_help_takes_less_than_0_3_s() -> None:
    """The best of five, bytecode compiled: other processes share these cores, and can only add to it."""
    taken = []
    for _ in range(5):
        start = now_s()
        assert python("-m", "wallclock", "--help", cwd=ROOT).returncode == 0
        taken.append(now_s() - start)
    assert min(taken) < 0.3
