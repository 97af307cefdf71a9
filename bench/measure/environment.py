"""The machine that measures: its description for the records, and which benchmarks it can run, or why not."""

import functools
import hashlib
import os
import platform
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from wallclock.bench.measure.telemetry import Telemetry

ROOT = Path(__file__).resolve().parents[2]
# Prefixes of variables that decide how torch and its libraries compute; PATH_ENDINGS marks those that hold file paths.
FLAG_PREFIXES: tuple[str, ...] = ("CUDA_", "CUBLAS_", "OMP_", "MKL_", "PYTORCH_", "TORCH_", "TORCHINDUCTOR_")
FLAG_PREFIXES += ("TRITON_", "MALLOC_", "GLIBC_")
PATH_ENDINGS = ("_DIR", "_PATH", "_HOME")


def _git(*arguments: str) -> str | None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def source_hash() -> str:
    """Returns twelve hex digits of the sha256 over all Python sources of the five packages, paths included."""
    from wallclock import PACKAGES

    digest = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@functools.cache
def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines) if value}


def cpu_name() -> str:
    """Returns the CPU's model name."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Returns the names that Linux gives the CPU's instruction-set flags; empty on other systems."""
    return frozenset(_cpuinfo().get("flags", "").split())


def cpu_bf16() -> list[str]:
    """Returns the CPU's flags for bfloat16 products; without any, bfloat16 is emulated and slower than float32."""
    return sorted(cpu_flags() & {"avx512_bf16", "amx_bf16"})


def _cgroup(name: str) -> str:
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""


def cpu_cores() -> int:
    """Returns how many cores this process may use: its affinity, or the control group's quota if that is less."""
    cores = len(os.sched_getaffinity(0))
    quota, _, period = _cgroup("cpu.max").partition(" ")
    return max(1, min(cores, int(quota) // int(period))) if quota.isdigit() and period.isdigit() else cores


def memory_bytes() -> int:
    """Returns how much memory this process may use: the machine's, or the control group's limit if that is less."""
    import psutil

    total, limit = int(psutil.virtual_memory().total), _cgroup("memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def last_level_cache_bytes() -> int:
    """Returns the size of the CPU's largest cache; 32 MiB if the system does not report it."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]])
    return max(sizes, default=32 << 20)


def package_version(name: str) -> str | None:
    """Returns the version of an installed distribution without importing it, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@functools.cache
def _torch_version() -> dict[str, Any]:
    """Returns the variables of `torch.version`, read without the two seconds that importing torch takes."""
    spec = find_spec("torch")
    return {} if spec is None or spec.origin is None else runpy.run_path(str(Path(spec.origin).with_name("version.py")))


def resolve_device(name: str) -> str:
    """Returns the type of the device to use: "cpu", "cuda", or for "auto" the GPU's on a machine with one.

    Raises:
        ValueError: if the name is another, or "cuda" is asked for and no GPU answers.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device is '{name}'; expected cpu, cuda or auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA GPU answers here; `wallclock env` says why. Use --device cpu")
    return name


def provenance(device_type: str) -> dict[str, Any]:
    """Returns the fields of `reports.Run` that describe machine, software, source code, and for "cuda" the GPU."""
    status = _git("status", "--porcelain")
    chosen = (key for key in sorted(os.environ) if key.startswith(FLAG_PREFIXES) and not key.endswith(PATH_ENDINGS))
    flags = {key: os.environ[key] for key in chosen}
    fields: dict[str, Any] = {
        "git_sha": _git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
        "source_hash": source_hash(),
        "host": platform.node(),
        "cpu": cpu_name(),
        "cpu_cores": cpu_cores(),
        "memory_bytes": memory_bytes(),
        "python": platform.python_version(),
        "torch": _torch_version().get("__version__"),
        "triton": package_version("triton"),
        "cuda": _torch_version().get("cuda"),
        "environment": {"platform": platform.platform(), "cpu_bf16": ",".join(cpu_bf16()) or "none", **flags},
    }
    if device_type == "cuda":
        import torch

        with Telemetry() as telemetry:
            fields |= {
                "gpu_name": torch.cuda.get_device_name(),
                "gpu_driver": telemetry.driver(),
                "gpu_power_limit_w": telemetry.power_limit_w(),
                "gpu_clocks_locked": telemetry.clocks_locked(),
            }
        fields["environment"]["cudnn"] = str(torch.backends.cudnn.version())
    return fields


@dataclass(frozen=True)
class Capability:
    """Hardware or software that some benchmarks need, such as "CUDA GPU".

    `detail` is the name or version of what was found, or the reason why it is missing; `install` is the user's next
    step to get it, empty if there is none.
    """

    name: str
    available: bool
    detail: str
    install: str = ""


EXTRAS = (
    ("lmdb", "lmdb", "LSUN's LMDB export"),
    ("quality", "torch-fidelity", "FID, KID and others"),
    ("ray", "ray", "rounds and trials on many machines"),
    ("tune", "optuna", "tuning of recipes"),
)


def capabilities() -> list[Capability]:
    """Returns every capability, with the reason and the next step for those that this machine lacks."""
    from wallclock.kernels.spec import cpp_compiler

    bf16 = cpu_bf16()
    without = "no avx512_bf16 or amx_bf16: bf16 is emulated, fp32 may be faster"
    found = [Capability("CUDA GPU", *_gpu()), Capability("bf16 on the CPU", bool(bf16), ", ".join(bf16) or without)]
    gpu = found[0].available
    compiler, triton = cpp_compiler(), package_version("triton")
    hint = "" if compiler else "install g++ (Debian: apt install g++)"
    found.append(Capability("torch.compile on the CPU", compiler is not None, compiler or "no C++ compiler", hint))
    slow = "" if gpu else " without a GPU runs in its interpreter only (TRITON_INTERPRET=1): right, but slow"
    told = ("triton is not installed", "uv add triton") if triton is None else (f"triton {triton}{slow}", "")
    found.append(Capability("Triton kernels", triton is not None and gpu, *told))
    dali = package_version("nvidia-dali-cuda130") or package_version("nvidia-dali-cuda120")
    found.append(_package("DALI", "dali", dali and dali + ("" if gpu else ", on the CPU only")))
    for extra, package, name in EXTRAS:
        version = package_version(package)
        found.append(_package(name, extra, version and f"{package} {version}"))
    with Telemetry() as telemetry:
        driver = telemetry.driver()
        detail = telemetry.unavailable if driver is None else f"driver {driver}"
        found.append(Capability("NVML telemetry", driver is not None, detail))
    free = shutil.disk_usage(Path.cwd()).free
    hint = "" if free > 1 << 30 else "make room, or write elsewhere with --out"
    return [*found, Capability("disk space", free > 1 << 30, f"{free / 2**30:.0f} GiB free here", hint)]


def _gpu() -> tuple[bool, str, str]:
    """Returns whether a GPU answers, with what was found and the next step; see `Capability`."""
    import torch

    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return True, f"{torch.cuda.get_device_name()}, sm_{major}{minor}, CUDA {torch.version.cuda}", ""
    if torch.version.cuda is None:
        return False, f"torch {torch.__version__} is built without CUDA", "install the CUDA build of torch"
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return False, "a GPU is there, but its driver does not answer", "install or update the NVIDIA driver"
    return False, "no NVIDIA GPU in this machine", ""


def _package(name: str, extra: str, found: str | None) -> Capability:
    """Returns the capability that one of this package's extras brings; `found` is its version if it is installed."""
    return Capability(name, bool(found), found or "not installed", "" if found else f"uv sync --extra {extra}")


def machine() -> str:
    """Returns one line that names the machine and the versions of Python and torch, without importing torch."""
    torch_version = package_version("torch") if find_spec("torch") else "no torch"
    hardware = f"{cpu_name()}, {cpu_cores()} cores, {memory_bytes() / 2**30:.0f} GiB"
    return f"{hardware}; Python {sys.version.split()[0]}, torch {torch_version}"
