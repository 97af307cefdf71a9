"""Readers of CIFAR-10, or a set like it, in any of its formats."""

import hashlib
from dataclasses import replace
from pathlib import Path

from wallclock.loaders.batches import DataError, Split
from wallclock.loaders.data.cifar10_batches import BATCHES, from_archive, from_directory
from wallclock.loaders.data.image_files import class_folders
from wallclock.loaders.data.source import UNVERIFIED
from wallclock.loaders.data.stored import stored_folders, stored_parquet

# Known sets by two sha256, of train and of test: each covers the encoded images in order, then their labels as
# little-endian int64, and so does not depend on a decoder.
KNOWN = {
    (
        "54e95e027d3628aa2e32def8c00b576c396fc95fc081611b0c8db63c448becbf",
        "add1966be195eec38dac08a05a9d78c879c377837b9ec79b8482c5b2b3a70013",
    ): "cifar10-jpeg",
}


def find_source(path: Path) -> tuple[str, Split]:
    """Reads the data set at `path` and finds out its format.

    Args:
        path: folder in one of the formats (or the one above `cifar-10-batches-py` or `-bin`), or the archive.

    Returns:
        The format ("python batches", "binary batches", "parquet" or "image folders"), and the data set.

    Raises:
        DataError: if the data set is missing or damaged; names the file and the next step.
    """
    if not path.exists():
        raise DataError(f"no such path: {path}; get CIFAR-10 with `wallclock data fetch`, or correct --data")
    if path.is_file() and path.name.endswith((".tar.gz", ".tgz", ".tar")):
        return from_archive(path)
    if path.is_file() and path.suffix == ".parquet":
        return "parquet", _from_parquet(path.parent)
    if not path.is_dir():
        raise DataError(f"{path} is a file; expected a folder of CIFAR-10, or its .tar.gz")
    for inner in ("cifar-10-batches-py", "cifar-10-batches-bin"):
        if (path / inner).is_dir():
            path = path / inner
    names = {p.name for p in path.iterdir()}
    if names & set(BATCHES):
        return from_directory(path, "")
    if names & {f"{batch}.bin" for batch in BATCHES}:
        return from_directory(path, ".bin")
    if any(path.rglob("*.parquet")):
        return "parquet", _from_parquet(path)
    if (path / "train").is_dir():
        return "image folders", _from_folders(path)
    archive = next(iter(sorted(path.glob("cifar-10-*.tar.gz"))), None)
    if archive is not None:
        return from_archive(archive)
    raise DataError(
        f"{path} holds no data set; expected CIFAR-10's python or binary batches, train*.parquet and test*.parquet, or "
        "train/<class>/ and test/<class>/ with images"
    )


def _from_parquet(path: Path) -> Split:
    """Reads `train*.parquet` and `test*.parquet` anywhere under a folder; see `stored_parquet`."""
    train = stored_parquet(path)
    test = stored_parquet(path, "test", train.classes)
    if test.classes != train.classes:
        first = min(path.rglob("train*.parquet"))
        raise DataError(f"{first} names other classes than test*.parquet; take both from one set")
    hashes = []
    for stored in (train, test):
        digest = hashlib.sha256()
        for place in range(len(stored)):
            digest.update(stored.content(place).data)
        digest.update(stored.labels.numpy().data)
        hashes.append(digest.hexdigest())
    name = KNOWN.get((hashes[0], hashes[1]), UNVERIFIED)
    return Split(*(replace(stored, name=name).dataset() for stored in (train, test)))


def _from_folders(path: Path) -> Split:
    """Reads `train/<class>/*.png|jpg`, and `test`, `val` or `valid` beside it, with classes in alphabetical order."""
    test = next((path / part for part in ("test", "val", "valid") if (path / part).is_dir()), None)
    if test is None:
        raise DataError(f"{path} has train/ but no test/; put images to score on in {path}/test/<class>/")
    train = stored_folders(path / "train")
    strange = sorted(set(class_folders(test)) - set(train.classes))
    if strange:
        raise DataError(f"{test} has classes that train/ lacks: {', '.join(strange)}")
    untaught = [name for label, name in enumerate(train.classes) if label not in train.labels]
    if untaught:
        raise DataError(f"{path / 'train' / untaught[0]} holds no images; put some there, or remove the folder")
    return Split(*(stored.dataset() for stored in (train, stored_folders(test, train.classes))))


def load_cifar10(path: Path) -> Split:
    """Returns the data set at `path`; see `find_source` for the formats.

    Raises:
        DataError: if the data set is missing or damaged.
    """
    return find_source(Path(path))[1]


def describe(path: Path) -> dict[str, str | int | list[str]]:
    """Reads the whole data set at `path` and returns its name, format, counts, content hashes and classes.

    Raises:
        DataError: if the data set is missing or damaged.
    """
    form, split = find_source(Path(path))
    return {
        "name": split.train.name,
        "format": form,
        "train_images": len(split.train),
        "test_images": len(split.test),
        "train_hash": split.train.content_hash,
        "test_hash": split.test.content_hash,
        "classes": list(split.train.classes),
    }
