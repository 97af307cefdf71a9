"""What tests of several folders share."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

if not torch.cuda.is_available():  # before anything imports triton, which reads it once
    os.environ["TRITON_INTERPRET"] = "1"

if os.environ.get("PYTEST_XDIST_WORKER"):  # they share the cores, and more threads than cores wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

WORKER_BYTES = 3 << 30  # of memory that a worker with torch needs at its most
PANDAS_S = 0.3
HANGING_S = 1800  # of a slow test, on any machine; that of the others is in pyproject.toml
REAL_IMAGES = Path(__file__).parents[1] / ".." / "shared" / "data" / "cifar10-jpeg"


def pytest_configure() -> None:
    """A job in the background ignores Ctrl-C, and so would the processes that tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A timeout is a guard against hanging, not a bound on speed: machines differ by ten times."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(HANGING_S))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process for each core for the whole set; one for what is timed, measured, named by file, or shares a GPU."""
    whole = config.args == config.getini("testpaths")
    timed = config.option.markexpr not in ("not slow", "slow and not timed") or config.option.benchmark_only
    if not whole or timed or torch.cuda.is_available():
        return 0
    return max(1, min(len(os.sched_getaffinity(0)), psutil.virtual_memory().available // WORKER_BYTES))


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real images; a test that asks for it is skipped where they are not at hand."""
    if not (REAL_IMAGES / "train.parquet").exists():
        pytest.skip(f"no CIFAR-10 at {REAL_IMAGES}")
    return REAL_IMAGES


@pytest.fixture(scope="session")
def slowness() -> float:
    """How many times as long this machine takes as the one that the bounds of timed tests were set on, 1 at the least.

    Measured on `import pandas` in a fresh process, at its best of five: 0.3 s there.
    """
    from wallclock.bench.measure.timing import now_s

    times = []
    for _ in range(5):
        start = now_s()
        subprocess.run([sys.executable, "-c", "import pandas"], check=True)
        times.append(now_s() - start)
    return max(1.0, min(times) / PANDAS_S)


@pytest.fixture(scope="session")
def precision() -> str:
    """The recipe's precision that trains fastest here: a CPU that has no bfloat16 instructions emulates them."""
    from wallclock.bench.measure.environment import cpu_bf16

    return "bf16" if cpu_bf16() else "fp32"


@pytest.fixture(autouse=True)
def full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 is held to float32: TensorFloat-32, PyTorch's default for convolutions, has 11 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def device() -> torch.device:
    """Where kernels run: the GPU, or the CPU through Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole networks in the interpreter, whose time goes by tiles, not by what is in them."""
    if torch.cuda.is_available():
        return
    from wallclock.kernels import conv

    def few(rows: int, columns: int, inner: int, element_bytes: int) -> conv.Tiles:
        return conv.Tiles(conv._block(rows, 4096), conv._block(columns, 128), conv._block(inner, 128), 4, 3)

    monkeypatch.setattr(conv, "tiles", few)
    monkeypatch.setattr(conv, "PIXELS", 4096)
    monkeypatch.setattr(conv, "PROGRAMS", 1)
