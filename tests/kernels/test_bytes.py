"""The bytes that the specs predict are those asked for: of kernels in Triton's interpreter, of PyTorch by operators."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._library.custom_ops import OPDEFS
from triton.runtime import interpreter

from wallclock.bench.cases.kernels.trial import DTYPES, Trial
from wallclock.bench.measure.operator_bytes import Operands
from wallclock.kernels.cases import SPECS
from wallclock.kernels.cases import inputs as case_inputs
from wallclock.kernels.cases.batch_norm_act import norm_plan
from wallclock.kernels.cases.conv_bn_act import maps_of

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="counts in Triton's interpreter, which is off"),
    pytest.mark.slow,
]

# Of a batch norm: one map that one program holds, and one that takes 8 of them, in 32 tiles. Without a GPU no two
# programs may wait for each other, so the second is done in two phases; on 132 multiprocessors that takes 530 tiles or
# more, each of which costs the interpreter 6 ms in each kernel, whatever its size.
SHAPES = {"persistent": (2, 64, 8, 8), "two-phase": (8, 32, 16, 16)}
VECTORS = 0.12  # at most, of the channels' statistics and factors, which every program reads; a GPU's cache has them


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Yields a list that the bytes of every load and store are appended to.

    What a mask leaves out does not count, and what several lanes of a program read together counts once.
    """
    found: list[int] = []
    load, store = interpreter._interpreter.load, interpreter._interpreter.store

    def counted_load(pointers, mask, other, dtype):
        found.append(len(np.unique(pointers[mask])) * np.dtype(dtype).itemsize)
        return load(pointers, mask, other, dtype)

    def counted_store(pointers, values, mask):
        found.append(len(np.unique(pointers[mask])) * values.dtype.itemsize)
        return store(pointers, values, mask)

    with monkeypatch.context() as patch:
        patch.setattr(interpreter._interpreter, "load", counted_load)
        patch.setattr(interpreter._interpreter, "store", counted_store)
        yield found


def ratio(monkeypatch, spec, case, variant, direction, dtype="bf16"):
    """Counted over predicted bytes."""
    trial = Trial(replace(spec, cases=(case,)), case, dtype, torch.device("cpu"))
    trial.prepare()
    call = trial.call(variant, direction)
    with counted(monkeypatch) as found:
        call()
    return sum(found) / spec.bytes_moved(case, variant, direction, DTYPES[dtype].itemsize)


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize(
    ("variant", "flags"),
    [
        ("triton", frozenset()),
        ("triton", frozenset({"residual"})),
        ("triton_byte", frozenset()),
        ("triton_byte", frozenset({"residual"})),
        ("triton_output", frozenset()),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
@pytest.mark.parametrize("form", SHAPES)
def test_batch_norm_act(form, flags, variant, direction, monkeypatch):
    spec = SPECS["batch_norm_act"]
    case = replace(spec.cases[0], shape=SHAPES[form], flags=flags)
    monkeypatch.setattr(case_inputs, "MULTIPROCESSORS", 0)  # the interpreter runs one program after another
    assert norm_plan(case.shape).persistent == (form == "persistent")
    assert 1 <= ratio(monkeypatch, spec, case, variant, direction) <= 1 + VECTORS


def test_a_batch_norm_is_predicted_persistent_up_to_132_programs():
    assert norm_plan((33, 32, 32, 32)).persistent
    assert not norm_plan((34, 32, 32, 32)).persistent


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("place", [0, 2, 3, 4, 5], ids=["", "pad1", "sum-pad1", "sum", "pad3"])
@pytest.mark.parametrize("shape", [(2, 64, 8, 16), (1, 32, 40, 36)], ids=["persistent", "two-phase"])
def test_instance_norm_act(shape, place, direction, monkeypatch):
    spec = SPECS["instance_norm_act"]
    monkeypatch.setattr(case_inputs, "MULTIPROCESSORS", 0)
    case = replace(spec.cases[place], shape=shape)
    assert 1 <= ratio(monkeypatch, spec, case, "triton", direction) <= 1 + VECTORS


@pytest.mark.parametrize("variant", ["triton", "triton_inplace"])
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_residual_with_an_activation(direction, variant, monkeypatch):
    case = replace(SPECS["residual"].cases[0], shape=(4, 64, 8, 8))
    assert ratio(monkeypatch, SPECS["residual"], case, variant, direction) == pytest.approx(1, abs=0.001)


@pytest.mark.parametrize("variant", ["triton", "triton_inplace"])
def test_residual_without_an_activation(variant, monkeypatch):
    case = replace(SPECS["residual"].cases[-1], shape=(4, 64, 8, 8))
    assert ratio(monkeypatch, SPECS["residual"], case, variant, "forward") == 1


class Written:
    """Takes the place of a run's records: keeps the figures of each sample by name."""

    def __init__(self):
        self.values = {}

    def add(self, *samples):
        self.values |= {(sample.variant, sample.metric): sample.value for sample in samples}


@pytest.mark.parametrize(
    ("operation", "beyond"),
    [
        # of a map of N elements in bfloat16, in bytes an element; the channels' statistics come on top
        ("batch_norm_act", {"eager": 2, "triton": 2, "triton_byte": 1, "triton_output": 0}),
        ("residual", {"eager": 2, "triton": 1 / 8, "triton_inplace": 1 / 8}),
    ],
)
def test_what_each_form_keeps_beyond_its_output(operation, beyond):
    case = replace(SPECS[operation].cases[0], shape=(8, 16, 16, 16))
    trial = Trial(replace(SPECS[operation], cases=(case,)), case, "bf16", torch.device("cpu"))
    trial.prepare()
    written = Written()
    for variant in beyond:
        trial._record_memory(variant, written)
        saved = (written.values[variant, f"saved_{kind}bytes"] for kind in ("", "beyond_output_"))
        all_of_it, without_y = (value / case.elements for value in saved)
        vectors = 4 * 4 * 16 / case.elements if operation == "batch_norm_act" else 0
        assert beyond[variant] <= without_y <= beyond[variant] + vectors
        keeps_y = operation == "batch_norm_act" and variant in ("eager", "triton_output")
        assert all_of_it == without_y + 2 * keeps_y


@pytest.mark.parametrize("place", [0, 1], ids=["crop", "contrast"])
def test_augment(place, monkeypatch):
    """An eighth of the pixels on average is a reflection of others: a crop reads so many fewer than it writes."""
    case = replace(SPECS["augment"].cases[place], shape=(20, 3, 32, 32))
    found = ratio(monkeypatch, SPECS["augment"], case, "triton", "forward")
    assert (0.85 + 2) / 3 < found < (0.9 + 2) / 3


def test_augmentation_by_masks():
    spec = SPECS["augment"]
    case = replace(spec.cases[0], shape=(200, 3, 32, 32))
    trial = Trial(replace(spec, cases=(case,)), case, "bf16", torch.device("cpu"))
    trial.prepare()
    call = trial.call("masks", "forward")
    with Operands() as selected:
        call()
    assert selected.bytes / spec.bytes_moved(case, "masks", "forward", 2) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("variant", ["eager", "eager_nchw", "collapsed"])
@pytest.mark.parametrize("shape", [(4, 64, 4, 4), (2, 128, 3, 5)])
def test_upsample_conv(shape, variant, direction):
    spec = SPECS["upsample_conv"]
    case = replace(spec.cases[0], shape=shape)
    trial = Trial(replace(spec, cases=(case,)), case, "bf16", torch.device("cpu"))
    trial.prepare()
    call = trial.call(variant, direction)
    with Operands() as counted_operands:
        call()
    assert counted_operands.bytes == spec.bytes_moved(case, variant, direction, 2)


class Within(Operands):
    """Counts operators within our own too; `only` by name, or all."""

    def __init__(self, *only: str) -> None:
        super().__init__()
        self.only = only

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        own = OPDEFS.get(str(func).removesuffix(".default").replace(".", "::", 1))
        if own is not None:
            with self:
                return own._init_fn(*args, **(kwargs or {}))
        if self.only and func._schema.name.removeprefix("aten::") not in self.only:
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


IN_PLACE = {"rmsprop_clamp": [(3, 8, 24, 1), (12, 16, 8, 3)], "muon": [(24, 40, 48), (3, 24, 24)]}


@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name, shapes in IN_PLACE.items() for shape in shapes])
def test_optimizer_steps(name, shape, monkeypatch):
    spec = SPECS[name]
    case = replace(spec.cases[0], shape=shape)
    trial = Trial(replace(spec, cases=(case,)), case, "fp32", torch.device("cpu"))
    trial.prepare()
    call = trial.call("triton", "forward")
    call()  # makes its table
    with counted(monkeypatch) as found, Within("bmm", "baddbmm", "cat", "add") as products:
        call()
    assert sum(found) + (products.bytes if name == "muon" else 0) == spec.bytes_moved(case, "triton", "forward", 4)
    call = trial.call("eager", "forward")
    with Within() as operands:
        call()
    # beside the maps there are the norms and their factors, a number or two a filter
    assert operands.bytes / spec.bytes_moved(case, "eager", "forward", 4) == pytest.approx(1, abs=0.002)


@contextmanager
def maps_touched(monkeypatch: pytest.MonkeyPatch, sizes: set[int]) -> Iterator[list[int]]:
    """Yields a list that takes, for each launch, the bytes it reads and writes of tensors of such sizes in bytes.

    A place that several programs of a launch read counts once: that is a product's own way to read, from a cache.
    """
    found: list[int] = []
    load, store, launch = (
        interpreter._interpreter.load,
        interpreter._interpreter.store,
        interpreter.GridExecutor.__call__,
    )
    seen: dict[tuple[int, bool], np.ndarray] = {}
    maps: list[tuple[int, int]] = []

    def note(pointers, mask, itemsize, written):
        places = pointers[mask].reshape(-1)
        for start, size in maps:
            inside = places[(places >= start) & (places < start + size)]
            if len(inside):
                touched = seen.setdefault((start, written), np.zeros(size, bool))
                touched[np.asarray(inside - start, dtype=np.int64)[:, None] + np.arange(itemsize)] = True

    def noted_load(pointers, mask, other, dtype):
        note(pointers, mask, np.dtype(dtype).itemsize, False)
        return load(pointers, mask, other, dtype)

    def noted_store(pointers, values, mask):
        note(pointers, mask, values.dtype.itemsize, True)
        return store(pointers, values, mask)

    def noted_launch(self, *args, **kwargs):
        tensors = {t.data_ptr(): t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)}
        maps[:] = [(pointer, t.nbytes) for pointer, t in tensors.items() if t.nbytes in sizes]
        seen.clear()
        launch(self, *args, **kwargs)
        found.append(sum(int(touched.sum()) for touched in seen.values()))

    with monkeypatch.context() as patch:
        patch.setattr(interpreter._interpreter, "load", noted_load)
        patch.setattr(interpreter._interpreter, "store", noted_store)
        patch.setattr(interpreter.GridExecutor, "__call__", noted_launch)
        yield found


def own_traffic(case, direction, element_bytes):
    """What the convolutions of a case have to read and write without any norm."""
    passes = {"forward": (1, 1), "backward": (2, 2), "both": (3, 3)}[direction]
    return element_bytes * sum(passes[0] * before + passes[1] * after for before, after, _ in maps_of(case))


@pytest.mark.parametrize(("form", "most"), [("block", (12, 14)), ("16k3s1", (14,)), ("16k3s2", (14,))])
def test_norm_and_activation_of_a_convolution(form, most, monkeypatch):
    """Bytes an element beside the convolutions' own: at most 12 where the chain allows it, 14 otherwise; eager 26."""
    spec = SPECS["conv_bn_act"]
    case = replace(spec.cases[0], shape=(2, 16, 16, 16), options={"form": form, "act": "leaky_relu"})
    trial = Trial(replace(spec, cases=(case,), static_cases=()), case, "bf16", torch.device("cpu"))
    trial.prepare()
    monkeypatch.setattr("wallclock.kernels.conv.PROGRAMS", 1)  # splits of a filter's gradient are not a map
    monkeypatch.setattr(
        "wallclock.kernels.batch_norm_act.PERSISTENT_TILE", 256
    )  # the norm after the last one in two phases
    monkeypatch.setattr(case_inputs, "MULTIPROCESSORS", 0)
    sizes = {2 * elements for before, after, _ in maps_of(case) for elements in (before, after)}
    counted_bytes = {}
    for direction in ("forward", "backward", "both"):
        call = trial.call("triton", direction)
        with maps_touched(monkeypatch, sizes) as found:
            call()
        counted_bytes[direction] = sum(found)
        assert counted_bytes[direction] == spec.bytes_moved(case, "triton", direction, 2)
    residual = 2 * maps_of(case)[-1][1] if form == "block" else 0
    beside = counted_bytes["both"] - own_traffic(case, "both", 2) - residual
    elements = [after for _, after, _ in maps_of(case)]
    assert beside <= sum(bytes_ * n for bytes_, n in zip(most, elements, strict=True))
    if form == "block":  # the inner map takes 8, the outer one 14: 12 over the block
        assert beside / sum(elements) == 12


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_the_maps_of_an_upsampling_convolution(direction, monkeypatch):
    """What the collapsed weights take is counted by operators above; here, that no upsampled map is written or read."""
    spec = SPECS["upsample_conv"]
    case = replace(spec.cases[0], shape=(4, 8, 8, 8))
    trial = Trial(replace(spec, cases=(case,), static_cases=()), case, "bf16", torch.device("cpu"))
    trial.prepare()
    monkeypatch.setattr("wallclock.kernels.conv.PROGRAMS", 1)
    x, y = 2 * case.elements, 2 * 4 * case.elements
    call = trial.call("triton", direction)
    with maps_touched(monkeypatch, {x, y}) as found:
        call()
    assert sum(found) == (x + y) * {"forward": 1, "backward": 2, "both": 3}[direction]
