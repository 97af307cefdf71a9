"""Provenance, capabilities and telemetry against what the system itself says; only NVML needs a stand-in here."""

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from wallclock import PACKAGES
from wallclock.bench.measure import environment
from wallclock.bench.measure.environment import capabilities, provenance, source_hash
from wallclock.reports.store.schema import Run

ROOT = Path(__file__).resolve().parents[3]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; torch finds none")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="asks what a machine without a GPU answers")


@pytest.fixture(scope="module")
def fields() -> dict[str, Any]:
    return provenance("cpu")


def copied(where: Path) -> Path:
    for package in (*PACKAGES, "wallclock"):
        ignored = shutil.ignore_patterns("__pycache__", "published")
        shutil.copytree(ROOT / package, where / package, ignore=ignored, symlinks=True)
    return where


def elsewhere(root: Path, expression: str) -> str:
    """Evaluates an expression of `bench.measure.environment` as copied to `root`, in a process of its own."""
    program = f"from wallclock.bench.measure import environment; print({expression})"
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_provenance_fills_a_run(fields: dict[str, Any]) -> None:
    run = Run(
        run_id="r", started_utc="2026-01-01T00:00:00Z", command="c", request={}, recipe={}, recipe_hash="h", **fields
    )
    assert run.host == platform.node()
    assert run.python == platform.python_version()
    assert run.torch == torch.__version__
    assert run.gpu_name is None and run.gpu_driver is None  # a run on the CPU, whatever else is in the machine


def test_hardware_is_what_this_process_may_use(fields: dict[str, Any]) -> None:
    assert 1 <= fields["cpu_cores"] <= len(os.sched_getaffinity(0))
    assert 1 << 28 < fields["memory_bytes"] <= psutil.virtual_memory().total
    assert fields["cpu"] in Path("/proc/cpuinfo").read_text()


def test_affinity_is_heeded() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert environment.cpu_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 1), ("50000 100000", 1), ("6400000 100000", None), ("max 100000", None)]
)
def test_a_quota_of_the_control_group_counts_where_it_is_less(
    monkeypatch: pytest.MonkeyPatch, quota: str, cores: int | None
) -> None:
    monkeypatch.setattr(environment, "_cgroup", lambda name: {"cpu.max": quota}[name])
    assert environment.cpu_cores() == (cores or len(os.sched_getaffinity(0)))


def test_a_memory_limit_of_the_control_group_counts_where_it_is_less(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, expected in ((str(1 << 28), 1 << 28), ("max", None), (str(1 << 60), None)):
        monkeypatch.setattr(environment, "_cgroup", lambda name, limit=limit: {"memory.max": limit}[name])
        assert environment.memory_bytes() == (expected or psutil.virtual_memory().total)


def test_flags_that_change_a_measurement_are_recorded_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("SECRET_TOKEN", "do not tell")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/home/somebody")
    recorded = provenance("cpu")["environment"]
    assert (recorded["OMP_NUM_THREADS"], recorded["TRITON_INTERPRET"]) == ("1", "1")
    assert recorded["CUDA_VISIBLE_DEVICES"] == "3"
    assert not {"do not tell", "/home/somebody"} & set(recorded.values())
    assert all(isinstance(value, str) for value in recorded.values())


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path) -> None:
    copied(tmp_path)
    git_fields = "{k: v for k, v in environment.provenance('cpu').items() if k.startswith('git')}"
    assert elsewhere(tmp_path, git_fields) == "{'git_sha': None, 'git_dirty': None}"


def test_a_checkout_names_its_commit_and_whether_it_was_changed_since(tmp_path: Path) -> None:
    copied(tmp_path)
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "all")
    told = "[environment.provenance('cpu')[k] for k in ('git_sha', 'git_dirty')]"
    sha = git(tmp_path, "rev-parse", "HEAD")
    assert elsewhere(tmp_path, told) == f"['{sha}', False]"
    (tmp_path / "kernels" / "augment.py").write_text("# changed\n")
    assert elsewhere(tmp_path, told) == f"['{sha}', True]"


def test_a_package_inside_someone_elses_checkout_does_not_name_its_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "theirs")
    site = tmp_path / "venv" / "site-packages"
    site.mkdir(parents=True)
    assert elsewhere(copied(site), "environment.provenance('cpu')['git_sha']") == "None"


def test_the_source_hash_follows_contents_and_names_and_nothing_else(tmp_path: Path) -> None:
    copied(tmp_path)
    source, told = tmp_path / "kernels" / "augment.py", "environment.source_hash()"
    first = elsewhere(tmp_path, told)
    assert first == source_hash() and len(first) == 12
    (tmp_path / "kernels" / "notes.txt").write_text("not a source")
    assert elsewhere(tmp_path, told) == first
    source.write_text(source.read_text() + "# one more line\n")
    changed = elsewhere(tmp_path, told)
    source.rename(source.with_name("augmented.py"))
    assert len({first, changed, elsewhere(tmp_path, told)}) == 3


def test_a_version_is_read_without_an_import() -> None:
    program = (
        "import sys; from wallclock.bench.measure.environment import package_version as v; "
        "print(v('torch'), v('no-such-package'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [version("torch"), "None", "False"]


def test_the_machine_is_named_in_one_line() -> None:
    line = environment.machine()
    assert "\n" not in line and environment.cpu_name() in line and version("torch") in line


def by_name() -> dict[str, environment.Capability]:
    return {capability.name: capability for capability in capabilities()}


def test_every_capability_says_what_was_found_or_why_not() -> None:
    found = by_name()
    wanted = {"CUDA GPU", "bf16 on the CPU", "torch.compile on the CPU", "Triton kernels", "DALI", "NVML telemetry"}
    assert wanted < set(found)
    assert all(capability.detail for capability in found.values())
    assert found["CUDA GPU"].available == torch.cuda.is_available()
    assert "://" not in "".join(capability.install for capability in found.values())


def test_without_a_compiler_the_next_step_is_to_install_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = by_name()["torch.compile on the CPU"]
    assert not missing.available
    assert missing.detail == "no C++ compiler" and "install g++" in missing.install
    compiler = tmp_path / "clang++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    found = by_name()["torch.compile on the CPU"]
    assert (found.available, found.detail, found.install) == (True, "clang++", "")


@without_gpu
def test_without_a_gpu_triton_is_told_to_interpret() -> None:
    assert not by_name()["CUDA GPU"].available
    assert "TRITON_INTERPRET=1" in by_name()["Triton kernels"].detail
