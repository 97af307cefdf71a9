"""Data sets as raw uint8 on the disk, mapped into memory: for what no device's memory holds."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch

from wallclock.loaders.batches import DataError, Dataset

IMAGES, LABELS, ABOUT = "images.npy", "labels.npy", "dataset.json"


def write_memmap(dataset: Dataset, folder: Path) -> None:
    """Writes a data set for `open_memmap`; the folder appears whole or not at all.

    Args:
        dataset: on the CPU.
        folder: to make.

    Raises:
        DataError: if it exists or cannot be written.
    """
    if folder.exists():
        raise DataError(f"{folder} exists; name a new folder, or remove it")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        np.save(draft / IMAGES, dataset.images_NHWC.numpy())
        np.save(draft / LABELS, dataset.labels.numpy())
        about = {"name": dataset.name, "classes": list(dataset.classes), "content_hash": dataset.content_hash}
        (draft / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        draft.rename(folder)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror}; check the disk") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def open_memmap(folder: Path) -> Dataset:
    """Returns the data set that `write_memmap` wrote; its images stay on the disk until they are read.

    Raises:
        DataError: if it is missing or damaged.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        # Copy on write: torch wants memory that it might write to, and the file stays as it is.
        images, labels = np.load(folder / IMAGES, mmap_mode="c"), np.load(folder / LABELS)
        name, classes, content_hash = about["name"], tuple(about["classes"]), about["content_hash"]
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(f"{folder} holds no data set of write_memmap ({error}); write it again") from None
    found = Dataset(name, torch.from_numpy(images), torch.from_numpy(labels), classes, content_hash)
    if not len(found) or int(labels.min()) < 0 or int(labels.max()) >= len(classes):
        raise DataError(f"{folder} has labels that name no class, or none at all; write it again")
    return found
