"""Seeds and numeric settings of a measurement: one context manager sets, records and restores them."""

import ctypes
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

# Parameters of glibc's mallopt: number, value that keeps freed memory in the heap, default (man 3 mallopt).
# A trim threshold of -1 keeps all memory; mallopt's largest, 2**31 - 1, would give back what is free above 2 GiB.
_MALLOPT = {"M_TRIM_THRESHOLD": (-1, -1, 128 << 10), "M_TOP_PAD": (-2, 256 << 20, 128 << 10)}
_MALLOPT |= {"M_MMAP_MAX": (-4, 0, 65536)}


@contextmanager
def numerics(*, seed: int, keep_heap: bool = False) -> Iterator[dict[str, str]]:
    """Sets the numeric state of a measurement, yields it for the record, and restores the previous state.

    On a GPU float32 products and convolutions use TensorFloat-32, and cuDNN chooses its algorithms by timing them.

    Args:
        seed: seed of Python's, numpy's and torch's generators.
        keep_heap: whether glibc keeps freed memory instead of returning it to the kernel. By default every activation
            above 32 MiB is mapped anew, and its pages cleared, in each step: 183,000 page faults a step of the sprint
            network on two cores, and 2.04 s instead of 1.80 s. Compare the two settings in separate processes: the
            memory is returned at the end, but holes left in the heap may serve later blocks (1/20 of the page faults).

    Yields:
        The settings in force, by name.

    Raises:
        ValueError: if the seed is outside [0, 2**32), the range that numpy accepts.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; expected 0 <= seed < 2**32")
    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - for libraries that use numpy's global generator
        torch.manual_seed(seed)
        # "highest" first: if "medium" is in force, `allow_tf32` makes torch's two APIs disagree, and its getters raise.
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.allow_tf32 = True
        for name in ("allow_tf32", "benchmark"):
            stack.callback(setattr, torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
            setattr(torch.backends.cudnn, name, True)
        libc = ctypes.CDLL(None) if keep_heap else None
        heap = "default"
        if libc is not None and hasattr(libc, "gnu_get_libc_version"):
            heap = "kept"
            stack.callback(libc.malloc_trim, 0)
            for number, value, default in _MALLOPT.values():
                stack.callback(libc.mallopt, number, default)
                libc.mallopt(number, value)
        elif libc is not None:
            heap = "default: not glibc"
        yield {
            "seed": str(seed),
            "deterministic_algorithms": str(torch.are_deterministic_algorithms_enabled()),
            "tf32": "True",
            "cudnn_benchmark": str(torch.backends.cudnn.benchmark),
            "threads": str(torch.get_num_threads()),
            "heap": heap,
        }
