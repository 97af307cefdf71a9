"""instance_norm_act against its reference: values, gradients, padding, layouts, and what is easy to get wrong."""

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

import wallclock.kernels.instance_norm_act as module
from wallclock.kernels import batch_norm_act as norm
from wallclock.kernels.instance_norm_act import (
    ACTS,
    InstanceNorm,
    instance_norm_act,
    instance_norm_act_ref,
    interior,
    plan,
)
from wallclock.kernels.jit import instance_norm_act as jit

SLOPE = 0.2
PADS = [(0, None), (1, None), (0, 0), (2, 0), (0, 1), (2, 2)]  # of the output; of the residual, None for none


def made(shape, device, *, affine=True, **options):
    x, weight, bias, residual = norm_tensors(shape, device, **options)
    return [x, weight if affine else None, bias if affine else None, residual]


def run(function, *tensors, dy=None, **options):
    """Returns y and all gradients under their names."""

    fields, others = split_off(InstanceNorm, options)

    def call(x, weight, bias, residual):
        norm = InstanceNorm(weight, bias, negative_slope=SLOPE, **fields)
        return function(x, norm, residual=residual, **others)

    return values_and_gradients(call, *tensors, dy=dy)


def paddings(pad, residual_pad):
    return {"pad": pad} | ({} if residual_pad is None else {"residual_pad": residual_pad})


@pytest.mark.parametrize("persistent", [None, False])
@pytest.mark.parametrize(("act", "pads"), list(zip(ACTS * 2, PADS, strict=True)))
@pytest.mark.parametrize(
    "shape", [(3, 5, 7, 3), *(pytest.param(s, marks=pytest.mark.slow) for s in [(1, 24, 13, 12), (2, 123, 3, 4)])]
)
def test_it_equals_its_reference(shape, act, pads, persistent, device):
    tensors = made(shape, device, residual_pad=pads[1])
    ours = run(instance_norm_act, *tensors, act=act, persistent=persistent, **paddings(*pads))
    assert ours["y"].is_contiguous(memory_format=torch.channels_last)
    assert_same(ours, run(instance_norm_act_ref, *tensors, act=act, **paddings(*pads)))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_it_equals_its_reference_at_any_shape_and_padding(data, device):
    """Pads of up to one less than the edge, where both edges mirror a pixel, and maps of one row or column."""
    h, w = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)).filter(lambda hw: hw != (1, 1)))
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 70)), h, w)
    pads = st.integers(0, min(h, w) - 1)
    pad, residual_pad = data.draw(pads), data.draw(st.one_of(st.none(), pads))
    act, affine = data.draw(st.sampled_from(ACTS)), data.draw(st.booleans())
    tensors = made(shape, device, residual_pad=residual_pad, affine=affine)
    options = {"act": act, **paddings(pad, residual_pad)}
    # Two values that lie close are normalised by a deviation of near nothing, which magnifies any rounding.
    expected = run(instance_norm_act_ref, *tensors, **options)
    assert_same(run(instance_norm_act, *tensors, **options), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("act", "pads", "shape"),
    [
        pytest.param("none", (1, 1), (1, 1, 2, 2), marks=pytest.mark.slow),
        pytest.param("relu", (2, None), (1, 1, 3, 3), marks=pytest.mark.slow),
        ("leaky_relu", (0, 0), (2, 1, 2, 1)),
    ],
)
def test_gradients_agree_with_finite_differences(act, pads, shape, device):
    tensors = made(shape, device, residual_pad=pads[1])
    leaves = [t if t is None else t.requires_grad_() for t in tensors]

    def operation(x, weight, bias, residual):
        norm = InstanceNorm(weight, bias, act=act, pad=pads[0])
        return instance_norm_act(x, norm, residual=residual, residual_pad=pads[1] or 0)

    assert torch.autograd.gradcheck(operation, leaves, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("persistent", [None, False])
def test_half_precision_errs_no_more_than_twice_as_much_as_pytorch(dtype, persistent, device):
    tensors = made((2, 24, 12, 9), device, dtype=dtype, residual_pad=1)
    options = {"act": "leaky_relu", "pad": 1, "residual_pad": 1}
    exact = run(instance_norm_act_ref, *double(tensors), **options)
    theirs = run(instance_norm_act_ref, *tensors, **options)
    ours = run(instance_norm_act, *tensors, persistent=persistent, **options)
    # The interpreter truncates where a GPU rounds, which is one unit in the last place more; and it sums a tile's rows
    # one after another, which costs a float32 sum up to four units.
    unit = max(torch.finfo(dtype).eps, 4 * torch.finfo(torch.float32).eps)
    assert_no_more_than_twice_as_wrong(ours, theirs, exact, unit)


@pytest.mark.parametrize(("mean", "deviation"), [(1e3, 1.0), (0.0, 1e-12), (1e15, 1e12), (-3e4, 30.0)])
@pytest.mark.parametrize("persistent", [None, False])
def test_far_means_and_extreme_sizes_lose_no_digits_in_float32(mean, deviation, persistent, device):
    tensors = made((2, 8, 16, 16), device, dtype=torch.float32, mean=mean, deviation=deviation)
    exact = run(instance_norm_act_ref, *double(tensors), eps=1e-30)
    ours = run(instance_norm_act, *tensors, eps=1e-30, persistent=persistent)
    assert_same({name: values.double() for name, values in ours.items()}, exact, rtol=1e-4)


@pytest.mark.parametrize("persistent", [None, False])
def test_nan_and_infinity_stay_within_their_channel_of_their_image(persistent, device):
    x, *_ = made((3, 6, 9, 9), device, dtype=torch.float32)
    x[1, 2, 3, 3], x[0, 4, 0, 0] = float("nan"), float("inf")
    ours = run(instance_norm_act, x, None, None, None, act="relu", pad=2, persistent=persistent)
    touched = torch.zeros(3, 6, dtype=torch.bool, device=device)
    touched[1, 2] = touched[0, 4] = True
    for name in ("y", "dx"):
        assert torch.equal(ours[name].isnan().flatten(2).all(2), touched), name
        assert torch.equal(ours[name].isnan().flatten(2).any(2), touched), name


LAYOUTS = {
    "NCHW": lambda x: x.contiguous(),
    "sliced": lambda x: torch.cat([x, x], 1)[:, 3:13],
    "expanded": lambda x: x[:1].expand(4, -1, -1, -1),
    "transposed": lambda x: x.transpose(2, 3),
    "transposed channels-last": lambda x: x.contiguous(memory_format=torch.channels_last).transpose(2, 3),
    "every other pixel": lambda x: x.repeat_interleave(2, 3).contiguous(memory_format=torch.channels_last)[..., ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_input_residual_and_gradient_gives_the_same(layout, device):
    x, weight, bias, _ = made((4, 10, 6, 6), device)
    x = LAYOUTS[layout](x)
    expected = run(instance_norm_act_ref, x, weight, bias, x, act="relu", dy=2 * x)
    # `run` clones its leaves, and a clone is dense: the operation itself has to meet the layout.
    leaf = x.detach().requires_grad_()
    y = instance_norm_act(leaf, InstanceNorm(weight, bias, act="relu", negative_slope=SLOPE), residual=x)
    (dx,) = torch.autograd.grad(y, leaf, LAYOUTS[layout](2 * made((4, 10, 6, 6), device)[0]))
    assert_same({"y": y.detach(), "dx": dx}, {name: expected[name] for name in ("y", "dx")})


@pytest.mark.parametrize("channels", [1, 5, 24])
def test_the_interior_of_a_padded_map_is_read_in_place(channels, device, monkeypatch):
    """As a view, or as the padded map itself; the gradient of a padded map is read through its strides too."""
    x, *_, residual = made((2, channels, 6, 5), device, residual_pad=2)
    x, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual))
    dy = made((2, channels, 8, 7), device, residual_pad=1)[3].contiguous(memory_format=torch.channels_last)
    dy = interior(dy, 1)  # of [2, C, 10, 9]
    copied = []

    def dense(t):
        copied.append(not t.is_contiguous(memory_format=torch.channels_last))
        return t.contiguous(memory_format=torch.channels_last)

    monkeypatch.setattr(norm, "dense", dense)
    expected = run(instance_norm_act_ref, x, None, None, residual, pad=1, residual_pad=2, dy=dy)
    for given_residual, residual_pad in ((interior(residual, 2), 0), (residual, 2)):
        leaf, given_leaf = x.detach().requires_grad_(), given_residual.detach().requires_grad_()
        y = instance_norm_act(leaf, InstanceNorm(pad=1), residual=given_leaf, residual_pad=residual_pad)
        dx, dresidual = torch.autograd.grad(y, (leaf, given_leaf), dy)
        inner = expected["dresidual"] if residual_pad else interior(expected["dresidual"], 2)
        assert_same(
            {"y": y.detach(), "dx": dx, "dr": dresidual}, {**dict(itertools.islice(expected.items(), 2)), "dr": inner}
        )
    assert copied and not any(copied)


def test_a_gradient_of_stride_zero_is_read_as_it_is(device):
    tensors = made((2, 6, 4, 4), device)
    dy = torch.ones((), dtype=torch.float64, device=device).expand(2, 6, 6, 6)
    options = {"act": "leaky_relu", "pad": 1, "dy": dy}
    assert_same(run(instance_norm_act, *tensors, **options), run(instance_norm_act_ref, *tensors, **options))


@pytest.mark.parametrize("pad", [0, 1])
def test_an_empty_batch_is_connected(pad, device):
    tensors = made((0, 6, 4, 5), device, residual_pad=pad)
    results = run(instance_norm_act, *tensors, pad=pad, residual_pad=pad)
    assert results["y"].shape == (0, 6, 4 + 2 * pad, 5 + 2 * pad) and results["dx"].shape == (0, 6, 4, 5)
    assert results["dresidual"].shape == tensors[3].shape
    assert not results["dweight"].any() and not results["dbias"].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3)}, r"needs a floating \[N, C, H, W\]"),
        ({"x": torch.zeros(2, 3, 4, 4, dtype=torch.int32)}, r"needs a floating \[N, C, H, W\]"),
        ({"x": torch.zeros(1, 3, 1, 1).expand(70_000, 3, 4, 4)}, "70000 images; expected at most 65535"),
        ({"x": torch.zeros(2, 3, 1, 1)}, "Expected more than 1 spatial element when training"),
        ({"weight": torch.ones(4)}, r"weight has shape \(4,\); expected \(3,\)"),
        ({"bias": None}, "given together"),
        ({"act": "gelu"}, "expected one of none, relu"),
        ({"pad": 4}, "pad is 4; expected from 0 to below the shorter edge of 6x4"),
        ({"pad": -1}, "pad is -1; expected from 0"),
        ({"residual": torch.zeros(2, 3, 14, 12), "residual_pad": 4}, "residual_pad is 4; expected from 0"),
        ({"residual_pad": 1}, "residual_pad is 1 without a residual"),
        ({"residual": torch.zeros(2, 3, 8, 6)}, r"residual is .*\(2, 3, 8, 6\); expected torch.float32 \(2, 3, 6, 4\)"),
        ({"residual": torch.zeros(2, 3, 6, 4), "residual_pad": 1}, r"expected torch.float32 \(2, 3, 8, 6\)"),
        ({"residual": torch.zeros(2, 3, 6, 4).half()}, r"residual is torch.float16"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    fields, others = split_off(InstanceNorm, change)
    norm = InstanceNorm(torch.ones(3), torch.zeros(3))._replace(**fields)
    with pytest.raises(ValueError, match=message):
        instance_norm_act(**({"x": torch.zeros(2, 3, 6, 4), "norm": norm} | others))


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 3, 4, 6)])
def test_pytorch_refuses_the_same(shape):
    with pytest.raises((ValueError, RuntimeError), match="more than 1 spatial element|Padding size should be less"):
        instance_norm_act_ref(torch.zeros(shape), InstanceNorm(pad=4))


def test_the_input_and_two_vectors_are_kept_for_backward(device):
    x = made((2, 16, 12, 12), device, dtype=torch.bfloat16)[0].contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    kept, y = saved_bytes(lambda: instance_norm_act(x, InstanceNorm(act="relu", pad=1)))
    assert y.requires_grad and kept == 2 * x.numel() + 2 * 4 * 2 * 16


@pytest.mark.parametrize("persistent", [None, False])
def test_the_same_input_gives_the_same_bits(persistent, device):
    tensors = made((2, 40, 18, 9), device, dtype=torch.float32, residual_pad=1)
    options = {"act": "leaky_relu", "pad": 2, "residual_pad": 1, "persistent": persistent}
    first, again = (run(instance_norm_act, *tensors, **options) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("pads", [(0, 0), (1, 2)])
def test_opcheck_finds_nothing(pads, device):
    pad, residual_pad = pads
    x, weight, bias, residual = made((2, 5, 4, 3), device, residual_pad=residual_pad)
    options = (1e-5, "leaky_relu", SLOPE, pad)
    *leaves, given = (t.clone().requires_grad_() for t in (x, weight, bias, residual))
    torch.library.opcheck(torch.ops.wallclock.instance_norm_act, (*leaves, *options, given, residual_pad, None))
    torch.library.opcheck(torch.ops.wallclock.instance_norm_act, (leaves[0], None, None, *options, None, 0, None))
    y, mean, var = torch.ops.wallclock.instance_norm_act(x, weight, bias, *options, residual, residual_pad, None)
    arguments = (torch.ones_like(y), x, mean, var, weight, bias, *options, pad > 0, residual_pad, None)
    torch.library.opcheck(torch.ops.wallclock.instance_norm_act_backward, arguments)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_compiles_without_a_graph_break(memory_format, device):
    tensors = made((2, 5, 4, 3), device, residual_pad=1)
    tensors[0] = tensors[0].contiguous(memory_format=memory_format)
    options = {"act": "leaky_relu", "pad": 2, "residual_pad": 1}
    compiled = torch.compile(instance_norm_act, fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, *tensors, **options), run(instance_norm_act_ref, *tensors, **options))


@triton.jit
def _no_barrier(arrived_ptr, expected):
    """For programs that run one after another, twice: counts, and waits for none."""
    tl.atomic_add(arrived_ptr, 1)


class _Twice:
    """A kernel that is launched twice: the first time for its partial results, the second for those of all."""

    def __init__(self, kernel, seen):
        self.kernel, self.seen = kernel, seen

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.seen.append(grid)
            options.pop("launch_cooperative_grid", None)
            self.kernel[grid](*arguments, **options)
            self.kernel[grid](*arguments, **options)
            (arrived,) = (t for t in arguments if isinstance(t, torch.Tensor) and t.dtype == torch.int32)
            assert (arrived == 2 * grid[1]).all()  # a counter for each image's columns

        return launch


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the barrier itself; this stands in for it")
@pytest.mark.parametrize("pads", [(0, None), (1, 1), (2, 0)])
@pytest.mark.parametrize("shape", [(2, 70, 7, 6), (1, 24, 20, 9)])
def test_persistent_programs_that_share_an_image_equal_the_reference(shape, pads, device, monkeypatch):
    """The interpreter has one program at a time, so that none can wait: each runs twice instead."""
    seen = []
    monkeypatch.setattr(norm, "resident_programs", lambda device: 132)
    monkeypatch.setattr(norm, "TILE", 512)
    monkeypatch.setattr(norm, "PERSISTENT_TILE", 2048)
    monkeypatch.setattr(jit, "grid_barrier", _no_barrier)
    for name in ("image_forward_kernel", "image_backward_kernel"):
        monkeypatch.setattr(module.jit, name, _Twice(getattr(jit, name), seen))
    tensors = made(shape, device, residual_pad=pads[1])
    ours = run(instance_norm_act, *tensors, act="leaky_relu", **paddings(*pads))
    assert len(seen) == 2 and all(grid[1] > 4 for grid in seen)
    assert_same(ours, run(instance_norm_act_ref, *tensors, act="leaky_relu", **paddings(*pads)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; torch finds none")
@pytest.mark.gpu
@pytest.mark.parametrize("pads", [(0, None), (1, 1), (3, 0)])
@pytest.mark.parametrize("shape", [(1, 256, 64, 64), (1, 512, 31, 31), (2, 24, 33, 65)])
def test_persistent_programs_wait_for_each_other(shape, pads):
    device = torch.device("cuda")
    assert plan(shape[0], shape[2] * shape[3], shape[1], resident_programs=norm.resident_programs(device)).persistent
    tensors = made(shape, device, residual_pad=pads[1])
    expected = run(instance_norm_act_ref, *tensors, act="relu", **paddings(*pads))
    for persistent in (None, False):
        ours = run(instance_norm_act, *tensors, act="relu", persistent=persistent, **paddings(*pads))
        assert_same(ours, expected)


@pytest.mark.parametrize(
    ("n", "m", "c"),
    list(itertools.product((1, 2, 16, 3000), (2, 127, 961, 4096, 65_536), (1, 3, 24, 64, 123, 256, 512))),
)
def test_plans_cover_every_row_once(n, m, c):
    assert not plan(n, m, c, resident_programs=None).persistent
    for resident in (None, 0, 108, 132):
        cut = plan(n, m, c, resident_programs=resident)
        assert_each_row_is_in_one_split(cut, m, c, resident, images=n)
        if cut.persistent:
            assert cut.block_m * cut.block_c <= norm.PERSISTENT_TILE


def test_cyclegans_small_maps_fill_the_gpu_in_one_read():
    for c, edge in ((256, 64), (128, 64), (256, 32), (512, 31)):
        cut = plan(1, edge * edge, c, resident_programs=132)
        assert cut.persistent and 100 <= cut.splits * -(-c // cut.block_c) <= 132


@triton.jit
def offsets_kernel(out_ptr, h0, w0, W, C, row_stride, pixel_stride, channel0, PAD: tl.constexpr, BLOCK: tl.constexpr):
    h, w = h0 + tl.arange(0, BLOCK), w0 + tl.arange(0, BLOCK)
    channels = channel0 + tl.arange(0, BLOCK)
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out_ptr + at, jit._offsets(h, w, row_stride, pixel_stride, channels))
    tl.store(out_ptr + BLOCK * BLOCK + at, jit._padded_offsets(h, w, W, C, channels, PAD))


def test_offsets_beyond_two_to_the_31_do_not_wrap(device):
    """Of an image of 3e9 elements, 6 GB that no test needs to hold: strided as an interior, and padded."""
    width, channels, row_stride, pixel_stride = 60_000, 1000, 60_006_000, 1000
    found = torch.empty(2, 4, 4, dtype=torch.int64, device=device)
    arguments = (49_990, 59_990, width, channels, row_stride, pixel_stride, 900)
    offsets_kernel[(1,)](found, *arguments, PAD=3, BLOCK=4)
    for place, channel in itertools.product(range(4), range(4)):
        h, w = 49_990 + place, 59_990 + place
        assert found[0, place, channel] == h * row_stride + w * pixel_stride + 900 + channel
        assert found[1, place, channel] == (h * (width + 6) + w) * channels + 900 + channel


COMPILED = """
import re
from dataclasses import replace
from wallclock.bench.cases.kernels import static
from wallclock.kernels.cases import SPECS
static.TARGETS = (90,)
spec = SPECS["instance_norm_act"]
# Two-phase; a block's sum; and shapes of which Triton makes constants: one channel, one column, one row.
cases = [spec.cases[5], spec.cases[3], *(replace(spec.cases[0], shape=s) for s in ((1, 1, 5, 1), (2, 5, 1, 3)))]
for case in cases:
    with static._recorded() as found:
        static._run(spec, case, "triton")
    for target, function, kernel in found.values():
        if "merge" not in kernel.metadata.name:
            wide = re.search(r"arith\\.(muli|addi) .*i64", kernel.asm["ttir"])
            assert wide, f"{kernel.metadata.name}: no 64-bit offset"
            print(kernel.metadata.name)
"""


@pytest.mark.slow
def test_compiled_kernels_count_elements_in_64_bits():
    root = Path(__file__).parents[2]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        cwd=root, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1500:]
    own = {f"image_{form}_kernel" for form in ("apply", "backward_sums", "backward_apply", "forward", "backward")}
    assert set(done.stdout.split()) == {"stats_kernel", *own}  # statistics are the batch norm's kernel, by image
