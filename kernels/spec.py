"""What an operation is to tests and benchmarks: reference, variants, the shapes it meets, and what it should cost.

Shape legend: N batch, C channels, H, W height and width.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Direction = Literal["forward", "backward", "both"]
Inputs = dict[str, torch.Tensor | None]

# Largest error allowed against the float64 reference, as a share of its largest value. A variant may also err twice as
# much as eager PyTorch does in the same type: sums of gradients lose more digits than a single value.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape at which an operation is measured.

    Attributes:
        network: that it is of.
        shape: of the input, NCHW.
        options: keyword arguments of every variant.
        flags: what else `KernelSpec.inputs` and the costs look at, such as "residual".
    """

    network: str
    shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The case's name in the records, such as "darknet 256x64x16x16 leaky_relu residual"."""
        words = [value for value in self.options.values() if isinstance(value, str)]
        return " ".join([self.network, "x".join(map(str, self.shape)), *words, *sorted(self.flags)])

    @property
    def elements(self) -> int:
        """N*C*H*W."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True, kw_only=True)
class KernelSpec:
    """An operation as the benchmark knows it.

    Attributes:
        name: as its file.
        reference: defines it; called with float64 inputs.
        variants: implementations of one signature, by name; the judge is among them.
        cases: shapes, named differently.
        static_cases: those of them that the static gate compiles; none for all.
        main_cases: those of these that it compiles in float16 and float32 too, and with `static_variants`.
        static_variants: more that only the gate compiles, such as evaluation.
        overwritten: how the names of those inputs begin that every variant overwrites; then what these hold afterwards
            is the result, each check has copies, and each variant is timed on copies of its own, made beforehand.
        inputs: makes the tensors of a case: keyword arguments of every variant, the same ones for the same case.
        differentiated: those inputs that gradients are taken of; none if there is no backward.
        judge: the variant whose error decides what is allowed to the others.
        bytes_moved: of a case, a variant, a direction and a bytes-per-element: what the variant should move.
        operations: of a case and a direction: additions and multiplications.
        loose: errors allowed to variants that keep less than is exact.
        in_place: how the names of inputs begin that one variant alone overwrites, by the variant; it has copies, and
            its result is its value.
        only_at: variants that do not carry out every case, by name: whether they do one.
    """

    name: str
    reference: Callable[..., torch.Tensor]
    variants: Mapping[str, Callable[..., torch.Tensor]]
    cases: tuple[Case, ...]
    inputs: Callable[[Case, torch.dtype, torch.device], Inputs]
    differentiated: tuple[str, ...]
    bytes_moved: Callable[[Case, str, Direction, int], int]
    operations: Callable[[Case, Direction], int]
    loose: Mapping[str, float] = field(default_factory=dict)
    static_cases: tuple[Case, ...] = ()
    main_cases: tuple[Case, ...] = ()
    static_variants: Mapping[str, Callable[..., torch.Tensor]] = field(default_factory=dict)
    overwritten: tuple[str, ...] = ()
    in_place: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    only_at: Mapping[str, Callable[[Case], bool]] = field(default_factory=dict)
    judge: str = "eager"

    def variants_at(self, case: Case) -> list[str]:
        """Returns the names of the variants that carry out a case."""
        return [name for name in self.variants if name not in self.only_at or self.only_at[name](case)]

    def own(self, inputs: Inputs, variant: str) -> Inputs:
        """Returns the inputs with copies of those that a variant overwrites, in the same memory order."""
        spoilt = self.overwritten + self.in_place.get(variant, ())
        return {
            name: tensor.clone() if tensor is not None and name.startswith(spoilt) else tensor
            for name, tensor in inputs.items()
        }

    def results(self, inputs: Inputs, y: torch.Tensor) -> list[torch.Tensor]:
        """Returns what a call gives: its value, or the inputs that it has overwritten."""
        if not self.overwritten:
            return [y]
        return [t for name, t in inputs.items() if t is not None and name.startswith(self.overwritten)]

    def __post_init__(self) -> None:
        names = [case.name for case in self.cases]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{self.name} has the case {', '.join(twice)} twice")
        if self.judge not in self.variants:
            raise ValueError(f"{self.name} has no variant '{self.judge}'; it is what the others are judged by")


def cpp_compiler() -> str | None:
    """Returns the C++ compiler that `torch.compile` needs on a CPU, if one is installed."""
    return next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)


def available(variant: str, device: torch.device) -> str:
    """Returns why a variant cannot run on a device; empty when it can.

    Args:
        variant: one whose name begins with "triton" needs Triton, and a GPU or its interpreter; "compile" needs a C++
            compiler on a CPU; any other is plain PyTorch.
        device: to run on.
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
