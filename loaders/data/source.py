"""What a reader of data sets hands on: the images and labels as found on disk, and what they may be called."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wallclock.loaders.batches import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
UNVERIFIED = "cifar10-unverified"  # looks like CIFAR-10, but its content is not one that we know

Pixels = npt.NDArray[np.uint8]
Labelled = tuple[Pixels, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Source:
    """A data set as found on disk.

    Attributes:
        name: what an accuracy on it may be called.
        format: "python batches", "binary batches", "parquet" or "image folders".
        classes: in label order.
        train: images uint8 [N, 32, 32, 3] and labels int64 [N].
        test: the same.
    """

    name: str
    format: str
    classes: tuple[str, ...]
    train: Labelled
    test: Labelled


def damaged(path: Path, why: str) -> DataError:
    """Returns the error for a file that is not what it should be."""
    return DataError(
        f"{path} is damaged: {' '.join(why.split())}; delete it and fetch the set again: wallclock data fetch"
    )


def check_labels(labels: list[int], path: Path, classes: int = len(CLASSES)) -> None:
    """Refuses labels that name no class, where the file at fault is known.

    Raises:
        DataError: if one is below 0 or not below `classes`.
    """
    low, high = min(labels, default=0), max(labels, default=0)
    if low < 0 or high >= classes:
        raise damaged(path, f"labels run from {low:.6g} to {high:.6g}; expected 0 to {classes - 1}")


def joined(parts: list[Labelled]) -> Labelled:
    """Returns the parts as one, in order."""
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])
