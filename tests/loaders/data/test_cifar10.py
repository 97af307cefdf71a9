"""Where a data set is looked for, what is said when there is none, and the real one where it lies at hand."""

from pathlib import Path

import pytest

from wallclock.loaders.batches import DataError, Split
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


@pytest.fixture(scope="module")
def real(real_images: Path) -> Split:
    return load_cifar10(real_images)


def test_the_real_set_is_the_pinned_one(real: Split) -> None:
    assert (len(real.train), len(real.test)) == (50_000, 10_000)
    assert real.train.name == real.test.name == "cifar10-jpeg", "decoded from JPEG, not the canonical pixels"
    assert real.train.classes == CLASSES and real.train.images_NHWC.shape[1:] == (32, 32, 3)


def test_the_real_set_is_balanced_and_has_the_known_statistics(real: Split) -> None:
    assert real.train.labels.bincount().tolist() == [5000] * 10 and real.test.labels.bincount().tolist() == [1000] * 10
    mean = real.train.images_NHWC[::10].float().mean((0, 1, 2)) / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.01)
    tuned = real.tune()
    assert (len(tuned.train), len(tuned.test)) == (45_000, 5_000)
