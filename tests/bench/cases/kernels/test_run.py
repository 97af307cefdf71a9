"""`wallclock run kernels`: what is wrong is not timed, and what is timed adds up."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from triton.errors import TritonError

from wallclock import reports
from wallclock.bench.cases.kernels import run as kernels
from wallclock.bench.cases.kernels.run import KernelsRequest, KernelsRun
from wallclock.bench.runs.training import resumed_run as resumed_task
from wallclock.bench.tasks.cifar.requests import CifarRequest
from wallclock.bench.tasks.cifar.task import TASK
from wallclock.kernels.cases import SPECS
from wallclock.kernels.cases.inputs import compiled_variant
from wallclock.kernels.spec import Case, available
from wallclock.models.build import build_model
from wallclock.models.layers import BatchNormAct
from wallclock.models.recipes import get_recipe
from wallclock.reports.store.layout import StoreError
from wallclock.reports.views.kernels import failed_rows, kernel_cells, kernel_rows, kernel_summary, roofline

ROOT = Path(__file__).parents[4]
CPU = torch.device("cpu")
TINY = Case(network="tiny", shape=(4, 8, 6, 6), options={"act": "leaky_relu"})


def run_kernels(request, out, command, observe):
    run = KernelsRun.new(request, out, command)
    return run.writer.path, run.execute(observe)


@pytest.fixture(autouse=True)
def small_copy(monkeypatch):
    """A bandwidth that takes no 512 MB to find."""
    monkeypatch.setattr(kernels, "COPIED_AT_LEAST_BYTES", 1 << 20)
    monkeypatch.setattr(kernels, "cache_bytes", lambda device: 1 << 20)


@pytest.fixture
def tiny(monkeypatch):
    """The operations at one small case each, without what has to be compiled."""
    norm = SPECS["batch_norm_act"]
    variants = {name: call for name, call in norm.variants.items() if name != "compile"}
    spec = replace(norm, cases=(TINY,), variants=variants)
    monkeypatch.setattr(kernels, "SPECS", {"batch_norm_act": spec})
    return spec


def test_samples_and_table_of_a_case(tiny, tmp_path):
    seen = []
    path, status = run_kernels(
        KernelsRequest(dtype="fp32", device="cpu", sample_budget_s=0.02), tmp_path, "test", seen.append
    )
    assert status == "done"
    frame = reports.load(path)
    latency = frame[frame["metric"] == "latency"]
    assert set(latency["variant"]) == {"eager", "eager_nchw"}
    assert set(latency["direction"]) == {"forward", "backward", "both"} and set(latency["cache"]) == {"hot", "cold"}
    assert set(latency["round"]) == {0, 1} and (latency["value"] > 0).all()
    assert frame[frame["metric"] == "error"]["value"].between(1e-9, 1e-5).all()
    assert frame[frame["metric"] == "saved_bytes"]["value"].min() >= 4 * 8 * 6 * 6 * 4
    ours = {"triton", "triton_byte", "triton_output"}
    assert {done.variant for done in seen if "interpreter is not timed" in done.why_not} == ours
    summary = kernel_summary(frame).set_index(["variant", "direction", "cache"])
    both = summary.loc[("eager", "both", "hot")]
    elements = 4 * 8 * 6 * 6
    assert both["predicted_bytes"] == 13 * 4 * elements
    # Norm 2 and activation 2 on the way there, 3 and 3 on the way back; statistics and factors on top.
    assert both["operand_bytes"] == pytest.approx(10 * 4 * elements, rel=0.05)
    assert both["gb_per_s"] == pytest.approx(13 * 4 * elements / both["latency_us"] / 1e3)
    counted = frame[(frame["metric"] == "operand_bytes") & (frame["variant"] == "eager")]
    assert sorted(counted["direction"]) == ["backward", "both", "forward"]
    other = summary.loc[("eager_nchw", "both", "hot")]
    assert other["x_eager"] == pytest.approx(both["latency_us"] / other["latency_us"])
    summary = summary.reset_index()
    assert len(kernel_rows(summary)[1]) == 2
    header, rows = kernel_cells(summary)
    assert rows[0][header.index("MB of operands")]
    traces = {trace["name"]: trace for trace in roofline(summary)["data"]}
    (row,) = [i for i, text in enumerate(traces["eager"]["text"]) if "both, hot" in text]
    beyond, short = (traces["eager"]["error_x"][name][row] for name in ("array", "arrayminus"))
    assert beyond - short == pytest.approx(1e-6 * (both["operand_bytes"] - both["predicted_bytes"])) and short > 0
    assert traces["eager"]["customdata"][row] == f"{both['operand_bytes'] / 1e6:.3g} MB"


def test_what_is_wrong_is_recorded_and_not_timed(tiny, tmp_path, monkeypatch):
    def wrong(x, **others):
        return tiny.variants["eager"](x, **others) * 1.01

    broken = replace(tiny, variants={"eager": tiny.variants["eager"], "wrong": wrong})
    monkeypatch.setattr(kernels, "SPECS", {"batch_norm_act": broken})
    seen = []
    request = KernelsRequest(dtype="fp32", device="cpu", sample_budget_s=0.02)
    path, status = run_kernels(request, tmp_path, "test", seen.append)
    assert status == "failed"
    frame = reports.load(path)
    assert set(frame.loc[frame["metric"] == "latency", "variant"]) == {"eager"}
    (error,) = frame[(frame["metric"] == "error") & (frame["variant"] == "wrong")].to_dict("records")
    assert error["status"] == "failed" and error["value"] == pytest.approx(0.01, rel=0.2)
    assert any(done.variant == "wrong" and done.why_not.startswith("wrong: off by") for done in seen)
    (row,) = failed_rows(frame)[1]
    assert row[0] == "wrong" and row[1].startswith("wrong: off by 1")
    assert row[2] == "batch_norm_act tiny 4x8x6x6 leaky_relu fp32"


def test_a_variant_that_spoils_its_input_is_found_out_after_timing_and_left_out(tiny, tmp_path, monkeypatch):
    calls = []

    def spoiling(x, **others):
        y = tiny.variants["eager"](x, **others)
        calls.append(0)
        if len(calls) > 3:  # the check, and a few calls more
            x.detach().add_(1)
        return y

    spoilt = replace(tiny, variants={"eager": tiny.variants["eager"], "spoiling": spoiling})
    monkeypatch.setattr(kernels, "SPECS", {"batch_norm_act": spoilt})
    request = KernelsRequest(dtype="fp32", device="cpu", sample_budget_s=0.02)
    path, status = run_kernels(request, tmp_path, "test", lambda done: None)
    frame = reports.load(path)
    assert status == "failed" and "spoiling" in set(frame.loc[frame["metric"] == "latency", "variant"])
    assert kernel_summary(frame).empty  # the inputs are shared: no figure of the case can be trusted
    assert len(failed_rows(frame)[1]) == 2


@pytest.mark.parametrize(
    ("at_call", "error"),
    [(1, torch.OutOfMemoryError("CUDA out of memory.\nTried")), (4, MemoryError()), (4, TritonError("x"))],
)
def test_what_cannot_run_is_recorded_and_the_others_go_on(at_call, error, tiny, tmp_path, monkeypatch):
    calls = []

    def failing(x, **others):
        calls.append(0)
        if len(calls) >= at_call:
            raise error
        return tiny.variants["eager"](x, **others)

    cases = (TINY, replace(TINY, network="other"))
    spec = replace(tiny, cases=cases, variants={"eager": tiny.variants["eager"], "failing": failing})
    monkeypatch.setattr(kernels, "SPECS", {"batch_norm_act": spec})
    request = KernelsRequest(dtype="fp32", device="cpu", sample_budget_s=0.02)
    path, status = run_kernels(request, tmp_path, "test", lambda done: None)
    frame = reports.load(path)
    assert status == "failed" and frame["run_status"].unique().tolist() == ["failed"]
    (row,) = failed_rows(frame)[1]
    assert row[0] == "failing" and "\n" not in row[1]
    assert row[2] == "batch_norm_act tiny 4x8x6x6 leaky_relu fp32, and 1 more"
    assert set(kernel_summary(frame)["variant"]) == {"eager"} and len(kernel_summary(frame)) == 12


def test_an_interrupted_run_goes_on_with_the_cases_that_are_left(tiny, tmp_path, monkeypatch):
    names = ("first", "second", "third")
    spec = replace(tiny, cases=tuple(replace(TINY, network=name) for name in names))
    monkeypatch.setattr(kernels, "SPECS", {"batch_norm_act": spec})

    def interrupt(done):
        if "second" in done.case:
            raise KeyboardInterrupt

    run = KernelsRun.new(KernelsRequest(dtype="fp32", device="cpu", sample_budget_s=0.02), tmp_path, "test")
    with pytest.raises(KeyboardInterrupt):
        run.execute(interrupt)
    path = run.writer.path
    assert reports.load_runs(path)["run_status"].item() == "interrupted"
    again, seen = KernelsRun.resume(path), []
    assert {name.split()[1] for name in again.done} == {"first", "second"}
    assert again.execute(seen.append) == "done"
    assert {done.case.split()[1] for done in seen if not done.why_not} == {"third"}
    summary = kernel_summary(reports.load(path))
    assert set(summary["case"]) == {f"batch_norm_act {case.name}" for case in spec.cases}
    with pytest.raises(StoreError, match="is finished; start a new run"):
        KernelsRun.resume(path)


def test_a_case_that_was_begun_is_measured_again(tiny, tmp_path, monkeypatch):
    run = KernelsRun.new(KernelsRequest(dtype="fp32", device="cpu", sample_budget_s=0.02), tmp_path, "test")
    monkeypatch.setattr(kernels.Trial, "measure", lambda self, *others: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run.execute(lambda done: None)
    monkeypatch.undo()
    again = KernelsRun.resume(run.writer.path)
    assert again.done == set()
    again.writer.finish("interrupted", "")


def test_resuming_elsewhere_or_another_benchmark_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run = KernelsRun.new(KernelsRequest(dtype="fp32", device="cpu"), tmp_path, "test")
    run.writer.finish("interrupted", "Ctrl-C")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with pytest.raises(StoreError, match="other conditions .OMP_NUM_THREADS: None then, 3 now"):
        KernelsRun.resume(run.writer.path)
    with pytest.raises(StoreError, match="is a run of kernels, not of cifar; start a new one"):
        resumed_task(TASK, CifarRequest, run.writer.path)


def test_a_mistake_in_this_suite_is_not_taken_for_a_failing_kernel(tiny, tmp_path, monkeypatch):
    def mistaken(x, **others):
        raise TypeError("no such argument")

    broken = replace(tiny, variants={"eager": tiny.variants["eager"], "mistaken": mistaken})
    monkeypatch.setattr(kernels, "SPECS", {"batch_norm_act": broken})
    with pytest.raises(TypeError):
        run_kernels(KernelsRequest(dtype="fp32", device="cpu"), tmp_path, "test", lambda done: None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_run_that_could_time_nothing_is_refused(tmp_path):
    request = KernelsRequest(dtype="fp32", device="cpu", only=("residual triton",))
    with pytest.raises(ValueError, match="nothing to time: triton: Triton's interpreter is not timed"):
        run_kernels(request, tmp_path, "test", lambda done: None)
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_the_compiled_variant_is_unavailable(monkeypatch):
    assert available("compile", torch.device("cuda")) == ""
    monkeypatch.setenv("PATH", "/nowhere")
    assert "install g++" in available("compile", CPU)


@pytest.mark.slow
def test_a_compiled_variant_is_measured_at_more_shapes_than_dynamo_keeps(tiny, tmp_path, monkeypatch):
    really = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: really(function, backend="eager", **options))
    spec = replace(
        tiny,
        cases=tuple(replace(TINY, shape=(4, 8, edge, edge)) for edge in range(2, 13)),
        variants={"eager": tiny.variants["eager"], "compile": compiled_variant(tiny.variants["eager"])},
    )
    monkeypatch.setattr(kernels, "SPECS", {"batch_norm_act": spec})
    request = KernelsRequest(dtype="fp32", device="cpu", sample_budget_s=0.001)
    path, status = run_kernels(request, tmp_path, "test", lambda seen: None)
    frame = reports.load(path)
    assert status == "done"
    assert frame.loc[frame["variant"] == "compile", "case"].nunique() == 11


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"only": ("nothing",)}, "no case matches 'nothing'; operations: batch"), ({"dtype": "int8"}, "bf16, fp16, fp32")],
)
def test_what_cannot_be_asked_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        KernelsRequest(**({"dtype": "fp32", "device": "cpu"} | fields))


@pytest.mark.parametrize("operation", SPECS)
def test_every_variant_equals_the_reference_at_a_small_case(operation, device, large_tiles):
    """As the benchmark checks it, on the GPU or in the interpreter."""
    spec = SPECS[operation]
    shapes = {
        "batch_norm_act": (4, 8, 6, 6),
        "conv_bn_act": (4, 8, 6, 6),
        "residual": (4, 8, 6, 6),
        "augment": (2, 3, 12, 12),
        "product_conv": (4, 8, 6, 6),
        "upsample_conv": (2, 8, 3, 3),
        "instance_norm_act": (2, 8, 9, 7),
        "rmsprop_clamp": (3, 8, 24, 1),
        "muon": (3, 24, 24),
    }
    ends = spec.cases[:1] + spec.cases[1:][-1:]
    small = replace(spec, cases=tuple(replace(c, shape=shapes[operation]) for c in ends))
    for case in small.cases:
        trial = kernels.Trial(small, case, "fp32", device)
        trial.prepare()
        for variant in (v for v in small.variants_at(case) if v != "compile" and not available(v, device)):
            error, allowed = trial.check(variant)
            assert error <= allowed, f"{case.name} {variant}: {error:.1e} > {allowed:.1e}"
        trial.call("eager", "forward")()
        for name, tensor in spec.inputs(case, torch.float32, device).items():  # overwritten or not
            assert tensor is None or torch.equal(tensor, trial.inputs[name])


def norm_inputs(recipe):
    """The shapes that a recipe's norms take at any of its resolutions, and whether a residual comes with them."""
    model = build_model(recipe, 10, torch.device("meta"))
    seen = set()
    for layer in model.modules():
        if isinstance(layer, BatchNormAct):
            layer.register_forward_pre_hook(
                lambda layer, given: seen.add((tuple(given[0].shape), given[1:] not in ((), (None,))))
            )
    for size in (*(r.size for r in recipe.resolutions), 32):
        model(torch.empty(recipe.batch_size, 3, size, size, device="meta"))
    return seen


@pytest.mark.parametrize("name", ["darknet", "sprint", "wrn22"])
def test_cases_are_the_shapes_that_the_networks_give(name):
    cases = SPECS["batch_norm_act"].cases
    ours = {(case.shape, "residual" in case.flags) for case in cases if case.network == name}
    assert norm_inputs(get_recipe(name, "cpu")) <= ours


def convolution_inputs(recipe):
    """Inputs, output channels, filter edges and strides of the convolutions that a norm follows at once."""
    model, seen = build_model(recipe, 10, torch.device("meta")), set()
    after = BatchNormAct.after

    def noted(self, conv, x, residual=None, **options):
        seen.add((tuple(x.shape), f"{conv.out_channels}k{conv.kernel_size[0]}s{conv.stride[0]}"))
        return after(self, conv, x, residual, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchNormAct, "after", noted)
        for size in (*(r.size for r in recipe.resolutions), 32):
            model(torch.empty(recipe.batch_size, 3, size, size, device="meta"))
    return seen


@pytest.mark.parametrize("name", ["darknet", "sprint", "wrn22"])
def test_convolutions_are_those_of_the_networks(name):
    ours = {(case.shape, case.options["form"]) for case in SPECS["conv_bn_act"].cases if case.network == name}
    assert convolution_inputs(get_recipe(name, "cpu")) <= ours


def test_specs_refuse_what_is_named_twice_and_what_has_no_judge():
    spec = SPECS["residual"]
    with pytest.raises(ValueError, match="twice"):
        replace(spec, cases=spec.cases * 2)
    with pytest.raises(ValueError, match="no variant 'eager'"):
        replace(spec, variants={"triton": spec.variants["triton"]})


def test_an_output_is_kept_alone_where_it_can_be_inverted():
    spec = SPECS["batch_norm_act"]
    at = {case.name: "triton_output" in spec.variants_at(case) for case in spec.cases}
    assert at["darknet 256x64x16x16 leaky_relu"] and not at["darknet 256x64x16x16 leaky_relu residual"]
    assert not at["sprint 500x64x15x15 gelu"] and not at["dcgan 64x64x32x32 relu"]


def test_a_variant_in_place_overwrites_copies_of_its_own(device):
    spec = SPECS["residual"]
    case = replace(spec.cases[0], shape=(2, 8, 5, 3))
    trial = kernels.Trial(spec, case, "fp32", device)
    trial.prepare()
    before = trial.inputs["branch"].clone()
    trial.call("triton_inplace", "both")()
    error, allowed = trial.check("triton_inplace")
    assert error <= allowed and torch.equal(trial.inputs["branch"], before)
    own = spec.own(trial.inputs, "triton_inplace")
    y = spec.variants["triton_inplace"](**own, **case.options)
    assert y.data_ptr() == own["branch"].data_ptr() and not torch.equal(own["branch"], before)
    assert spec.own(trial.inputs, "triton")["branch"] is trial.inputs["branch"]


@pytest.mark.slow
@pytest.mark.skipif(available("compile", CPU) != "", reason=available("compile", CPU))
def test_compiled_variants_are_timed_in_every_direction(tmp_path, monkeypatch):
    """With the compiler itself: compiled code gives saved buffers away unless it is told that a graph is kept."""
    small = {}
    for name, shape in (("batch_norm_act", (4, 8, 6, 6)), ("residual", (4, 8, 6, 6))):
        spec = SPECS[name]
        flagged = [case for case in spec.cases if name == "residual" or "residual" in case.flags][:1]
        cases = tuple(replace(case, shape=shape) for case in (spec.cases[0], *flagged))
        small[name] = replace(spec, cases=cases[-2:] if name == "batch_norm_act" else cases[:1])
    monkeypatch.setattr(kernels, "SPECS", small)
    request = KernelsRequest(dtype="fp32", device="cpu", sample_budget_s=0.01)
    path, status = run_kernels(request, tmp_path, "test", lambda done: None)
    frame = reports.load(path)
    assert status == "done", failed_rows(frame)[1]
    compiled = kernel_summary(frame).query("variant == 'compile'")
    assert len(compiled) == 3 * 6 and set(compiled["direction"]) == {"forward", "backward", "both"}
