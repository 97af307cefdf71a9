"""Pickles that ask for code are refused before anything runs, and damaged ones with a message."""

import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wallclock.loaders.data.safe_pickle import load_pickle

from wallclock.loaders.batches import DataError
from wallclock.loaders.data.cifar10_batches import _python_batch

PATH = Path("data_batch_1")


def array_pickle() -> bytes:
    return pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}, protocol=4)


def test_bytes_keys_and_either_numpy_spelling_are_read() -> None:
    content = array_pickle()
    assert b"numpy._core.multiarray" in content
    # Older numpy wrote numpy.core: as protocol 2 globals, for which the lengths need not be patched.
    older = content.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    older = older[:3] + (int.from_bytes(older[3:11], "little") - 1).to_bytes(8, "little") + older[11:]
    for version in (content, older):
        loaded = load_pickle(version, PATH)
        assert set(loaded) == {"data", "labels"} and loaded["labels"] == [0, 1]
        assert loaded["data"].shape == (2, 3072) and loaded["data"].dtype == np.uint8


def called(module: str, name: str, argument: str) -> bytes:
    return f"c{module}\n{name}\n(S'{argument}'\ntR.".encode()


HOSTILE = {
    "os.system": lambda marker: called("os", "system", f"touch {marker}"),
    "posix.system": lambda marker: called("posix", "system", f"touch {marker}"),
    "builtins.eval": lambda marker: called("builtins", "eval", f'open("{marker}","w")'),
    "__builtin__.eval": lambda marker: called("__builtin__", "eval", f'open("{marker}","w")'),
    "builtins.open": lambda marker: f"cbuiltins\nopen\n(S'{marker}'\nS'w'\ntR.".encode(),
    "subprocess.Popen": lambda marker: f"csubprocess\nPopen\n((lS'touch'\naS'{marker}'\natR.".encode(),
    "numpy.core.multiarray.os": lambda marker: called("numpy.core.multiarray", "os.system", f"touch {marker}"),
    "dotted name": lambda marker: (
        b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system" + b"\x93" + b"(" + f"S'touch {marker}'\n".encode() + b"tR."
    ),
    "getattr chain": lambda marker: f"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR(S'{marker}'\ntR.".encode(),
    "numpy.save": lambda marker: f"cnumpy\nsave\n(S'{marker}'\nI1\ntR.".encode(),
    "numpy.load": lambda marker: called("numpy", "load", str(marker)),
    "method of an admitted class": lambda marker: (
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93(" + f"S'{marker}'\n".encode() + b"tR."
    ),
    "INST": lambda marker: f"(S'touch {marker}'\nios\nsystem\n.".encode(),
    "copyreg": lambda marker: called("copyreg", "_reconstructor", str(marker)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_name_in_a_file_is_ever_called(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "executed"
    content = HOSTILE[kind](marker)
    pickletools.dis(content, out=(tmp_path / "listing").open("w"))  # a whole pickle, not refused for its syntax
    with pytest.raises(DataError, match="data_batch_1 asks for .*nothing was executed.*wallclock data fetch"):
        load_pickle(content, PATH)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"Pmarker\n.", b"\x80\x02K\x01Q."])
def test_persistent_ids_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="data_batch_1 refers to an object outside"):
        load_pickle(content, PATH)


NUMPY = b"cnumpy.core.multiarray\n_reconstruct\n"
STRANGE = {
    "object array": pickle.dumps({"data": np.array([[1, "a"]], dtype=object), "labels": [0]}, protocol=4),
    "structured array": pickle.dumps({"data": np.zeros(3, dtype=[("a", "u1"), ("b", "O")]), "labels": []}, protocol=4),
    "float array": pickle.dumps({"data": np.zeros((2, 3072)), "labels": [0, 1]}, protocol=4),
    "flat array": pickle.dumps({"data": np.zeros(3072, np.uint8), "labels": [0]}, protocol=4),
    "negative shape": NUMPY + b"(cnumpy\nndarray\n(I-5\ntS'b'\ntR.",
    "enormous shape": NUMPY + b"(cnumpy\nndarray\n(I1000000000000\nI1000000\ntS'b'\ntR.",
    "reconstructs no array": NUMPY + b"(cnumpy\ndtype\n(I0\ntS'b'\ntR.",
    "object of nothing": NUMPY + b"(cnumpy\nndarray\n(I3\ntS'O'\ntR.",
    "a class called strangely": b"cnumpy\nndarray\n(S'abc'\ntR.",
    "an unknown dtype": b"cnumpy\ndtype\n(S'no such'\ntR.",
    "a dtype of Python's text": b"cnumpy\ndtype\n(S'(2,)u1, ((('\ntR.",
    "a dtype's strange state": b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I9\nS'|'\nNI1\nNI7\nI7\nI3\ntb.",
    "an array's strange state": NUMPY + b"(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I9\ntcnumpy\ndtype\nI00\nS'x'\ntb.",
    "a negative edge": NUMPY
    + b"(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I-1\nI3072\ntcnumpy\ndtype\n(S'u1'\ntRI00\nS'x'\ntb.",
    "a state on the class": b"cnumpy\nndarray\n}S'shape'\nI1\nsb.",
    "unhashable key": b"}]I1\ns.",
    "a list": b"].",
    "a number": b"I1\n.",
    "nothing": b"",
    "no pickle": b"\xff\xd8\xff\xe0",
    "no labels": pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}, protocol=4),
    "labels of text": pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": ["0", "1"]}, protocol=4),
    "deep nesting as a key": b"}" + b"(" * 50_000 + b"t" * 50_000 + b"I1\ns.",
}


@pytest.mark.parametrize("kind", STRANGE)
def test_admitted_globals_with_strange_arguments_are_refused(kind: str) -> None:
    with pytest.raises(DataError, match="data_batch_1 is damaged.*wallclock data fetch"):
        _python_batch(STRANGE[kind], PATH)


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_random_damage_never_raises_anything_else(data: st.DataObject) -> None:
    content = bytearray(array_pickle())
    place = st.integers(0, 260) | st.integers(-40, -1)
    for position, value in data.draw(st.lists(st.tuples(place, st.integers(1, 255)), min_size=1, max_size=5)):
        content[position] ^= value
    try:
        images, labels = _python_batch(bytes(content[: data.draw(st.none() | st.integers(0, 6400))]), PATH)
        assert images.dtype == np.uint8 and images.shape[1:] == (32, 32, 3) and len(images) == len(labels)
    except DataError as error:
        assert "data_batch_1" in str(error)
