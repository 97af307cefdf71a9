"""batch_norm_act against its reference: values, gradients, statistics, and every input that is easy to get wrong."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from comparison import (
    assert_each_row_is_in_one_split,
    assert_no_more_than_twice_as_wrong,
    assert_same,
    double,
    norm_tensors,
    saved_bytes,
    split_off,
    values_and_gradients,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wallclock.kernels.batch_norm_act import ACTS, BatchNorm, batch_norm_act, batch_norm_act_ref, plan
from wallclock.kernels.jit.tile import tile

SLOPE = 0.1
NO_FIXTURE_RESET = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def made(shape, device, *, residual=False, **options):
    return norm_tensors(shape, device, residual_pad=0 if residual else None, **options)


def run(function, *tensors, training=True, dy=None, **options):
    """Returns y, all gradients and the running statistics after one call, under their names."""
    x = tensors[0]
    vectors = torch.float64 if x.dtype == torch.float64 else torch.float32
    running_mean = torch.linspace(-1, 1, x.shape[1], dtype=vectors, device=x.device)
    running_var = torch.linspace(0.5, 4, x.shape[1], dtype=vectors, device=x.device)

    fields, others = split_off(BatchNorm, options)

    def call(x, weight, bias, residual):
        norm = BatchNorm(weight, bias, running_mean, running_var, training, negative_slope=SLOPE, **fields)
        return function(x, norm, residual=residual, **others)

    results = values_and_gradients(call, *tensors, dy=dy)
    return results | {"running_mean": running_mean, "running_var": running_var}


def combinations():
    """Yields every shape, activation, residual, kind of statistics and form; each once by default, the rest as slow."""
    shapes = [(4, 5, 7, 3), (2, 24, 8, 8), (3, 123, 1, 1), (40, 16, 12, 12)]
    for place, shape in enumerate(shapes):
        for at, act in enumerate(ACTS):
            for residual, training, persistent in itertools.product((False, True), (True, False), (None, False)):
                alternating = residual == bool((at + training + (persistent is None)) % 2)
                default = alternating if place == 0 else (residual, persistent) == (True, False) and at == 2
                marks = () if default and (place < 3 or training) else pytest.mark.slow
                yield pytest.param(shape, act, residual, training, persistent, marks=marks)


@pytest.mark.parametrize(("shape", "act", "residual", "training", "persistent"), combinations())
def test_it_equals_its_reference(shape, act, residual, training, persistent, device):
    tensors = made(shape, device, residual=residual)
    ours = run(batch_norm_act, *tensors, training=training, act=act, persistent=persistent)
    assert ours["y"].is_contiguous(memory_format=torch.channels_last)
    assert_same(ours, run(batch_norm_act_ref, *tensors, training=training, act=act))


@NO_FIXTURE_RESET
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 6), st.integers(1, 6)),
    act=st.sampled_from(ACTS),
    residual=st.booleans(),
    training=st.booleans(),
)
def test_it_equals_its_reference_at_any_shape(shape, act, residual, training, device):
    if training and shape[0] * shape[2] * shape[3] == 1:
        return
    tensors = made(shape, device, residual=residual)
    ours = run(batch_norm_act, *tensors, training=training, act=act)
    # Two values that lie close are normalised by a deviation of near nothing, which magnifies any rounding.
    assert_same(ours, run(batch_norm_act_ref, *tensors, training=training, act=act), rtol=1e-5)


@pytest.mark.parametrize(
    ("act", "training"),
    [
        pytest.param(a, t, marks=() if (a, t) in (("gelu", True), ("leaky_relu", False)) else pytest.mark.slow)
        for a in ACTS
        for t in (True, False)
    ],
)
def test_gradients_agree_with_finite_differences(act, training, device):
    x, weight, bias, residual = (t.requires_grad_() for t in made((3, 2, 1, 1), device, residual=True))
    running = torch.zeros(2, dtype=x.dtype, device=device), torch.ones(2, dtype=x.dtype, device=device)

    def operation(x, weight, bias, residual):
        fresh = (None, None) if training else running
        return batch_norm_act(x, BatchNorm(weight, bias, *fresh, training, act=act), residual=residual)

    assert torch.autograd.gradcheck(operation, (x, weight, bias, residual), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("persistent", [None, False])
def test_half_precision_errs_no_more_than_twice_as_much_as_pytorch(dtype, persistent, device):
    tensors = made((8, 24, 9, 9), device, dtype=dtype, residual=True)
    exact = run(batch_norm_act_ref, *double(tensors), act="leaky_relu")
    theirs = run(batch_norm_act_ref, *tensors, act="leaky_relu")
    ours = run(batch_norm_act, *tensors, act="leaky_relu", persistent=persistent)
    # The interpreter truncates where a GPU rounds, which is one unit in the last place more.
    assert_no_more_than_twice_as_wrong(ours, theirs, exact, torch.finfo(dtype).eps)


@pytest.mark.parametrize(("mean", "deviation"), [(1e3, 1.0), (0.0, 1e-12), (1e15, 1e12), (-3e4, 30.0)])
@pytest.mark.parametrize("persistent", [None, False])
def test_far_means_and_extreme_sizes_lose_no_digits_in_float32(mean, deviation, persistent, device):
    tensors = made((6, 8, 12, 12), device, dtype=torch.float32, mean=mean, deviation=deviation)
    exact = run(batch_norm_act_ref, *double(tensors), eps=1e-30)
    ours = run(batch_norm_act, *tensors, eps=1e-30, persistent=persistent)
    assert_same({name: values.double() for name, values in ours.items()}, exact, rtol=1e-4)


@pytest.mark.parametrize("act", ACTS)
def test_nan_and_infinity_stay_within_their_channel(act, device):
    x, weight, bias, _ = made((4, 6, 5, 5), device, dtype=torch.float32)
    x[1, 2, 3, 3], x[0, 4, 0, 0] = float("nan"), float("inf")
    for training in (True, False):
        ours = run(batch_norm_act, x, weight, bias, None, training=training, act=act)
        theirs = run(batch_norm_act_ref, x, weight, bias, None, training=training, act=act)
        for name, expected in theirs.items():
            assert torch.equal(ours[name].isfinite(), expected.isfinite()), name


@pytest.mark.parametrize("training", [True, False])
def test_a_split_of_several_tiles_is_reduced_whole(training, device, monkeypatch):
    """As at most of the networks' maps, which have more tiles than programs."""
    tensors = made((5, 64, 8, 9), device, residual=True)
    monkeypatch.setattr("wallclock.kernels.batch_norm_act.PROGRAMS", 3)
    cut = plan(5 * 8 * 9, 64, resident_programs=None)
    assert cut.splits > 1 and cut.split_rows >= 3 * cut.block_m and (5 * 8 * 9) % cut.split_rows
    options = {"act": "leaky_relu", "training": training}
    assert_same(
        run(batch_norm_act, *tensors, persistent=False, **options), run(batch_norm_act_ref, *tensors, **options)
    )


@pytest.mark.parametrize("layout", ["NCHW", "sliced", "expanded", "transposed"])
def test_any_layout_gives_the_same(layout, device):
    x, weight, bias, _ = made((4, 10, 6, 6), device)
    x = {
        "NCHW": lambda: x.contiguous(),
        "sliced": lambda: torch.cat([x, x], 1)[:, 5:15],
        "expanded": lambda: x[:1].expand(4, -1, -1, -1),
        "transposed": lambda: x.transpose(2, 3),
    }[layout]()
    ours = run(batch_norm_act, x, weight, bias, x, act="silu")
    assert_same(ours, run(batch_norm_act_ref, x, weight, bias, x, act="silu"))


def test_a_gradient_of_stride_zero_is_read_as_it_is(device):
    tensors = made((2, 6, 4, 4), device)
    dy = torch.ones((), dtype=torch.float64, device=device).expand(2, 6, 4, 4)
    assert_same(run(batch_norm_act, *tensors, act="gelu", dy=dy), run(batch_norm_act_ref, *tensors, act="gelu", dy=dy))


def test_without_gamma_or_running_statistics(device):
    x, *_ = made((3, 7, 4, 4), device)
    norm = BatchNorm(act="relu")
    torch.testing.assert_close(batch_norm_act(x, norm), batch_norm_act_ref(x, norm))


def test_an_empty_batch_is_connected_and_leaves_the_statistics_alone(device):
    x, weight, bias, _ = made((0, 6, 4, 4), device)
    results = run(batch_norm_act, x, weight, bias, None)
    assert results["y"].shape == results["dx"].shape == (0, 6, 4, 4)
    assert not results["dweight"].any() and not results["dbias"].any()
    assert torch.equal(results["running_mean"], torch.linspace(-1, 1, 6, dtype=torch.float64, device=device))


def test_one_value_a_channel_is_refused_in_training_alone(device):
    x, weight, bias, _ = made((1, 6, 1, 1), device)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        run(batch_norm_act, x, weight, bias, None)
    assert_same(
        run(batch_norm_act, x, weight, bias, None, training=False),
        run(batch_norm_act_ref, x, weight, bias, None, training=False),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3)}, r"needs a floating \[N, C, H, W\]"),
        ({"weight": torch.ones(4)}, r"weight has shape \(4,\); expected \(3,\)"),
        ({"bias": None}, "given together"),
        ({"running_var": None}, "given together"),
        ({"residual": torch.zeros(2, 3, 4, 5)}, "residual is"),
        ({"weight": torch.ones(6)[::2]}, "weight has stride 2; expected a dense vector"),
        ({"running_mean": torch.zeros(6)[::2]}, "running_mean has stride 2"),
        ({"bias": torch.zeros(1).expand(3)}, "bias has stride 0"),
        ({"momentum": None}, "momentum is None; for a cumulative average"),
        ({"act": "elu"}, "expected one of none, relu"),
        ({"save": "nothing"}, "expected input, output or byte"),
        ({"save": "output", "act": "gelu"}, "cannot invert gelu; use save='byte'"),
        ({"training": False, "running_mean": None, "running_var": None}, "needs running statistics"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    fields, others = split_off(BatchNorm, change)
    norm = BatchNorm(torch.ones(3), torch.zeros(3), torch.zeros(3), torch.ones(3))._replace(**fields)
    with pytest.raises(ValueError, match=message):
        batch_norm_act(**({"x": torch.zeros(2, 3, 4, 4), "norm": norm} | others))


@pytest.mark.parametrize("persistent", [None, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_alone_gives_the_gradients_of_gammas_kept_from_zero(dtype, persistent, device):
    x, weight, bias, _ = made((6, 8, 5, 5), device, dtype=dtype)
    weight[0], weight[1], weight[2] = 0.0, 0.03, -0.03
    floored = torch.where(weight < 0, weight.clamp(max=-0.1), weight.clamp(min=0.1))
    options = {"act": "leaky_relu"}
    ours = run(batch_norm_act, x, weight, bias, None, save="output", persistent=persistent, **options)
    assert_same(ours, run(batch_norm_act_ref, x, floored, bias, None, **options), rtol=1e-4)


@pytest.mark.parametrize(
    ("act", "persistent"),
    [
        pytest.param(act, form, marks=() if (act, form) in (("relu", None), ("gelu", False)) else pytest.mark.slow)
        for act in ACTS
        for form in (None, False)
    ],
)
def test_a_byte_an_element_gives_gradients_near_the_exact_ones(act, persistent, device):
    tensors = made((32, 8, 12, 12), device, dtype=torch.float32, residual=True)
    ours = run(batch_norm_act, *tensors, act=act, save="byte", persistent=persistent)
    kinked = act in ("none", "relu", "leaky_relu")
    allowed = {"dx": 1e-3 if kinked else 0.015, "dweight": 0.03, "dbias": 1e-6 if kinked else 0.01}
    for name, expected in run(batch_norm_act_ref, *tensors, act=act).items():
        off = (ours[name] - expected).norm() / expected.norm()
        assert off < allowed.get(name, 1e-6), f"{name}: {off:.1e}"


def test_what_is_kept_for_backward(device):
    x, weight, bias, _ = made((3, 16, 8, 8), device, dtype=torch.bfloat16)
    x.requires_grad_()
    elements = x.numel()
    kept = {}
    norm = BatchNorm(weight, bias, act="leaky_relu", negative_slope=SLOPE)
    for save in ("input", "output", "byte"):
        kept[save], y = saved_bytes(lambda save=save: batch_norm_act(x, norm, save=save))
        assert y.requires_grad
    small = 16 * 4 * 4 + 64
    assert kept["input"] <= 2 * elements + small and kept["output"] <= 2 * elements + small
    assert kept["byte"] <= elements + small


def test_the_same_input_gives_the_same_bits(device):
    tensors = made((7, 40, 5, 5), device, dtype=torch.float32, residual=True)
    first, again = (run(batch_norm_act, *tensors, act="leaky_relu", persistent=False) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


OPCHECKED = [(True, "input"), (True, "byte"), (False, "output")]
OTHERS = [(True, "output"), (False, "input"), (False, "byte")]


@pytest.mark.parametrize(
    ("training", "save"), [*OPCHECKED, *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS)]
)
def test_opcheck_finds_nothing(training, save, device):
    x, weight, bias, residual = made((2, 5, 4, 3), device, residual=save != "output")
    for tensor in (x, weight, bias, residual):
        if tensor is not None:
            tensor.requires_grad_()
    running = [torch.zeros(5, dtype=x.dtype, device=device), torch.ones(5, dtype=x.dtype, device=device)]
    given_statistics = (None, None) if training else running
    norm = BatchNorm(weight, bias, *given_statistics, training, act="leaky_relu", negative_slope=SLOPE)
    torch.library.opcheck(torch.ops.wallclock.batch_norm_act, (x, *norm, residual, save, None))


def test_opcheck_of_the_running_statistics_finds_nothing(device):
    running = [torch.zeros(5, dtype=torch.float64, device=device), torch.ones(5, dtype=torch.float64, device=device)]
    arguments = (*running, torch.ones_like(running[0]), torch.ones_like(running[0]), 24, 0.1)
    torch.library.opcheck(torch.ops.wallclock.update_running_stats_, arguments)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("save", ["input", "output", "byte"])
@pytest.mark.parametrize("training", [True, False])
def test_opcheck_of_the_backward_finds_nothing(training, save, layout, device):
    x, weight, bias, _ = made((2, 5, 4, 3), device)
    dy = made((2, 5, 4, 3), device, seed=1)[0].contiguous(memory_format=layout)
    saved = torch.full_like(x, 130, dtype=torch.uint8) if save == "byte" else x
    moments = torch.zeros(5, dtype=x.dtype, device=device), torch.ones(5, dtype=x.dtype, device=device)
    norm = BatchNorm(weight, bias, *moments, training, act="leaky_relu", negative_slope=SLOPE)
    torch.library.opcheck(torch.ops.wallclock.batch_norm_act_backward, (dy, saved, *norm, save, None))


@pytest.mark.parametrize("save", ["input", "output", "byte"])
@pytest.mark.parametrize("training", [True, False])
def test_it_compiles_without_a_graph_break(training, save, device):
    tensors = made((2, 5, 4, 3), device, residual=save != "output")
    options = {"training": training, "act": "leaky_relu" if save == "output" else "silu"}
    compiled = torch.compile(batch_norm_act, fullgraph=True, backend="aot_eager")
    ours = run(compiled, *tensors, save=save, **options)
    assert_same(ours, run(batch_norm_act, *tensors, save=save, **options), rtol=1e-12)
    if save == "input":
        assert_same(ours, run(batch_norm_act_ref, *tensors, **options))


@pytest.mark.parametrize(
    ("m", "c"), list(itertools.product((1, 2, 127, 128, 129, 4096, 25_088, 524_288), (1, 3, 5, 24, 64, 123, 256, 1024)))
)
def test_plans_cover_every_row_once_and_fill_the_gpu(m, c):
    assert not plan(m, c, resident_programs=None).persistent
    for resident in (None, 0, 132):
        cut = plan(m, c, resident_programs=resident)
        assert_each_row_is_in_one_split(cut, m, c, resident)


@triton.jit
def offsets_kernel(out_ptr, row0, channel0, M, C, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    offsets, inside = tile(row0, channel0, M, C, BLOCK_M, BLOCK_C)
    at = tl.arange(0, BLOCK_M)[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    tl.store(out_ptr + at, tl.where(inside, offsets, -1))


def test_offsets_beyond_two_to_the_31_do_not_wrap(device):
    rows, channels, row0 = 3_000_000, 1000, 2_999_996  # 3e9 elements: 6 GB that no test needs to hold
    found = torch.empty(8, 16, dtype=torch.int64, device=device)
    offsets_kernel[(1,)](found, row0, 992, rows, channels, BLOCK_M=8, BLOCK_C=16)
    for row, column in itertools.product(range(8), range(16)):
        inside = row0 + row < rows and 992 + column < channels
        assert found[row, column] == ((row0 + row) * channels + 992 + column if inside else -1)


COMPILED_OFFSETS = """
import re
from wallclock.bench.cases.kernels import static
from wallclock.kernels.cases import SPECS

def narrow_map_offsets(ttir):
    # Addresses in maps, which have elements of 8 or 16 bits, that no 64-bit offset has entered; filters are no maps.
    base, wide, found = {}, set(), []
    for line in ttir.splitlines():
        made = re.match(r" *(%\\S+) = (tt.addptr|tt.splat|tt.broadcast|tt.expand_dims) (%[\\w$]+)", line)
        if not made:
            continue
        name, kind, source = made.groups()
        base[name] = base.get(source, source)
        of_64_bits = re.search(r", (tensor<[0-9x]*x)?i64>?( loc|$)", line)
        if source in wide or (kind == "tt.addptr" and of_64_bits):
            wide.add(name)
        elif kind == "tt.addptr" and re.search(r"ptr<(bf16|i8)>", line) and base[name] != "%filter_ptr":
            found.append(line.strip())
    return found

planted = '%0 = tt.splat %x_ptr : t\\n%1 = tt.addptr %0, %2 : tensor<8x!tt.ptr<bf16>>, tensor<8xi32>'
assert narrow_map_offsets(planted), "the check sees nothing"
norms, others = [("batch_norm_act", 0), ("batch_norm_act", 1)], [("residual", 0), ("augment", 0), ("augment", 1)]
for name, place in [*norms, ("conv_bn_act", 1), *others]:
    spec = SPECS[name]
    with static._recorded() as found:
        static._run(spec, spec.cases[place], "triton")
    for target, function, kernel in found.values():
        if target == 80 and not re.match("merge|update|table|sum_", kernel.metadata.name):
            ttir = kernel.asm["ttir"]
            assert re.search(r"arith\\.(muli|addi) .*i64", ttir), f"{kernel.metadata.name}: no 64-bit offset"
            narrow = narrow_map_offsets(ttir)
            assert not narrow, f"{kernel.metadata.name}: {narrow}"
            print(kernel.metadata.name)
"""


@pytest.mark.slow
def test_compiled_kernels_count_elements_in_64_bits():
    root = Path(__file__).parents[2]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED_OFFSETS], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]
    seen = set(done.stdout.split())
    assert {"stats_kernel", "apply_kernel", "backward_sums_kernel", "residual_kernel", "augment_kernel"} <= seen
    assert {"conv_kernel", "filter_gradient_kernel"} <= seen


@pytest.mark.parametrize("act", ["gelu", "silu"])
def test_smooth_activations_are_as_exact_as_float32_allows(act, device):
    """Ours are fitted or approximate a division; far tails, zero and both signs included."""
    z = torch.cat([torch.linspace(-14, 14, 6000), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 60, -60, 1e4, -1e4])])
    x = z.view(-1, 1, 1, 1).to(device).requires_grad_()
    wide = x.detach().double().requires_grad_()
    mean, var = torch.zeros(1, device=device), torch.ones(1, device=device)
    norm = BatchNorm(None, None, mean, var, training=False, eps=1e-12, act=act)
    y = batch_norm_act(x, norm)
    exact = batch_norm_act_ref(wide, norm._replace(running_mean=mean.double(), running_var=var.double()))
    y.sum().backward()
    exact.sum().backward()
    allowed = 3 * torch.finfo(torch.float32).eps * wide.detach().abs().clamp_min(1)
    assert ((y - exact).abs() <= allowed).all()
    assert ((x.grad - wide.grad).abs() <= allowed).all()
