"""Numeric settings: each is set, recorded as it is in force, and put back, whatever happens inside."""

import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wallclock.bench.measure.numerics import numerics

ROOT = Path(__file__).resolve().parents[3]

needs_glibc = pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")


def state() -> dict[str, object]:
    return {
        "matmul": torch.get_float32_matmul_precision(),
        "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
        "convolution_tf32": torch.backends.cudnn.allow_tf32,
        "benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "threads": torch.get_num_threads(),
    }


def draws() -> list[float]:
    return [random.random(), float(np.random.random()), float(torch.rand(()))]  # noqa: NPY002


@pytest.fixture(autouse=True)
def _same_afterwards() -> Iterator[None]:
    before = state()
    yield
    assert state() == before


@pytest.mark.parametrize(
    ("option", "reads", "recorded"),
    [
        ({}, lambda: torch.backends.cuda.matmul.allow_tf32, ("tf32", "True")),
        ({}, lambda: torch.backends.cudnn.allow_tf32, ("tf32", "True")),
        ({}, lambda: torch.backends.cudnn.benchmark, ("cudnn_benchmark", "True")),
        ({}, lambda: not torch.are_deterministic_algorithms_enabled(), ("deterministic_algorithms", "False")),
        ({"seed": 7}, lambda: torch.initial_seed() == 7, ("seed", "7")),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_each_setting_is_in_force_inside_recorded_and_put_back(
    option: dict[str, Any], reads: Callable[[], bool], recorded: tuple[str, str], fails: bool
) -> None:
    before = state()

    def body() -> None:
        with numerics(**({"seed": 0} | option)) as record:
            assert reads()
            assert record[recorded[0]] == recorded[1]
            if fails:
                raise KeyError("inside")

    if fails:
        with pytest.raises(KeyError, match="inside"):
            body()
    else:
        body()
    assert state() == before


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_a_matmul_precision_set_before_comes_back_and_torch_can_still_read_it(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    try:
        with numerics(seed=0):
            assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_number_of_threads_is_recorded() -> None:
    with numerics(seed=0) as record:
        assert record["threads"] == str(torch.get_num_threads())


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    drawn = []
    for seed in (5, 5, 6):
        with numerics(seed=seed):
            drawn.append(draws())
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))


def test_the_generators_go_on_as_if_nothing_had_been_drawn_inside() -> None:
    with numerics(seed=1):
        expected = [draws(), draws()]
    with numerics(seed=1):
        first = draws()
        with numerics(seed=2):
            draws()
        assert [first, draws()] == expected


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_numpy_does_not_take_are_refused_and_nothing_is_set(seed: int) -> None:
    before = draws_ahead()
    with pytest.raises(ValueError, match=r"expected 0 <= seed < 2\*\*32"), numerics(seed=seed):
        pytest.fail("the body ran")
    assert draws_ahead() == before


def draws_ahead() -> list[float]:
    """What the generators would draw next, without drawing it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    drawn = draws()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    return drawn


def faults(mebibytes: int = 64, times: int = 20) -> int:
    """Counts the times the kernel hands out memory while a tensor is made and dropped again and again."""
    torch.ones(mebibytes << 18)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(mebibytes << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@needs_glibc
def test_a_kept_heap_is_not_handed_out_again_and_goes_back_in_the_end() -> None:
    """In a process of its own: a hole that another test has left in the heap would hold the blocks."""
    call = f"import runpy; runpy.run_path({__file__!r})['heap_is_kept_and_goes_back']()"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def heap_is_kept_and_goes_back() -> None:
    before = faults()
    with numerics(seed=0, keep_heap=True) as record:
        assert record["heap"] == "kept"
        faults()  # the heap of a new process grows for some blocks yet
        kept = faults()
        big = torch.ones(256 << 18)
        held = resident_bytes()
        del big
        assert resident_bytes() > held - (16 << 20)
    assert resident_bytes() < held - (200 << 20)
    assert before > 20 * 64 * 2**20 / resource.getpagesize() / 600  # even if pages of 2 MiB come in
    assert kept < before / 10
    # glibc's defaults are back: a block that no hole left in the heap can hold is mapped anew each time.
    assert faults(mebibytes=512, times=3) > before / 20 * 8 * 3 / 2


@pytest.mark.slow
@needs_glibc
def test_a_kept_heap_keeps_more_than_2_gib() -> None:
    """Only addresses are asked for: the block is never written, so that the test needs no such memory."""
    program = (
        "import ctypes\n"
        "from wallclock.bench.measure.numerics import numerics\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p\n"
        "with numerics(seed=0, keep_heap=True):\n"
        "    start, block = libc.sbrk(0), libc.malloc(ctypes.c_size_t(5 << 29))\n"
        "    grown = libc.sbrk(0)\n"
        "    libc.free(ctypes.c_void_p(block))\n"
        "    assert grown - start >= 5 << 29\n"
        "    assert libc.sbrk(0) == grown\n"
        "assert libc.sbrk(0) < grown - (5 << 28)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_glibc
def test_the_heap_goes_back_when_the_body_raises() -> None:
    with pytest.raises(KeyError), numerics(seed=0, keep_heap=True):
        torch.ones(256 << 18)
        held = resident_bytes()
        raise KeyError
    assert resident_bytes() < held - (200 << 20)


def test_a_heap_left_alone_is_recorded_so() -> None:
    with numerics(seed=0) as record:
        assert record["heap"] == "default"


def test_another_libc_is_recorded_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other libc is at hand: this takes away what glibc is known by, and mallopt must not be called then."""
    monkeypatch.setattr("wallclock.bench.measure.numerics.ctypes.CDLL", lambda name: object())
    with numerics(seed=0, keep_heap=True) as record:
        assert record["heap"] == "default: not glibc"


def test_importing_it_sets_nothing() -> None:
    program = (
        "import torch, random\n"
        "def state(): return (torch.initial_seed(), torch.get_num_threads(), torch.backends.cudnn.benchmark,\n"
        "    torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision(), random.getstate())\n"
        "before = state()\n"
        "import wallclock.bench.measure.numerics\n"
        "assert state() == before\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
