"""CIFAR-10, or a set like it, from whatever form it lies in."""

from pathlib import Path

import torch

from wallclock.loaders.batches import DataError, Dataset, Split
from wallclock.loaders.data.cifar10_batches import BATCHES, from_archive, from_directory
from wallclock.loaders.data.encoded_images import from_folders, from_parquet
from wallclock.loaders.data.source import Source


def find_source(path: Path) -> Source:
    """Reads a data set in whatever form it lies at `path`.

    Args:
        path: a folder in one of the formats (or the one above `cifar-10-batches-py` or `-bin`), or the archive.

    Raises:
        DataError: if there is none, or it is damaged; names the file and the next step.
    """
    if not path.exists():
        raise DataError(f"no such path: {path}; get CIFAR-10 with `wallclock data fetch`, or correct --data")
    if path.is_file() and path.name.endswith((".tar.gz", ".tgz", ".tar")):
        return from_archive(path)
    if path.is_file() and path.suffix == ".parquet":
        return from_parquet(path.parent)
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
        return from_parquet(path)
    if (path / "train").is_dir():
        return from_folders(path)
    archive = next(iter(sorted(path.glob("cifar-10-*.tar.gz"))), None)
    if archive is not None:
        return from_archive(archive)
    raise DataError(
        f"{path} holds no data set; expected CIFAR-10's python or binary batches, train*.parquet and test*.parquet, or "
        "train/<class>/ and test/<class>/ with images"
    )


def load_cifar10(path: Path) -> Split:
    """Returns the data set at `path`; see `find_source` for the formats.

    Raises:
        DataError: if it is missing or damaged.
    """
    return as_split(find_source(Path(path)))


def as_split(source: Source) -> Split:
    """Returns what was found on disk as data sets."""
    parts = [
        Dataset.create(source.name, torch.from_numpy(images), torch.from_numpy(labels), source.classes)
        for images, labels in (source.train, source.test)
    ]
    return Split(*parts)


def describe(path: Path) -> dict[str, str | int | list[str]]:
    """Returns what lies at `path`, read whole: name, format, counts, content hashes, classes.

    Raises:
        DataError: if it is missing or damaged.
    """
    source = find_source(Path(path))
    split = as_split(source)
    return {
        "name": source.name,
        "format": source.format,
        "train_images": len(split.train),
        "test_images": len(split.test),
        "train_hash": split.train.content_hash,
        "test_hash": split.test.content_hash,
        "classes": list(source.classes),
    }
