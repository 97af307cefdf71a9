"""A data set in whatever form it lies: found, read, named, and refused where it is missing or damaged."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wallclock.loaders.batches import DataError, Split
from wallclock.loaders.data import cifar10
from wallclock.loaders.data.cifar10 import describe, find_source, load_cifar10
from wallclock.loaders.data.source import CLASSES


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such path: .*absent; get CIFAR-10 with `wallclock data fetch`, or corr"):
        find_source(tmp_path / "absent")


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no data")
    for path in (tmp_path / "notes.txt", Path("/dev/null")):
        with pytest.raises(DataError, match=f"{path} is a file; expected a folder of CIFAR-10, or its .tar.gz"):
            find_source(path)


@pytest.mark.parametrize("inside", [(), ("notes.txt",), ("deeper/data_batch_1",), ("cifar-10-batches-py/readme.html",)])
def test_a_folder_without_a_data_set(tmp_path: Path, inside: tuple[str, ...]) -> None:
    for name in inside:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"holds no data set; expected CIFAR-10's python or binary batches, train\*"):
        find_source(tmp_path)


@pytest.mark.parametrize("folders", [("train", "test"), ("train/cat", "test/cat")])
def test_folders_without_images(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=r"train holds no images; expected .*/train/<class>/\*.png or \*.jpg"):
        load_cifar10(tmp_path)


@pytest.mark.parametrize("suffix", ["", ".bin"])
def test_a_folder_in_place_of_a_batch(tmp_path: Path, suffix: str) -> None:
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (tmp_path / (name + suffix)).mkdir()
    with pytest.raises(DataError, match=rf"cannot read .*data_batch_1{suffix}: Is a directory; check"):
        describe(tmp_path)


Pixels = Any


def pixels_of(seed: int, count: int = 6) -> Pixels:
    """Smooth images, so that JPEG keeps them within a few levels."""
    ramp = np.linspace(0, 160, 32)[:, None, None] + np.zeros((32, 32, 3))
    shifts = np.random.default_rng(seed).integers(0, 90, (count, 1, 1, 3))
    return (ramp[None] + shifts).astype(np.uint8)


def encoded(pixels: Pixels, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **({"quality": 95, "subsampling": 0} if form == "JPEG" else {}))
    return buffer.getvalue()


def write_part(
    file: Path,
    contents: list[bytes | None],
    labels: list[Any],
    image: str = "img",
    label: str = "label",
    names: tuple[str, ...] | None = None,
) -> None:
    column = pa.array([{"bytes": content, "path": None} for content in contents], IMAGE_TYPE)
    table = pa.table({image: column, label: pa.array(labels)})
    if names is not None:
        features = {label: {"names": list(names), "_type": "ClassLabel"}, image: {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file)


IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(folder: Path, form: str = "PNG", **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, part in enumerate(("train-00000-of-00001", "test-00000-of-00001")):
        contents: list[bytes | None] = [encoded(pixels, form) for pixels in pixels_of(seed)]
        write_part(folder / f"{part}.parquet", contents, [1, 0, 2, 2, 1, 0], **options)
    return folder


def write_folders(root: Path, test: str = "test") -> Path:
    for seed, part in enumerate(("train", test)):
        for label, name in enumerate(("cat", "dog", "ship")):
            (root / part / name).mkdir(parents=True)
            for index in range(2):
                (root / part / name / f"{index}.png").write_bytes(encoded(pixels_of(seed)[2 * label + index]))
    return root


@pytest.mark.parametrize("image", ["img", "image"])
@pytest.mark.parametrize("label", ["label", "labels", "fine_label"])
def test_png_parquet_is_read_pixel_by_pixel(tmp_path: Path, image: str, label: str) -> None:
    form, split = find_source(write_parquet(tmp_path / "set" / "data", image=image, label=label).parent)
    assert form == "parquet"
    for seed, part in enumerate((split.train, split.test)):
        assert (part.name, part.classes) == ("cifar10-unverified", CLASSES)
        assert np.array_equal(part.images_NHWC, pixels_of(seed)) and part.labels.tolist() == [1, 0, 2, 2, 1, 0]


def test_jpeg_parquet_has_the_classes_of_its_metadata(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "set", "JPEG", names=("a", "b", "c"))
    for path in (folder, folder / "train-00000-of-00001.parquet"):
        train = load_cifar10(path).train
        assert (train.name, train.classes) == ("cifar10-unverified", ("a", "b", "c"))
        difference = np.abs(train.images_NHWC.numpy().astype(int) - pixels_of(0))
        assert 0 < difference.max() < 12, "decoded, and lossy"


def test_a_known_set_is_named_by_what_its_files_hold_and_by_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_parquet(tmp_path / "cifar10-jpeg", "JPEG")
    assert load_cifar10(folder).test.name == "cifar10-unverified"  # the name of a folder proves nothing
    hashes = []
    for seed in (0, 1):
        digest = hashlib.sha256(b"".join(encoded(pixels, "JPEG") for pixels in pixels_of(seed)))
        digest.update(np.array([1, 0, 2, 2, 1, 0], "<i8").tobytes())
        hashes.append(digest.hexdigest())
    monkeypatch.setitem(cifar10.KNOWN, tuple(hashes), "the known one")
    assert load_cifar10(folder).test.name == "the known one"
    write_part(folder / "test-00000-of-00001.parquet", [encoded(pixels_of(1)[0], "JPEG")], [1])
    assert load_cifar10(folder).test.name == "cifar10-unverified"


def test_shards_are_joined_in_order(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "set")
    write_part(folder / "train-00001-of-00002.parquet", [encoded(p) for p in pixels_of(7, 2)], [5, 6])
    train = load_cifar10(folder).train
    assert train.labels.tolist() == [1, 0, 2, 2, 1, 0, 5, 6]
    assert np.array_equal(train.images_NHWC[6:], pixels_of(7, 2))


@pytest.mark.parametrize("test", ["test", "val", "valid"])
def test_folders_are_read_with_their_classes(tmp_path: Path, test: str) -> None:
    root = write_folders(tmp_path / "my pets", test)
    (root / "train" / "notes.txt").write_text("no image")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / test / ".ipynb_checkpoints").mkdir()
    (root / "train" / "cat" / "._0.png").write_bytes(b"no image, but what a Mac leaves on a foreign disk")
    form, split = find_source(root)
    assert form == "image folders"
    for seed, part in enumerate((split.train, split.test)):
        assert (part.name, part.classes) == ("folder:my-pets", ("cat", "dog", "ship"))
        assert np.array_equal(part.images_NHWC, pixels_of(seed)) and part.labels.tolist() == [0, 0, 1, 1, 2, 2]


PNG = encoded(pixels_of(0)[0])
NO_IMAGES = {
    "empty": (b"", "cannot be decoded"),
    "missing": (None, "cannot be decoded"),
    "text": (b"<html>", "cannot be decoded"),
    "truncated PNG": (PNG[:-30], "cannot be decoded"),
    "truncated JPEG": (encoded(pixels_of(0)[0], "JPEG")[:300], "cannot be decoded"),
    "a format that is neither": (encoded(pixels_of(0)[0], "BMP"), "cannot be decoded"),
    "another size": (encoded(np.zeros((28, 30, 3), np.uint8)), "is 30x28; expected 32x32"),
    "a bomb": (PNG[:16] + b"\x00\x01\x00\x00" * 2 + PNG[24:], "cannot be decoded|is 65536x65536"),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_image_is_named(tmp_path: Path, kind: str) -> None:
    content, message = NO_IMAGES[kind]
    folder = write_parquet(tmp_path / "set")
    file = folder / "test-00000-of-00001.parquet"
    write_part(file, [PNG, PNG, content], [0, 1, 2])
    with pytest.raises(DataError, match=f"{file}, image 2, ({message})"):
        find_source(folder)
    if content is not None:
        root = write_folders(tmp_path / "folders")
        (root / "test" / "dog" / "bad.jpg").write_bytes(content)
        with pytest.raises(DataError, match=f"bad.jpg.*({message})"):
            find_source(root)


@pytest.mark.parametrize("labels", [[0, 1, -1], [0, 1, 10], [0, 1, None], ["a", "b", "c"], [0.0, 1.5, 2.0]], ids=str)
def test_strange_labels_are_refused_by_file(tmp_path: Path, labels: list[Any]) -> None:
    folder = write_parquet(tmp_path / "set")
    write_part(folder / "test-00000-of-00001.parquet", [PNG] * 3, labels)
    with pytest.raises(DataError, match=r"test-00000-of-00001.parquet.*label"):
        find_source(folder)


def test_tables_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "set")
    file = folder / "train-00000-of-00001.parquet"
    for columns in (
        {"text": ["x"], "label": [1]},
        {"img": [[1, 2]], "label": [1]},
        {"img": [1], "label": [1]},
        {"img": [{"path": "x.png"}], "label": [1]},
        {"img": pa.array([], IMAGE_TYPE), "label": pa.array([], pa.int64())},
    ):
        pq.write_table(pa.table(columns), file)
        with pytest.raises(DataError, match=r"train-00000-of-00001.parquet"):
            find_source(folder)


@pytest.mark.parametrize("described", [b"{", b"[]", b'{"info": 3}', b'{"info": {"features": {"label": {"names": 3}}}}'])
def test_metadata_that_says_nothing_is_refused_or_ignored(tmp_path: Path, described: bytes) -> None:
    folder = write_parquet(tmp_path / "set")
    file = folder / "train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(file).replace_schema_metadata({"huggingface": described}), file)
    assert load_cifar10(folder).train.classes == CLASSES


def test_parts_of_two_sets_are_refused(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "set", names=("a", "b", "c"))
    write_part(folder / "test-00000-of-00001.parquet", [PNG] * 3, [0, 1, 2], names=("a", "c", "b"))
    with pytest.raises(DataError, match=r"train-00000.*.parquet names other classes than test\*.parquet; take both"):
        find_source(folder)
    write_part(folder / "test-00000-of-00001.parquet", [PNG] * 3, [0, 1, 3])  # under the names of train
    with pytest.raises(DataError, match="test-00000.*labels run from 0 to 3; expected 0 to 2"):
        find_source(folder)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "set")
    (folder / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"has no test\*.parquet; name a folder that holds both"):
        find_source(folder)
    root = write_folders(tmp_path / "folders")
    (root / "test" / "cow").mkdir()
    with pytest.raises(DataError, match="test has classes that train/ lacks: cow"):
        find_source(root)
    (root / "test" / "cow").rmdir()
    (root / "train" / "cow").mkdir()
    with pytest.raises(DataError, match="train/cow holds no images; put some there, or remove the folder"):
        find_source(root)
    (root / "train" / "cow").rmdir()
    (root / "train" / "dog" / "gone.png").symlink_to(root / "nowhere.png")
    with pytest.raises(DataError, match="gone.png"):
        find_source(root)
    (root / "test").rename(root / "other")
    with pytest.raises(DataError, match="has train/ but no test/"):
        find_source(root)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    root = tmp_path_factory.mktemp("pristine")
    made = {form: write_parquet(root / form, form, names=("a", "b", "c")) for form in ("PNG", "JPEG")}
    files = {form: (folder, folder / "train-00000-of-00001.parquet") for form, folder in made.items()}
    folders = write_folders(root / "folders")
    return files | {"folders": (folders, folders / "train" / "dog" / "1.png")}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "folders"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(
    pristine: dict[str, tuple[Path, Path]], kind: str, data: st.DataObject
) -> None:
    root, file = pristine[kind]
    content = file.read_bytes()
    damaged = bytearray(content)
    place = st.integers(0, 60) | st.integers(max(-900, -len(content)), -1) | st.integers(0, len(content) - 1)
    for position, value in data.draw(st.lists(st.tuples(place, st.integers(1, 255)), max_size=4)):
        damaged[position] ^= value
    kept = data.draw(st.none() | st.integers(0, len(content)))
    try:
        file.write_bytes(damaged[:kept])
        assert load_cifar10(root).train.images_NHWC.shape[1:] == (32, 32, 3)
    except DataError as error:
        assert file.name in str(error) and "\n" not in str(error)
    finally:
        file.write_bytes(content)


@pytest.fixture(scope="module")
def real(real_images: Path) -> Split:
    return load_cifar10(real_images)


@pytest.mark.slow
def test_the_real_set_is_the_pinned_one(real: Split) -> None:
    assert (len(real.train), len(real.test)) == (50_000, 10_000)
    assert real.train.name == real.test.name == "cifar10-jpeg", "decoded from JPEG, not the canonical pixels"
    assert real.train.classes == CLASSES and real.train.images_NHWC.shape[1:] == (32, 32, 3)


@pytest.mark.slow
def test_the_real_set_is_balanced_and_has_the_known_statistics(real: Split) -> None:
    assert real.train.labels.bincount().tolist() == [5000] * 10 and real.test.labels.bincount().tolist() == [1000] * 10
    mean = real.train.images_NHWC[::10].float().mean((0, 1, 2)) / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.01)
    tuned = real.tune()
    assert (len(tuned.train), len(tuned.test)) == (45_000, 5_000)
