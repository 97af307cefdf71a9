"""The static gate: what it compiles, and that it fails on whatever got worse."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from wallclock import reports
from wallclock.bench.cases.kernels import static
from wallclock.bench.cli.app import main

ROOT = Path(__file__).parents[4]
GATED = json.loads(static.BASELINE.read_text())["triton"]
not_an_older_compiler = pytest.mark.skipif(
    Version(version("triton")) < Version(GATED), reason=f"the gate is one of Triton {GATED}: this one is older"
)


def compiled(**changes):
    kernel = changes.pop("kernel", "k bf16 BLOCK=64")
    figures = {"registers": 64, "spilled_bytes": 0, "instructions": 300, "shared_bytes": 0, "load_bytes": 16}
    figures |= {"store_bytes": 16, "narrow": 0, "tensor_cores": 1, "occupancy": 0.5}
    return static.Compiled(kernel, 90, "op case", figures | changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"spilled_bytes": 8}, "spills 8 bytes"),
        ({"narrow": 2}, "2 accesses narrower than 8 bytes"),
        ({"registers": 65}, "registers 64 -> 65; if that is meant"),
        ({"instructions": 400}, "instructions 300 -> 400"),
        ({"load_bytes": 8}, "load_bytes 16 -> 8"),
        ({"occupancy": 0.25}, "occupancy 0.5 -> 0.25"),
        ({"tensor_cores": 0}, "products do not use tensor cores"),
        ({"kernel": "k bf16 BLOCK=128"}, "not in the baseline; if that is meant"),
    ],
)
def test_the_gate_fails_on_what_got_worse(changes, says, tmp_path, monkeypatch):
    monkeypatch.setattr(static, "BASELINE", tmp_path / "baseline.json")
    static.write_baseline([compiled()])
    assert static.problems([compiled()]) == ([], [])
    assert static.problems([compiled(registers=60)]) == ([], [])
    wrong, _ = static.problems([compiled(**changes)])
    assert any(says in text for text in wrong)


def test_a_kernel_that_is_gone_is_missed_when_all_are_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(static, "BASELINE", tmp_path / "baseline.json")
    static.write_baseline([compiled(), compiled(kernel="other")])
    assert static.problems([compiled()]) == ([], [])
    wrong, _ = static.problems([compiled()], whole=True)
    assert wrong == [f"sm_90 other: in the baseline, and compiled no more; {static.MEANT}"]


def test_a_baseline_of_another_compiler_is_not_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(static, "BASELINE", tmp_path / "baseline.json")
    (tmp_path / "baseline.json").write_text(json.dumps({"triton": "1.0", "kernels": {}}))
    wrong, remarks = static.problems([compiled(registers=255)])
    assert wrong == [] and "not compared" in remarks[0]


def test_ctrl_c_names_the_run_and_what_was_compiled_is_in_it(tmp_path, monkeypatch, capsys):
    def interrupted(only):
        yield compiled()
        raise KeyboardInterrupt

    monkeypatch.setattr(static, "compile_all", interrupted)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(sys, "argv", ["wallclock", "run", "kernels", "--static", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    (run,) = tmp_path.iterdir()
    assert stopped.value.code == 130
    assert f"what was measured is in {run}" in capsys.readouterr().err
    assert reports.load_runs(run).loc[0, "run_status"] == "interrupted"
    frame = reports.load(run)
    assert set(frame["metric"]) == set(static.FIGURES) and set(frame["launched_by"]) == {"op case"}


PLANTED = r"""
import re
import sys
from pathlib import Path

import torch
import triton
import triton.language as tl

from wallclock.bench.cases.kernels import static
from wallclock.kernels.spec import Case, KernelSpec


@triton.jit
def centred_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at).to(tl.float32)
    tl.store(y_ptr + at, (x - tl.sum(x) / BLOCK).to(y_ptr.dtype.element_ty))


@triton.jit
def every_second_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + 2 * at))


def launched(kernel, block, num_warps):
    def variant(x):
        y = torch.empty_like(x)
        kernel[(1,)](x, y, BLOCK=block, num_warps=num_warps)
        return y

    return variant


planted = {
    "fits": launched(centred_kernel, 2048, 4),
    "spills": launched(centred_kernel, 16384, 1),
    "narrow": launched(every_second_kernel, 2048, 4),
}
static.TARGETS = (90,)
static.SPECS = {
    name: KernelSpec(
        name=name,
        reference=variant,
        variants={"eager": variant, "triton": variant},
        cases=(Case(network="planted", shape=(1 << 16,)),),
        inputs=lambda case, dtype, device: {"x": torch.zeros(case.shape, dtype=dtype, device=device)},
        differentiated=(),
        bytes_moved=lambda *_: 1,
        operations=lambda *_: 1,
    )
    for name, variant in planted.items()
}
counted = static._instructions


def as_disassembled(cubin):
    told = static.dump(cubin, "-sass")
    assert counted(cubin) == len(re.findall(r"/\*[0-9a-f]{4,}\*/ +(?!NOP)[@A-Z]", told)) > 10
    return counted(cubin)


static._instructions = as_disassembled
for name in planted:
    status, wrong, _ = static.StaticRun(Path(sys.argv[1]), "test", only=(name,)).execute()
    found = [text.split(": ")[1] for text in wrong if "not in the baseline" not in text]
    print(name, status, *found)
"""


@pytest.mark.slow
@not_an_older_compiler
def test_a_planted_spill_and_a_planted_narrow_access_are_caught(tmp_path):
    script = tmp_path / "planted.py"
    script.write_text(PLANTED)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "runs"], env=compiling(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    fits, spills, narrow = done.stdout.splitlines()
    assert fits == "fits failed"  # because the baseline does not know it, and for nothing else
    assert re.fullmatch(r"spills failed spills [1-9]\d* bytes", spills)
    assert re.fullmatch(r"narrow failed [1-9]\d* accesses narrower than 8 bytes", narrow)


def compiling():
    """The environment of a process that compiles, which the interpreter's would not."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return environment | {"PYTHONPATH": str(ROOT)}


@pytest.mark.slow
@not_an_older_compiler
def test_every_kernel_passes_the_static_gate(tmp_path):
    command = [sys.executable, "-m", "wallclock", "run", "kernels", "--static", "--out", tmp_path, "--json"]
    done = subprocess.run(command, env=compiling(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout[:2000]
    frame = reports.load(tmp_path)
    assert set(frame["architecture"]) == {"sm_80", "sm_90", "sm_100"}
    spilled = frame[frame["metric"] == "spilled_bytes"]
    assert len(spilled) > 200 and (spilled["value"] == 0).all()
    widest = frame[(frame["metric"] == "load_bytes") & (frame["case"] == "apply_kernel")]
    assert (widest["value"] == 16).all()
