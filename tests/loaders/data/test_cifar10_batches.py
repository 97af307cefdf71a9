"""CIFAR-10's batches and their archive: read, named, refused where damaged or hostile; no code in them runs."""

import gzip
import hashlib
import io
import pickle
import pickletools
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wallclock.loaders.batches import DataError, Split
from wallclock.loaders.data import cifar10_batches
from wallclock.loaders.data.cifar10 import find_source
from wallclock.loaders.data.cifar10_batches import _python_batch

NAMES = cifar10_batches.BATCHES
IMAGES = 4  # in a batch


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """The bytes Python 2's cPickle wrote, protocol 2: byte strings throughout, arrays through numpy.core."""

    def string(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)

    kind = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R"
    kind += b"(K\x03" + string(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
    array += b"(K\x01" + number(data.shape[0]) + b"M" + struct.pack("<H", data.shape[1]) + b"\x86" + kind
    array += b"\x89" + string(data.tobytes()) + b"tb"
    items = string(b"batch_label") + string(b"training batch") + string(b"data") + array
    items += string(b"labels") + b"](" + b"".join(number(v) for v in labels) + b"e"
    return b"\x80\x02}q\x01(" + items + b"u."


def binary(data: np.ndarray, labels: list[int]) -> bytes:
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, data, strict=True))


def planes(seed: int, count: int = IMAGES) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def labels_of(seed: int, count: int = IMAGES) -> list[int]:
    return [(3 * seed + 7 * i) % 10 for i in range(count)]


def write_batches(folder: Path, write: Callable[[np.ndarray, list[int]], bytes], suffix: str = "") -> Path:
    folder.mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        (folder / (name + suffix)).write_bytes(write(planes(seed), labels_of(seed)))
    return folder


def write_archive(path: Path, folder: Path, extra: tarfile.TarInfo | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-py")
        if extra is not None:
            archive.addfile(extra, io.BytesIO(b"x" * extra.size))
    return path


def assert_holds_the_images(split: Split) -> None:
    """Pixel (image, row, column, channel) is at [image, channel * 1024 + row * 32 + column] of the planes."""
    assert (split.train.name, split.train.classes) == ("cifar10-unverified", cifar10_batches.CLASSES)
    images, labels = split.train.images_NHWC.numpy(), split.train.labels
    assert images.shape == (5 * IMAGES, 32, 32, 3) and labels.tolist() == sum((labels_of(s) for s in range(5)), [])
    for batch, image, row, column, channel in ((0, 0, 0, 1, 0), (1, 3, 31, 0, 2), (4, 2, 5, 17, 1)):
        value = planes(batch)[image, channel * 1024 + row * 32 + column]
        assert images[batch * IMAGES + image, row, column, channel] == value
    assert np.array_equal(split.test.images_NHWC[2].numpy().transpose(2, 0, 1).ravel(), planes(5)[2])
    assert split.test.labels.tolist() == labels_of(5)


WRITERS = {"": python2_pickle, ".bin": binary}


@pytest.mark.parametrize("suffix", WRITERS)
def test_batches_are_read_pixel_by_pixel(tmp_path: Path, suffix: str) -> None:
    inner = "cifar-10-batches-bin" if suffix else "cifar-10-batches-py"
    write_batches(tmp_path / inner, WRITERS[suffix], suffix)
    form, split = find_source(tmp_path)  # the folder above
    assert form == ("binary batches" if suffix else "python batches")
    assert_holds_the_images(split)
    assert_holds_the_images(find_source(tmp_path / inner)[1])


@pytest.mark.parametrize("suffix", WRITERS)
def test_an_archive_is_read_without_being_extracted(tmp_path: Path, suffix: str) -> None:
    folder = write_batches(tmp_path / "made" / "batches", WRITERS[suffix], suffix)
    (tmp_path / "set").mkdir()
    archive = write_archive(tmp_path / "set" / "cifar-10-any.tar.gz", folder)
    assert_holds_the_images(find_source(archive)[1])
    assert_holds_the_images(find_source(archive.parent)[1])
    assert [p.name for p in archive.parent.iterdir()] == [archive.name]


def test_only_the_published_checksums_make_it_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_batches(tmp_path / "set", python2_pickle)
    digests = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in NAMES}
    assert find_source(folder)[1].train.name == "cifar10-unverified"
    monkeypatch.setattr(cifar10_batches, "MD5", digests)
    assert find_source(folder)[1].train.name == "cifar10"
    monkeypatch.setattr(cifar10_batches, "MD5", digests | {"test_batch": "0" * 32})
    assert find_source(folder)[1].train.name == "cifar10-unverified"


def test_a_batch_of_full_size_that_is_not_the_published_one_is_refused(tmp_path: Path) -> None:
    folder = write_batches(tmp_path / "set", python2_pickle)
    (folder / "data_batch_3").write_bytes(python2_pickle(planes(2, 10_000), labels_of(2, 10_000)))
    with pytest.raises(DataError, match=r"data_batch_3 is damaged: its checksum.*wallclock data fetch"):
        find_source(folder)


@pytest.mark.parametrize("suffix", WRITERS)
def test_missing_batches_are_named(tmp_path: Path, suffix: str) -> None:
    folder = write_batches(tmp_path / "set", WRITERS[suffix], suffix)
    for name in ("data_batch_2", "test_batch"):
        (folder / (name + suffix)).unlink()
    with pytest.raises(DataError, match=rf"lacks data_batch_2{suffix}, test_batch{suffix}; .*wallclock data fetch"):
        find_source(folder)


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("kept", [0, 1, 3000, -1])
def test_a_truncated_batch_is_named(tmp_path: Path, suffix: str, kept: int) -> None:
    folder = write_batches(tmp_path / "set", WRITERS[suffix], suffix)
    file = folder / f"data_batch_4{suffix}"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataError, match=rf"data_batch_4{suffix} is damaged: .*wallclock data fetch"):
        find_source(folder)


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_label_out_of_range_is_refused_by_file(tmp_path: Path, suffix: str) -> None:
    folder = write_batches(tmp_path / "set", WRITERS[suffix], suffix)
    (folder / f"test_batch{suffix}").write_bytes(WRITERS[suffix](planes(0), [0, 1, 10, 2]))
    with pytest.raises(DataError, match=rf"test_batch{suffix} is damaged: .*labels run from 0 to 10.*data fetch"):
        find_source(folder)


@pytest.mark.parametrize(
    "labels", [[0, 1, 2], [0, 1, 2, -1], [0, 1, 2, 70_000]], ids=["too few", "negative", "above all bytes"]
)
def test_strange_labels_of_a_python_batch_are_refused(tmp_path: Path, labels: list[int]) -> None:
    folder = write_batches(tmp_path / "set", python2_pickle)
    (folder / "data_batch_1").write_bytes(python2_pickle(planes(0), labels))
    with pytest.raises(DataError, match="data_batch_1 is damaged: .*labels"):
        find_source(folder)


def test_a_label_beyond_64_bits_is_refused(tmp_path: Path) -> None:
    folder = write_batches(tmp_path / "set", python2_pickle)
    huge = b"\x8a\x0a" + b"\x01" * 10  # LONG1, 80 bits
    content = python2_pickle(planes(0), [0, 1, 2, 3])
    (folder / "data_batch_1").write_bytes(content.replace(b"K\x03eu.", huge + b"eu."))
    with pytest.raises(DataError, match="data_batch_1 is damaged: .*labels"):
        find_source(folder)


HOSTILE_MEMBERS = {
    "above": {"name": "../escaped", "size": 3},
    "absolute": {"name": "/tmp/wallclock-escaped", "size": 3},
    "symlink": {"name": "cifar-10-batches-py/link", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "hard link": {"name": "cifar-10-batches-py/link", "type": tarfile.LNKTYPE, "linkname": "../../x"},
    "device": {"name": "cifar-10-batches-py/dev", "type": tarfile.CHRTYPE},
    "fifo": {"name": "cifar-10-batches-py/fifo", "type": tarfile.FIFOTYPE},
}


@pytest.mark.parametrize("kind", HOSTILE_MEMBERS)
def test_hostile_members_are_refused_and_nothing_is_written(tmp_path: Path, kind: str) -> None:
    folder = write_batches(tmp_path / "made", python2_pickle)
    member = tarfile.TarInfo()
    for field, value in HOSTILE_MEMBERS[kind].items():
        setattr(member, field, value)
    (tmp_path / "set").mkdir()
    archive = write_archive(tmp_path / "set" / "cifar-10.tar.gz", folder, member)
    with pytest.raises(DataError, match=rf"cifar-10.tar.gz has a member '{member.name}'.*wallclock data fetch"):
        find_source(archive)
    assert {p.name for p in tmp_path.iterdir()} == {"made", "set"} and len(list(archive.parent.iterdir())) == 1
    assert not Path("/tmp/wallclock-escaped").exists()


@pytest.mark.parametrize("kept", [0, 9, 200, 0.5, 0.95])
def test_a_truncated_archive_is_refused(tmp_path: Path, kept: float) -> None:
    archive = write_archive(tmp_path / "cifar-10.tar.gz", write_batches(tmp_path / "made", python2_pickle))
    content = archive.read_bytes()
    archive.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(DataError, match=r"cifar-10.tar.gz.*wallclock data fetch"):
        find_source(archive)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One set of each form, each file of which the fuzz tests damage and restore."""
    root = tmp_path_factory.mktemp("pristine")
    made = {kind: write_batches(root / f"set{kind}", WRITERS[kind], kind) for kind in WRITERS}
    archive = write_archive(root / "a.tar.gz", made[""])
    (root / "b.tar").write_bytes(gzip.decompress(archive.read_bytes()))
    return {
        "": made[""] / "data_batch_2",
        ".bin": made[".bin"] / "data_batch_2.bin",
        "gz": archive,
        "tar": root / "b.tar",
    }


def assert_refused_or_read(file: Path, root: Path, damaged: bytes) -> None:
    content = file.read_bytes()
    try:
        file.write_bytes(damaged)
        split = find_source(root)[1]
        assert split.train.images_NHWC.shape[1:] == (32, 32, 3) and len(split.test) > 0
    except DataError as error:
        assert file.name in str(error) and "\n" not in str(error) and "wallclock data fetch" in str(error)
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("kind", ["", ".bin", "gz", "tar"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(pristine: dict[str, Path], kind: str, data: st.DataObject) -> None:
    file = pristine[kind]
    content = bytearray(file.read_bytes())
    # Half the flips hit the first or last 700 bytes: headers, opcodes, labels. The rest are mostly pixels.
    place = st.integers(0, 699) | st.integers(-700, -1) | st.integers(0, len(content) - 1)
    for position, value in data.draw(st.lists(st.tuples(place, st.integers(1, 255)), max_size=4)):
        content[position] ^= value
    kept = data.draw(st.none() | st.integers(0, len(content)))
    assert_refused_or_read(file, file if kind in ("gz", "tar") else file.parent, bytes(content[:kept]))


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
        rows, labels = _python_batch(version, PATH)
        assert labels == [0, 1] and rows.shape == (2, 3072) and rows.dtype == np.uint8


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
        _python_batch(content, PATH)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"Pmarker\n.", b"\x80\x02K\x01Q."])
def test_persistent_ids_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="data_batch_1 is damaged"):
        _python_batch(content, PATH)


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


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_random_damage_of_a_pickle_raises_nothing_else(data: st.DataObject) -> None:
    content = bytearray(array_pickle())
    place = st.integers(0, 260) | st.integers(-40, -1)
    for position, value in data.draw(st.lists(st.tuples(place, st.integers(1, 255)), min_size=1, max_size=5)):
        content[position] ^= value
    try:
        rows, labels = _python_batch(bytes(content[: data.draw(st.none() | st.integers(0, 6400))]), PATH)
        assert rows.dtype == np.uint8 and rows.shape[1:] == (3072,) and len(rows) == len(labels)
    except DataError as error:
        assert "data_batch_1" in str(error)
