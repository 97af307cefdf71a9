"""`wallclock run kernels --static`: compiles every kernel for several GPUs, without having one, and checks the result.

The operations run as they would on a GPU up to each launch, where the kernel is compiled for every target instead.
"""

import contextlib
import importlib.util
import json
import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch

import wallclock.kernels.batch_norm_act
from wallclock.bench.measure.environment import provenance
from wallclock.bench.runs.select import is_chosen
from wallclock.kernels.cases import SPECS
from wallclock.kernels.spec import Case, KernelSpec
from wallclock.reports.store.schema import Run, RunStatus, Sample
from wallclock.reports.store.write import RunWriter, new_run_id, utc_now

TARGETS = (80, 90, 100)  # compute capabilities
EXTRA_TARGETS = (90,)  # targets of the kernels for evaluation and for the types that are not benchmarked
MULTIPROCESSORS = 132  # number that persistent kernels are divided over, as on an H100 or H200
BASELINE = Path(__file__).with_name("static_baseline.json")
NARROW_BELOW_BYTES = 8
TENSOR_CORES = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
NOP = 0x918  # the lowest 12 bits of an instruction
MEANT = "if that is meant, run with --update-baseline and commit it"
# Shared memory of one multiprocessor, by compute capability. All have 65,536 registers and 64 warps.
SHARED_BYTES = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}
# Accesses that are narrow at any shape: scattered single bytes ("loads"), and one bit per element ("bits").
NARROW_BY_NATURE = {"augment_kernel": "loads", "residual_kernel": "bits", "residual_backward_kernel": "bits"}
FIGURES: dict[str, tuple[str, Literal["lower", "higher"]]] = {  # metric: unit and better direction
    "registers": ("count", "lower"),  # registers per thread
    "spilled_bytes": ("B", "lower"),  # local memory that a thread uses because registers ran out
    "instructions": ("count", "lower"),  # length of the code; bounds a kernel that its memory traffic does not
    "shared_bytes": ("B", "lower"),  # shared memory per program
    "load_bytes": ("B", "higher"),  # a thread's widest load from a map
    "store_bytes": ("B", "higher"),  # a thread's widest store to a map
    "narrow": ("count", "lower"),  # accesses below 8 bytes per thread that could be wider
    "tensor_cores": ("count", "higher"),  # 1 if all products run on tensor cores or there are no products, else 0
    "occupancy": ("fraction", "higher"),  # share of a multiprocessor's warps that can run at once
}
GATED = ("spilled_bytes", "tensor_cores")  # only one value of these passes; the others are compared with the baseline


@dataclass(frozen=True)
class Compiled:
    """One kernel, compiled for one target, with its `FIGURES` by name.

    Attributes:
        kernel: name of the kernel, followed by the types and constants that distinguish kernels of one name.
        target: compute capability of the GPU, such as 90.
        case: operation and case that launched the kernel first.
    """

    kernel: str
    target: int
    case: str
    figures: dict[str, float]

    @property
    def key(self) -> str:
        """Key of the kernel in the baseline."""
        return f"sm_{self.target} {self.kernel}"


@contextlib.contextmanager
def _recorded(targets: tuple[int, ...] | None = None) -> Iterator[dict[str, Any]]:
    """Makes every launch compile for the targets (None for all) and run nothing; yields kernels by target and hash."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    found: dict[str, Any] = {}
    run = JITFunction.run
    stand_in = SimpleNamespace(device=TARGETS[0])  # a driver that can only compile; its device is a compute capability
    stand_in.get_current_device = lambda: stand_in.device
    stand_in.get_current_stream = lambda device: 0
    stand_in.get_current_target = lambda: GPUTarget("cuda", stand_in.device, 32)

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        for target in TARGETS if targets is None else targets:
            stand_in.device = target
            kernel = run(self, *arguments, grid=grid, warmup=True, **options)
            found[f"{target} {kernel.hash}"] = (target, self, kernel)

    before = getattr(driver, "_active", None)
    resident = wallclock.kernels.batch_norm_act.resident_programs
    JITFunction.run = compile_only
    wallclock.kernels.batch_norm_act.resident_programs = lambda device: MULTIPROCESSORS
    driver.set_active(stand_in)
    try:
        yield found
    finally:
        JITFunction.run = run
        wallclock.kernels.batch_norm_act.resident_programs = resident
        driver.set_active(before)


def chosen(only: tuple[str, ...] = ()) -> Iterator[tuple[KernelSpec, Case, list[str]]]:
    """Yields the operations and cases that `only` chooses, with the variants that have Triton kernels."""
    for spec in SPECS.values():
        for case in spec.static_cases or spec.cases:
            variants = [v for v in spec.variants_at(case) if v.startswith("triton")]
            if variants and is_chosen(f"{spec.name} {case.name}".split(), only):
                yield spec, case, variants


def compile_all(only: tuple[str, ...] = ()) -> Iterator[Compiled]:
    """Compiles the Triton kernels of each case that `only` chooses (see `bench.runs.select`); each kernel once."""
    made: set[str] = set()
    for spec, case, variants in chosen(only):
        with _recorded() as found:
            for variant in variants:
                _run(spec, case, variant)
        if case in spec.main_cases:
            with _recorded(EXTRA_TARGETS) as more:
                for variant in spec.static_variants:
                    _run(spec, case, variant)
                for dtype in (torch.float16, torch.float32):
                    _run(spec, case, "triton", dtype)
            found |= more
        for hashed, (target, function, kernel) in found.items():
            if hashed not in made:
                made.add(hashed)
                yield _examined(target, function, kernel, f"{spec.name} {case.name}")


def _run(spec: KernelSpec, case: Case, variant: str, dtype: torch.dtype = torch.bfloat16) -> None:
    inputs = spec.inputs(case, dtype, torch.device("cpu"))
    leaves = {n: t.requires_grad_() if t is not None and n in spec.differentiated else t for n, t in inputs.items()}
    y = {**spec.variants, **spec.static_variants}[variant](**leaves, **case.options)
    if spec.differentiated:
        wanted = [t for n in spec.differentiated if (t := leaves[n]) is not None]
        torch.autograd.grad(y, wanted, torch.empty_like(y))


def _examined(target: int, function: Any, kernel: Any, case: str) -> Compiled:
    ptx, metadata = kernel.asm["ptx"], kernel.metadata
    used = dict(re.findall(r"\b(REG|STACK):(\d+)", dump(kernel.asm["cubin"], "-res-usage")))
    registers = int(used["REG"])
    widths = {kind: _widths(ptx, kind) for kind in ("ld", "st")}
    figures = {
        "registers": registers,
        "spilled_bytes": int(used["STACK"]),
        "instructions": _instructions(kernel.asm["cubin"]),
        "shared_bytes": metadata.shared,
        "load_bytes": max((width for width, _ in widths["ld"]), default=0),
        "store_bytes": max((width for width, _ in widths["st"]), default=0),
        "narrow": _count_narrow(widths, metadata.name, _constants(function, kernel)),
        "tensor_cores": int("tt.dot" not in kernel.asm["ttir"] or bool(TENSOR_CORES.search(ptx))),
        "occupancy": _occupancy(registers, metadata.shared, metadata.num_warps, target),
    }
    return Compiled(_identity(function, kernel), target, case, figures)


def _count_narrow(widths: dict[str, list[tuple[int, int]]], name: str, constants: dict[str, Any]) -> int:
    """Counts the accesses narrower than `NARROW_BELOW_BYTES` that could be wider."""
    if any(constants.get(channels, 0) % 4 for channels in ("A_C", "OUT_C", "C", "K")):
        return 0  # a pixel of, say, three channels does not fill a multiple of 8 bytes
    nature = NARROW_BY_NATURE.get(name, "")
    accesses = [access for kind in widths if (nature, kind) != ("loads", "ld") for access in widths[kind]]
    if constants.get("PROLOGUE"):  # a prologue copies a norm's float32 vectors, 4 bytes at a time
        accesses = [access for access in accesses if access != (4, 16)]
    sizes = (16,) if nature == "bits" else (8, 16)
    return sum(width < NARROW_BELOW_BYTES and bits in sizes for width, bits in accesses)


def _identity(function: Any, kernel: Any) -> str:
    """Returns the kernel's name, its pointers' types, its constants, and the numbers known to be multiples of 16."""
    names, source = function.arg_names, kernel.src
    pointers = [t.removeprefix("*") for t in source.signature.values() if str(t).startswith("*")]
    constants = _constants(function, kernel)
    given = [f"{name}={_constant(value)}" for name, value in constants.items() if value is not None]
    divisible = [name for at in source.attrs if source.signature[name := names[at[0]]] in ("i32", "i64")]
    return " ".join([kernel.metadata.name, "/".join(dict.fromkeys(pointers)), *given, *(f"{n}%16" for n in divisible)])


def _constants(function: Any, kernel: Any) -> dict[str, Any]:
    return {function.arg_names[at[0]]: value for at, value in kernel.src.constants.items()}


def _constant(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_constant(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def dump(cubin: bytes, option: str) -> str:
    """Returns what cuobjdump, with one option, prints about a compiled kernel."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, option, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _instructions(cubin: bytes) -> int:
    """Counts the instructions of an ELF file's code, 16 bytes each from sm_70 on, without the NOPs that pad it.

    This reads the file itself because disassembling it takes 0.4 s, nearly as long as the compilation.
    """
    (headers_at,) = struct.unpack_from("<Q", cubin, 0x28)
    header_bytes, count, names_section = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, headers_at + number * header_bytes) for number in range(count)]
    names_at, found = sections[names_section][4], 0
    for name, _, _, _, offset, size in sections:
        if cubin.startswith(b".text.", names_at + name):
            first_halves = memoryview(cubin)[offset : offset + size].cast("Q")[::2]
            found += sum(half & 0xFFF != NOP for half in first_halves)
    return found


def _widths(ptx: str, kind: str) -> list[tuple[int, int]]:
    """Returns bytes per thread and bits per element of each global access; an asynchronous copy counts as 16-bit."""
    accesses = re.findall(rf"\b{kind}\.global[\w.:]*?(?:\.v([248]))?\.[busf](8|16|32|64)\b", ptx)
    widths = [(int(count or 1) * int(bits) // 8, int(bits)) for count, bits in accesses]
    if kind == "ld":
        copies = re.findall(r"\bcp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (0x[0-9a-f]+|\d+)", ptx)
        widths += [(int(count, 0), 16) for count in copies]
    return widths


def _occupancy(registers: int, shared: int, warps: int, target: int) -> float:
    """Returns the share of a multiprocessor's 64 warps that can run at once, given registers and shared memory."""
    of_warp = -(-registers * 32 // 256) * 256
    programs = min(65536 // (of_warp * warps), SHARED_BYTES[target] // (shared + 1024), 64 // warps, 32)
    return programs * warps / 64


def problems(compiled: list[Compiled], *, whole: bool = False) -> tuple[list[str], list[str]]:
    """Checks kernels against the rules for every kernel (`GATED`, narrow accesses) and against the committed baseline.

    If `whole`, these are all kernels, and one that only the baseline has is an error.

    Returns:
        A line for each error, and lines of remarks that do not fail the gate.
    """
    wrong = [f"{c.key}: spills {n} bytes" for c in compiled if (n := c.figures["spilled_bytes"])]
    narrow = f"accesses narrower than {NARROW_BELOW_BYTES} bytes"
    wrong += [f"{c.key}: {n} {narrow}" for c in compiled if (n := c.figures["narrow"])]
    wrong += [f"{c.key}: its products do not use tensor cores" for c in compiled if not c.figures["tensor_cores"]]
    nothing = {"triton": "none", "kernels": {}}
    baseline: dict[str, Any] = json.loads(BASELINE.read_text()) if BASELINE.exists() else nothing
    if baseline["triton"] != version("triton"):
        return wrong, [f"the baseline is of triton {baseline['triton']}, this is {version('triton')}: not compared"]
    for c in compiled:
        known = baseline["kernels"].get(c.key)
        if known is None:  # also after a changed constant: nobody has approved the figures of the new kernel
            wrong.append(f"{c.key}: not in the baseline; {MEANT}")
            continue
        worse = [
            f"{name} {known[name]} -> {c.figures[name]}"
            for name, (_, better) in FIGURES.items()
            if name not in GATED and (c.figures[name] - known[name]) * (1 if better == "lower" else -1) > 0
        ]
        if worse:
            wrong.append(f"{c.key}: {', '.join(worse)}; {MEANT}")
    if whole:
        gone = sorted(set(baseline["kernels"]) - {c.key for c in compiled})
        wrong += [f"{key}: in the baseline, and compiled no more; {MEANT}" for key in gone]
    return wrong, []


def write_baseline(compiled: list[Compiled]) -> Path:
    """Writes the compiled kernels' figures as the new baseline, and returns its path."""
    kernels = {c.key: {name: c.figures[name] for name in FIGURES if name not in GATED} for c in compiled}
    BASELINE.write_text(json.dumps({"triton": version("triton"), "kernels": kernels}, indent=1, sort_keys=True) + "\n")
    return BASELINE


class StaticRun:
    """One run of the static gate under `out`, which compiles every kernel and records its figures at once.

    `only` are texts that choose cases by words of operation and case, empty for all; with `update_baseline`, which
    needs all, the compiled kernels become the baseline.

    Raises:
        ValueError: if Triton is missing or interprets kernels, no case is chosen, or only a part would be the baseline.
        StoreError: if `out` cannot be written.
    """

    def __init__(self, out: Path, command: str, *, only: tuple[str, ...] = (), update_baseline: bool = False) -> None:
        if importlib.util.find_spec("triton") is None:
            raise ValueError("triton is not installed (Linux on x86-64 only)")
        if os.environ.get("TRITON_INTERPRET") == "1":
            raise ValueError("TRITON_INTERPRET=1 compiles nothing; unset it")
        if update_baseline and only:
            raise ValueError("--update-baseline needs all kernels; leave out --only")
        if not any(chosen(only)):
            raise ValueError(f"no case matches '{' | '.join(only)}'; operations: {', '.join(SPECS)}")
        asked: dict[str, Any] = {"request": {"benchmark": "static", "only": list(only)}, **provenance("cpu")}
        run = Run(run_id=new_run_id("static"), started_utc=utc_now(), command=command, **asked)
        self.writer, self.only, self.update_baseline = RunWriter.create(out, run), only, update_baseline

    def execute(self) -> tuple[RunStatus, list[str], list[str]]:
        """Compiles the kernels, checks them and closes the records.

        Returns:
            The run's status ("failed" if any kernel does not pass), a line for each error, and lines of remarks.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once the records are closed as "interrupted".
        """
        with self.writer as writer:
            compiled = []
            for c in compile_all(self.only):
                compiled.append(c)
                writer.add(*(_sample(c, metric) for metric in FIGURES))
            compiled.sort(key=lambda c: c.key)
            if self.update_baseline:
                write_baseline(compiled)
            wrong, remarks = problems(compiled, whole=not self.only)
            for text in wrong:
                writer.note(text)
            status: RunStatus = "failed" if wrong else "done"
            writer.finish(status, f"{len(wrong)} kernels do not pass" if wrong else None)
        return status, wrong, remarks


def _sample(c: Compiled, metric: str) -> Sample:
    unit, better = FIGURES[metric]
    name, _, constants = c.kernel.partition(" ")
    parameters: dict[str, Any] = {"architecture": f"sm_{c.target}", "constants": constants, "launched_by": c.case}
    return Sample(
        benchmark="static", case=name, metric=metric, unit=unit, better=better,
        value=c.figures[metric], parameters=parameters,
    )  # fmt: skip
