"""The bytes that the specs predict are the bytes that the kernels ask for, counted in Triton's interpreter."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from bench.cases.kernel_trial import DTYPES, Trial
from kernels.cases import SPECS
from kernels.instance_norm_act import plan

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts in Triton's interpreter, which is off")

# Of a batch norm: one map that every program holds at once, and one that 132 of them cannot.
SHAPES = {"persistent": (2, 64, 8, 8), "two-phase": (36, 32, 32, 32)}
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
@pytest.mark.parametrize("variant", ["triton", "triton_byte"])
@pytest.mark.parametrize("flags", [frozenset(), frozenset({"residual"})], ids=["", "residual"])
@pytest.mark.parametrize("form", SHAPES)
def test_batch_norm_act(form, flags, variant, direction, monkeypatch):
    spec = SPECS["batch_norm_act"]
    case = replace(spec.cases[0], shape=SHAPES[form], flags=flags)
    assert 1 <= ratio(monkeypatch, spec, case, variant, direction) <= 1 + VECTORS


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("place", [0, 2, 3, 4, 5], ids=["", "pad1", "sum-pad1", "sum", "pad3"])
@pytest.mark.parametrize("shape", [(2, 64, 8, 16), (1, 32, 40, 36)], ids=["persistent", "two-phase"])
def test_instance_norm_act(shape, place, direction, monkeypatch):
    spec = SPECS["instance_norm_act"]
    monkeypatch.setattr("kernels.cases.instance_norm_act.instance_plan", lambda shape: plan_here(shape))
    case = replace(spec.cases[place], shape=shape)
    assert 1 <= ratio(monkeypatch, spec, case, "triton", direction) <= 1 + VECTORS


def plan_here(shape):
    """The interpreter runs one program after another: none may wait for another."""
    n, c, height, width = shape
    return plan(n, height * width, c, resident_programs=0)


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_residual_with_an_activation(direction, monkeypatch):
    case = replace(SPECS["residual"].cases[0], shape=(4, 64, 8, 8))
    assert ratio(monkeypatch, SPECS["residual"], case, "triton", direction) == pytest.approx(1, abs=0.001)


def test_residual_without_an_activation(monkeypatch):
    case = replace(SPECS["residual"].cases[-1], shape=(4, 64, 8, 8))
    assert ratio(monkeypatch, SPECS["residual"], case, "triton", "forward") == 1


@pytest.mark.parametrize("place", [0, 1], ids=["crop", "contrast"])
def test_augment(place, monkeypatch):
    """An eighth of the pixels on average is a reflection of others: a crop reads so many fewer than it writes."""
    case = replace(SPECS["augment"].cases[place], shape=(20, 3, 32, 32))
    found = ratio(monkeypatch, SPECS["augment"], case, "triton", "forward")
    assert (0.85 + 2) / 3 < found < (0.9 + 2) / 3
