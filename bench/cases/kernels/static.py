"""`wallclock run kernels --static`: what the compiler makes of every kernel, for GPUs that need not be here.

The operations run as they would on a GPU up to each launch, where the kernel is compiled for several targets instead.
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
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import wallclock.kernels.batch_norm_act
from wallclock.bench.measure.environment import provenance
from wallclock.bench.runs.select import is_chosen
from wallclock.kernels.cases import SPECS
from wallclock.kernels.spec import Case, KernelSpec
from wallclock.reports.store.schema import Run, RunStatus, Sample
from wallclock.reports.store.write import RunWriter, new_run_id, utc_now

TARGETS = (80, 90, 100)
EXTRA_TARGETS = (90,)  # of what is no benchmark in bfloat16: the other types, evaluation
MULTIPROCESSORS = 132  # of the GPU that persistent kernels are cut up for
BASELINE = Path(__file__).with_name("static_baseline.json")
NARROW_BELOW_BYTES = 8
TENSOR_CORES = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
NOP = 0x918  # the lowest 12 bits of an instruction
MEANT = "if that is meant, run with --update-baseline and commit it"
# Of one multiprocessor, by compute capability: shared memory, bytes. All have 65,536 registers and 64 warps.
SHARED_BYTES = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}
# Accesses that no shape lets be wide: single bytes gathered from anywhere; an eighth of a byte an element.
NARROW_BY_NATURE = {"augment_kernel": "loads", "residual_kernel": "bits", "residual_backward_kernel": "bits"}


@dataclass
class Compiled:
    """What one kernel became for one target.

    Attributes:
        kernel: its name and the constants and types that tell it from others of that name.
        target: compute capability, such as 90.
        registers: of a thread.
        spilled_bytes: stored to and loaded from local memory because registers ran out.
        instructions: of its code: what a GPU issues bounds a kernel that its bytes do not.
        shared_bytes: of a program.
        load_bytes: of a thread's widest access of a map.
        store_bytes: the same.
        narrow: accesses of 8- and 16-bit elements that are narrower than eight bytes a thread, though nothing in the
            kernel's nature makes them so.
        tensor_cores: whether its products run on tensor cores; 1 where there are none.
        occupancy: warps that fit on a multiprocessor, as a share of the most.
        case: that launched it first.
    """

    kernel: str
    target: int
    registers: int
    spilled_bytes: int
    instructions: int
    shared_bytes: int
    load_bytes: int
    store_bytes: int
    narrow: int
    tensor_cores: int
    occupancy: float
    case: str

    @property
    def key(self) -> str:
        """Its place in the baseline."""
        return f"sm_{self.target} {self.kernel}"


class _Driver:
    """Stands in for the GPU's driver, as far as compiling goes; a device's number is its compute capability."""

    def __init__(self) -> None:
        self.device = TARGETS[0]

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.device, 32)


@contextlib.contextmanager
def _recorded(targets: tuple[int, ...] | None = None) -> Iterator[dict[str, Any]]:
    """Makes every launch compile for the targets (None: all) and run nothing; yields what came of it, by key."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    found: dict[str, Any] = {}
    stand_in, run = _Driver(), JITFunction.run

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
    """Yields operations and cases that hold all words, with the variants that have Triton kernels."""
    for spec in SPECS.values():
        for case in spec.static_cases or spec.cases:
            variants = [v for v in spec.variants_at(case) if v.startswith("triton")]
            if variants and is_chosen(f"{spec.name} {case.name}".split(), only):
                yield spec, case, variants


def compile_all(only: tuple[str, ...] = ()) -> Iterator[Compiled]:
    """Compiles every Triton kernel at every case, and yields each once.

    Args:
        only: see `bench.runs.select`; words are of the names of operation and case.
    """
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
    ptx = kernel.asm["ptx"]
    registers, spilled, instructions = _assembled(kernel.asm["cubin"])
    name, shared, warps = kernel.metadata.name, int(kernel.metadata.shared), int(kernel.metadata.num_warps)
    widths = {kind: _widths(ptx, kind) for kind in ("ld", "st")}
    nature = NARROW_BY_NATURE.get(name, "")
    narrow = 0
    for kind, accesses in widths.items():
        if (nature == "loads" and kind == "ld") or _odd_channels(function, kernel):
            continue
        if _constants(function, kernel).get("PROLOGUE"):  # copies of a norm's float32 vectors
            accesses = [access for access in accesses if access != (4, 16)]
        sizes = (16,) if nature == "bits" else (8, 16)
        narrow += sum(width < NARROW_BELOW_BYTES and bits in sizes for width, bits in accesses)
    return Compiled(
        kernel=_identity(function, kernel),
        target=target,
        registers=registers,
        spilled_bytes=spilled,
        instructions=instructions,
        shared_bytes=shared,
        load_bytes=max((width for width, _ in widths["ld"]), default=0),
        store_bytes=max((width for width, _ in widths["st"]), default=0),
        narrow=narrow,
        tensor_cores=int("tt.dot" not in kernel.asm["ttir"] or bool(TENSOR_CORES.search(ptx))),
        occupancy=_occupancy(registers, shared, warps, target),
        case=case,
    )


def _identity(function: Any, kernel: Any) -> str:
    """The kernel's name, the types of its pointers, its constants, and which numbers are known to divide by 16."""
    names, source = function.arg_names, kernel.src
    pointers = [t.removeprefix("*") for t in source.signature.values() if str(t).startswith("*")]
    constants = _constants(function, kernel)
    told = [f"{name}={_constant(value)}" for name, value in constants.items() if value is not None]
    divisible = [name for at in source.attrs if source.signature[name := names[at[0]]] in ("i32", "i64")]
    return " ".join([kernel.metadata.name, "/".join(dict.fromkeys(pointers)), *told, *(f"{n}%16" for n in divisible)])


def _odd_channels(function: Any, kernel: Any) -> bool:
    """Whether a pixel's channels fill no whole number of eight bytes, such as the three colours."""
    constants = _constants(function, kernel)
    return any(constants.get(name, 0) % 4 for name in ("A_C", "OUT_C", "C", "K"))


def _constants(function: Any, kernel: Any) -> dict[str, Any]:
    return {function.arg_names[at[0]]: value for at, value in kernel.src.constants.items()}


def _constant(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_constant(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _assembled(cubin: bytes) -> tuple[int, int, int]:
    """Registers of a thread, bytes of its stack, which holds nothing but what registers spill, and instructions."""
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", dumped(cubin, "-res-usage"))}
    return used["REG"], used["STACK"], _instructions(cubin)


def dumped(cubin: bytes, what: str) -> str:
    """Returns what cuobjdump tells of a kernel."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, what, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _instructions(cubin: bytes) -> int:
    """Instructions of an ELF file's code but for NOPs, which fill it up; of 16 bytes each from sm_70 on.

    Read here, because a disassembly takes 0.4 s, nearly as long as the compilation.
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
    """Bytes a thread and bits an element of each access of global memory; an asynchronous copy knows no elements."""
    accesses = re.findall(rf"\b{kind}\.global[\w.:]*?(?:\.v([248]))?\.[busf](8|16|32|64)\b", ptx)
    widths = [(int(count or 1) * int(bits) // 8, int(bits)) for count, bits in accesses]
    if kind == "ld":
        copies = re.findall(r"\bcp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (0x[0-9a-f]+|\d+)", ptx)
        widths += [(int(count, 0), 16) for count in copies]
    return widths


def _occupancy(registers: int, shared: int, warps: int, target: int) -> float:
    """Share of a multiprocessor's 64 warps that registers and shared memory let run at once."""
    of_warp = -(-registers * 32 // 256) * 256
    programs = min(65536 // (of_warp * warps), SHARED_BYTES[target] // (shared + 1024), 64 // warps, 32)
    return programs * warps / 64


def problems(compiled: list[Compiled], *, whole: bool = False) -> tuple[list[str], list[str]]:
    """Compares with what holds for every kernel, and with the committed baseline.

    Args:
        compiled: by `compile_all`.
        whole: whether that is every kernel, so that one of the baseline that is missing is gone.

    Returns:
        What is wrong, and remarks that are not.
    """
    wrong = [f"{c.key}: spills {c.spilled_bytes} bytes" for c in compiled if c.spilled_bytes]
    wrong += [f"{c.key}: {c.narrow} accesses narrower than {NARROW_BELOW_BYTES} bytes" for c in compiled if c.narrow]
    wrong += [f"{c.key}: its products do not use tensor cores" for c in compiled if not c.tensor_cores]
    baseline: dict[str, Any] = (
        json.loads(BASELINE.read_text()) if BASELINE.exists() else {"triton": "none", "kernels": {}}
    )
    if baseline["triton"] != version("triton"):
        return wrong, [f"the baseline is of triton {baseline['triton']}, this is {version('triton')}: not compared"]
    for c in compiled:
        known = baseline["kernels"].get(c.key)
        if known is None:  # a changed constant makes another kernel of it, whose figures nobody has agreed to
            wrong.append(f"{c.key}: not in the baseline; {MEANT}")
            continue
        grown = [
            f"{name} {known[name]} -> {getattr(c, name)}"
            for name in ("registers", "instructions", "shared_bytes", "narrow")
            if getattr(c, name) > known[name]
        ]
        grown += [
            f"{name} {known[name]} -> {getattr(c, name)}"
            for name in ("load_bytes", "store_bytes", "occupancy")
            if getattr(c, name) < known[name]
        ]
        if grown:
            wrong.append(f"{c.key}: {', '.join(grown)}; {MEANT}")
    if whole:
        gone = sorted(set(baseline["kernels"]) - {c.key for c in compiled})
        wrong += [f"{key}: in the baseline, and compiled no more; {MEANT}" for key in gone]
    return wrong, []


def write_baseline(compiled: list[Compiled]) -> Path:
    """Makes what was compiled the baseline."""
    kernels = {}
    for c in compiled:
        kernels[c.key] = {
            k: v for k, v in asdict(c).items() if k not in ("kernel", "target", "case", "spilled_bytes", "tensor_cores")
        }
    BASELINE.write_text(json.dumps({"triton": version("triton"), "kernels": kernels}, indent=1, sort_keys=True) + "\n")
    return BASELINE


FIGURES = {  # metric: unit, and which way is better
    "registers": ("count", "lower"),
    "spilled_bytes": ("B", "lower"),
    "instructions": ("count", "lower"),
    "shared_bytes": ("B", "lower"),
    "load_bytes": ("B", "higher"),
    "store_bytes": ("B", "higher"),
    "narrow": ("count", "lower"),
    "tensor_cores": ("count", "higher"),
    "occupancy": ("fraction", "higher"),
}


class StaticRun:
    """One run of the gate: compiles every kernel for every target, and records each as it comes.

    Args:
        writer: where records go.
        only: see `bench.runs.select`; words are of the names of operation and case.
        update_baseline: make this the baseline.
    """

    def __init__(self, writer: RunWriter, only: tuple[str, ...], *, update_baseline: bool) -> None:
        self.writer, self.only, self.update_baseline = writer, only, update_baseline

    def execute(self) -> tuple[RunStatus, list[str], list[str]]:
        """Compiles and ends the records.

        Returns:
            How it ended ("failed" if a gate does not hold), what is wrong, and remarks.

        Raises:
            KeyboardInterrupt: after the records have been ended as interrupted.
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


def new_run(out: Path, command: str, *, only: tuple[str, ...] = (), update_baseline: bool = False) -> StaticRun:
    """Returns the gate as a new run under `out`, ready to be executed.

    Args:
        out: folder that holds runs.
        command: as typed, for the record.
        only: see `bench.runs.select`; words are of the names of operation and case.
        update_baseline: make this the baseline; of all kernels only.

    Raises:
        ValueError: if Triton is missing or runs in its interpreter, or a part is to become the baseline.
        StoreError: if `out` cannot be written.
    """
    if importlib.util.find_spec("triton") is None:
        raise ValueError("triton is not installed (Linux on x86-64 only)")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("TRITON_INTERPRET=1 compiles nothing; unset it")
    if update_baseline and only:
        raise ValueError("--update-baseline needs all kernels; leave out --only")
    if not any(True for _ in chosen(only)):
        raise ValueError(f"no case matches '{' | '.join(only)}'; operations: {', '.join(SPECS)}")
    asked = {"benchmark": "static", "only": list(only)}
    run = Run(run_id=new_run_id("static"), started_utc=utc_now(), command=command, request=asked, **provenance("cpu"))
    return StaticRun(RunWriter.create(out, run), only, update_baseline=update_baseline)


def _sample(c: Compiled, metric: str) -> Sample:
    unit, better = FIGURES[metric]
    parameters: dict[str, Any] = {
        "architecture": f"sm_{c.target}",
        "constants": c.kernel.partition(" ")[2],
        "launched_by": c.case,
    }
    return Sample(
        benchmark="static", case=c.kernel.partition(" ")[0], metric=metric, unit=unit, better=better,  # type: ignore[arg-type]
        value=getattr(c, metric), parameters=parameters,
    )  # fmt: skip
