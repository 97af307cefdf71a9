"""Describes an operation to tests and benchmarks: reference, variants, shapes, predicted cost, and allowed error.

Shape legend: N batch, C channels, H, W height and width.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Direction = Literal["forward", "backward", "both"]
Inputs = dict[str, Tensor | None]

# Largest error allowed against the float64 reference, as a share of its largest value. A variant may also have twice
# the error of eager PyTorch in the same type, because sums of gradients lose more digits than a single value.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape at which an operation is measured.

    Attributes:
        network: the network that has this shape.
        shape: shape of the input, NCHW.
        options: keyword arguments for every variant.
        flags: further properties for `KernelSpec.inputs` and the costs, such as "residual".
    """

    network: str
    shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Name in the records, such as "darknet 256x64x16x16 leaky_relu residual"."""
        words = [value for value in self.options.values() if isinstance(value, str)]
        return " ".join([self.network, "x".join(map(str, self.shape)), *words, *sorted(self.flags)])

    @property
    def elements(self) -> int:
        """Number of elements of the input, N*C*H*W."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True, kw_only=True)
class KernelSpec:
    """An operation as tests and benchmarks see it.

    Attributes:
        name: name of the operation and of its file.
        reference: function that defines the operation; called with float64 inputs.
        variants: implementations with one signature, by name, including the judge.
        cases: shapes to measure, with distinct names.
        static_cases: cases that the static gate compiles; empty for all.
        main_cases: static cases that are also compiled in float16 and float32, and with `static_variants`.
        static_variants: further variants that the static gate alone compiles, such as evaluation.
        overwritten: prefixes of the inputs that every variant overwrites. Their values after a call are its result;
            each check, and each variant while it is timed, has copies of them.
        inputs: function that makes the tensors of a case, keyword arguments of every variant, equal in each call.
        differentiated: names of the inputs whose gradients are taken; empty if there is no backward.
        judge: name of the variant whose error decides how large the errors of the others may be.
        bytes_moved: number of bytes that a variant should move, by case, variant, direction and bytes of an element.
        operations: number of additions and multiplications, by case and direction.
        loose: largest errors allowed to variants that keep approximate values.
        in_place: prefixes of the inputs that one variant overwrites, by variant; it gets copies of them, and its result
            is its return value.
        only_at: for each variant that does not implement every case, a function that returns whether it implements one.
    """

    name: str
    reference: Callable[..., Tensor]
    variants: Mapping[str, Callable[..., Tensor]]
    cases: tuple[Case, ...]
    inputs: Callable[[Case, torch.dtype, torch.device], Inputs]
    differentiated: tuple[str, ...]
    bytes_moved: Callable[[Case, str, Direction, int], int]
    operations: Callable[[Case, Direction], int]
    loose: Mapping[str, float] = field(default_factory=dict)
    static_cases: tuple[Case, ...] = ()
    main_cases: tuple[Case, ...] = ()
    static_variants: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    overwritten: tuple[str, ...] = ()
    in_place: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    only_at: Mapping[str, Callable[[Case], bool]] = field(default_factory=dict)
    judge: str = "eager"

    def variants_at(self, case: Case) -> list[str]:
        """Returns the names of the variants that implement a case."""
        return [name for name in self.variants if name not in self.only_at or self.only_at[name](case)]

    def own(self, inputs: Inputs, variant: str) -> Inputs:
        """Returns the inputs, with copies in the same memory order of those that a variant overwrites."""
        spoilt = self.overwritten + self.in_place.get(variant, ())
        return {
            name: tensor.clone() if tensor is not None and name.startswith(spoilt) else tensor
            for name, tensor in inputs.items()
        }

    def results(self, inputs: Inputs, y: Tensor) -> list[Tensor]:
        """Returns the results of a call: its return value, or the inputs that it has overwritten."""
        if not self.overwritten:
            return [y]
        return [t for name, t in inputs.items() if t is not None and name.startswith(self.overwritten)]

    def __post_init__(self) -> None:
        names = [case.name for case in self.cases]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{self.name} has the case {', '.join(twice)} twice")
        if self.judge not in self.variants:
            raise ValueError(f"{self.name} has no variant '{self.judge}', by which the others are judged")


def cpp_compiler() -> str | None:
    """Returns the C++ compiler that `torch.compile` needs on a CPU, if one is installed."""
    return next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)


def available(variant: str, device: torch.device) -> str:
    """Returns the reason why a variant cannot run on a device; empty if it can.

    Args:
        variant: name of the variant. With "triton" at its beginning it needs Triton, and a GPU or the interpreter;
            "compile" needs a C++ compiler on a CPU; any other is plain PyTorch.
        device: device to run on.
    """
    if variant == "compile" and device.type == "cpu" and cpp_compiler() is None:
        return "torch.compile needs a C++ compiler on the CPU; install g++"
    if not variant.startswith("triton"):
        return ""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (Linux on x86-64 only)"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton needs a GPU; TRITON_INTERPRET=1 runs it on the CPU, right but slow"
    return ""


def interpreted(variant: str, device: torch.device) -> str:
    """Returns the reason why a variant that can run on a device is not timed there; empty if it is."""
    return "Triton's interpreter is not timed" if variant.startswith("triton") and device.type != "cuda" else ""


def relative_error(found: Iterable[Tensor], exact: Iterable[Tensor]) -> float:
    """Returns the largest error of any tensor as a share of its largest exact value; infinite for a NaN."""
    errors = [
        ((ours.double() - right.double()).abs().max() / right.double().abs().max().clamp_min(1e-30)).item()
        for ours, right in zip(found, exact, strict=True)
    ]
    return max(errors) if all(error == error for error in errors) else float("inf")


def failures() -> tuple[type[Exception], ...]:
    """Returns the exceptions that compilers, drivers and lack of memory raise, as opposed to mistakes in this suite."""
    try:
        from triton.errors import TritonError
    except ImportError:
        return RuntimeError, MemoryError
    return RuntimeError, MemoryError, TritonError


def in_a_line(error: Exception) -> str:
    """Returns an error's kind and the first 300 characters of its message on one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}".rstrip(": ")
