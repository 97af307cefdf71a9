"""The five packages as a whole: who may import whom, who reads clocks, and a fast `--help`."""

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
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
# Rooms from the top floor down; a module imports from its own room and from floors below it. docs/architecture.md
FLOORS = {
    "bench": ("cli", "suite", "cases quality compare", "tasks", "ablation", "runs", "measure", "engine"),
    "loaders": ("pipelines", "data", "batches"),
    "models": ("build", "networks", "layers", "upsampling", "recipes"),
    "reports": ("docs", "report", "page", "views", "format", "stats", "store"),
}
CLOCKS = {
    *("time.perf_counter", "time.perf_counter_ns", "time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns"),
    *("time.process_time", "time.process_time_ns", "time.thread_time", "timeit", "torch.cuda.synchronize"),
    *("torch.cuda.Event", "torch.Event"),
}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> set[str]:
    """Returns the dotted names that a module imports, inside functions and for type checkers too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}:{node.lineno} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_modules(path: Path) -> set[str]:
    """Returns the modules of this project that a module imports, as `bench.measure.timing`."""
    names = set()
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "wallclock":
            for end in (len(parts), len(parts) - 1):
                place = ROOT.joinpath(*parts[1:end])
                if end > 1 and (place.with_suffix(".py").exists() or (place / "__init__.py").exists()):
                    names.add(".".join(parts[1:end]))
                    break
    return names


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def roots(path: Path) -> set[str]:
    """Returns the packages that a module imports, of this project by their folders."""
    names = (name.removeprefix("wallclock.") for name in imported(path))
    return {name.partition(".")[0] for name in names}


def floor(module: str) -> int | None:
    """Returns the number of a room's floor in its package, from the top; None for what stands in no room."""
    package, *rooms = module.split(".")
    for number, names in enumerate(FLOORS.get(package, ())):
        if rooms and rooms[0] in names.split():
            return number
    return None


def upward(path: Path) -> list[str]:
    """Returns the modules of its own package that a module imports from a floor above, or from beside its room."""
    module = module_name(path)
    here = floor(module)
    if here is None:
        return []
    own = [name for name in imported_modules(path) if name.split(".")[0] == module.split(".")[0]]
    beside = [name for name in own if name.split(".")[1:2] != module.split(".")[1:2]]
    return [name for name in beside if (there := floor(name)) is not None and there <= here]


def clock_reads(path: Path) -> set[str]:
    """Returns what a module names of `CLOCKS`, whether it imports the function or reaches it through its module."""
    tree = ast.parse(path.read_text())
    reached = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | imported(path)
    return {name for name in reached if name in CLOCKS or name.endswith((".synchronize", ".elapsed_time"))} - {
        "wallclock.bench.measure.timing.synchronize"
    }


def test_every_package_has_modules() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(PACKAGES)
    assert {"kernels", "loaders", "torch"} <= roots(ROOT / "loaders" / "pipelines" / "device.py")  # they are found


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_imports_only_point_down(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert roots(path) & set(PACKAGES) <= ALLOWED[package]
    assert upward(path) == []


def test_no_module_imports_itself_through_others() -> None:
    graph = {module_name(path): imported_modules(path) - {module_name(path)} for path in MODULES}
    assert "bench.measure.timing" in graph["bench.runs.job"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("path", [p for p in MODULES if p.is_relative_to(ROOT / "reports")], ids=named)
def test_reports_import_no_torch(path: Path) -> None:
    assert not roots(path) & {"torch", "torchvision", "triton"}


@pytest.mark.parametrize("path", [p for p in MODULES if p.is_relative_to(ROOT / "kernels")], ids=named)
def test_kernels_import_torch_and_triton_only(path: Path) -> None:
    assert roots(path) <= {"torch", "triton", "kernels", "reports"} | sys.stdlib_module_names


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_only_the_timer_reads_clocks(path: Path) -> None:
    assert clock_reads(path) == set() or path == ROOT / "bench" / "measure" / "timing.py"


def test_the_search_for_clocks_finds_those_of_the_timer() -> None:
    found = clock_reads(ROOT / "bench" / "measure" / "timing.py")
    assert {"time.perf_counter", "time.time", "torch.cuda.Event", "torch.cuda.synchronize"} <= found
    assert {"start.elapsed_time", "first.elapsed_time"} <= found


def python(*arguments: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    """Runs Python with `path` as PYTHONPATH, and with leave to write bytecode."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = path
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "says", "heavy"),
    [
        (("--help",), "Usage", {"torch", "pandas", "numpy", "scipy", "plotly", "pyarrow", "pydantic", "jinja2"}),
        (("list",), "kernels", {"torch", "triton"}),
    ],
)
def test_help_and_list_import_nothing_heavy(arguments: tuple[str, ...], says: str, heavy: set[str]) -> None:
    done = python("-X", "importtime", "-m", "wallclock", *arguments, cwd=ROOT)
    assert done.returncode == 0 and says in done.stdout
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in modules
    assert not modules & heavy


@pytest.mark.slow
@pytest.mark.timed
def test_help_takes_less_than_0_3_s(slowness: float) -> None:
    """The best of five, bytecode compiled: other processes share these cores, and can only add to it."""
    taken = []
    for _ in range(5):
        start = now_s()
        assert python("-m", "wallclock", "--help", cwd=ROOT).returncode == 0
        taken.append(now_s() - start)
    assert min(taken) < 0.3 * slowness
