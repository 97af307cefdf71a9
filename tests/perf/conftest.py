"""Benchmarks for pytest-benchmark; measured only when asked for, with `pytest tests/perf --benchmark-only`."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from wallclock.bench.measure.environment import cpu_name, source_hash
from wallclock.bench.measure.numerics import numerics


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Leaves them out of `uv run pytest`, where their times would mean nothing beside other tests."""
    named = any("perf" in argument for argument in config.args)
    return None if named or config.getoption("benchmark_only") else True


@pytest.fixture(scope="session", autouse=True)
def settings() -> Iterator[None]:
    """As `wallclock run kernels` measures."""
    with numerics(seed=0, keep_heap=True):
        yield


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["cpu"]["brand_raw"] = cpu_name()  # as our own records name it
    machine_info |= {"torch": torch.__version__, "source_hash": source_hash()}
    if torch.cuda.is_available():
        machine_info["gpu_name"] = torch.cuda.get_device_name()
