"""Seeds and numeric settings of one measurement: set, recorded and put back by one context manager."""

import ctypes
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

# glibc's mallopt: parameter number, value that keeps freed memory in the heap, default (man 3 mallopt).
# A trim threshold of -1 is none; 2**31 - 1, the largest that mallopt takes, gives back what is free above 2 GiB.
_MALLOPT = {"M_TRIM_THRESHOLD": (-1, -1, 128 << 10), "M_TOP_PAD": (-2, 256 << 20, 128 << 10)}
_MALLOPT |= {"M_MMAP_MAX": (-4, 0, 65536)}


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _matmul_precision(tf32: bool) -> Iterator[None]:
    # Through "highest": over "medium", `allow_tf32` sets torch's two APIs at odds, and its own getters then raise.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def _generators(seed: int) -> Iterator[None]:
    python, with_numpy, on_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for libraries that use the global one
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(with_numpy)  # noqa: NPY002
        torch.set_rng_state(on_cpu)
        if on_cuda:
            torch.cuda.set_rng_state_all(on_cuda)


@contextmanager
def _kept_heap(libc: ctypes.CDLL) -> Iterator[None]:
    for number, value, _ in _MALLOPT.values():
        libc.mallopt(number, value)
    try:
        yield
    finally:
        for number, _, default in _MALLOPT.values():
            libc.mallopt(number, default)
        libc.malloc_trim(0)


@contextmanager
def numerics(
    *,
    seed: int,
    deterministic: bool = False,
    tf32: bool = True,
    cudnn_benchmark: bool = True,
    threads: int | None = None,
    keep_heap: bool = False,
) -> Iterator[dict[str, str]]:
    """Sets the numeric state of a measurement, yields its record, and restores what was there before.

    Args:
        seed: of Python's, numpy's and torch's generators.
        deterministic: refuse operations without a deterministic algorithm.
        tf32: let float32 matrix products and convolutions on a GPU use TensorFloat-32.
        cudnn_benchmark: let cuDNN choose convolution algorithms by timing them.
        threads: of torch's intra-operation pool; None keeps the present number.
        keep_heap: on a CPU with glibc, never give freed memory back to the kernel. By default every activation above
            32 MiB is mapped anew, and its pages cleared, in each step: 183,000 page faults a step of the sprint network
            on two cores, and 2.04 s instead of 1.80 s. Compare with and without in processes of their own: the memory
            goes back at the end, but the holes it leaves in the heap may serve later blocks (1/20 of the page faults).

    Yields:
        What is in force, for the record.

    Raises:
        ValueError: if the seed is not in [0, 2**32), which is all numpy takes.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; expected 0 <= seed < 2**32")
    with ExitStack() as stack:
        stack.enter_context(_generators(seed))
        stack.enter_context(_matmul_precision(tf32))
        stack.enter_context(_attribute(torch.backends.cudnn, "allow_tf32", tf32))
        stack.enter_context(_attribute(torch.backends.cudnn, "benchmark", cudnn_benchmark and not deterministic))
        if deterministic:
            stack.enter_context(_deterministic())
        if threads is not None:
            stack.enter_context(_threads(threads))
        heap = "default"
        if keep_heap:
            libc = _glibc()
            heap = "kept" if libc else "default: not glibc"
            if libc:
                stack.enter_context(_kept_heap(libc))
        yield {
            "seed": str(seed),
            "deterministic_algorithms": str(torch.are_deterministic_algorithms_enabled()),
            "tf32": str(tf32),
            "cudnn_benchmark": str(torch.backends.cudnn.benchmark),
            "threads": str(torch.get_num_threads()),
            "heap": heap,
        }
