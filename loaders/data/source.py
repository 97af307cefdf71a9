"""The names of CIFAR-10 and its classes, and checks that all readers of such sets share."""

from pathlib import Path

from wallclock.loaders.batches import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
UNVERIFIED = "cifar10-unverified"  # looks like CIFAR-10, but its content is not one that we know


def damage_error(path: Path, why: str) -> DataError:
    """Returns the error for a damaged file."""
    return DataError(
        f"{path} is damaged: {' '.join(why.split())}; delete it and fetch the set again: wallclock data fetch"
    )


def check_labels(labels: list[int], path: Path, classes: int = len(CLASSES)) -> None:
    """Refuses labels that name no class.

    Raises:
        DataError: if a label is below 0 or not below `classes`; names the file.
    """
    low, high = min(labels, default=0), max(labels, default=0)
    if low < 0 or high >= classes:
        raise damage_error(path, f"labels run from {low:.6g} to {high:.6g}; expected 0 to {classes - 1}")
