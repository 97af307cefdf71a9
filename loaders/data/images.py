"""Reader of images of one size for a generative network, from any of the supported forms.

Shape legend: N images, S edge.
"""

import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from wallclock.loaders.batches import DataError, Dataset, Split
from wallclock.loaders.data.cifar10 import load_cifar10
from wallclock.loaders.data.image_files import data_set_name, decode_middle, is_image
from wallclock.loaders.data.lsun import is_converted, is_lmdb, load_converted
from wallclock.loaders.data.synthetic import SYNTHETIC, synthetic_split

ENLARGED_TOGETHER = 2000


def load_images(data: str, image_size: int, *, only_class: str = "") -> Split:
    """Returns training images and held-out images, all of one size.

    Args:
        data: "synthetic" for the embedded set, or a path: a conversion of LSUN (`wallclock data convert`), CIFAR-10 in
            any form, or a folder of PNG or JPEG images at any depth, of which a tenth is held out.
        image_size: S in pixels.
        only_class: name of the one class to keep; empty for all.

    Raises:
        DataError: if there are no images, they are damaged, or the class is missing.
    """
    path = Path(data)
    if data == SYNTHETIC:
        split = synthetic_split()
    elif not path.exists():
        raise DataError(f"no such path: {path}; correct --data, or use --data synthetic")
    elif is_lmdb(path):
        raise DataError(
            f"{path} is an LMDB; convert it once with `wallclock data convert {path} --to FOLDER --size {image_size}`, "
            "then use --data FOLDER"
        )
    elif is_converted(path):
        split = load_converted(path)
    elif path.is_dir() and not _is_cifar10(path):
        split = _from_folder(path, image_size)
    else:
        split = load_cifar10(path)
    if only_class:
        split = Split(*(_of_class(part, only_class) for part in (split.train, split.test)))
    edge = split.train.images_NHWC.shape[1]
    if edge == image_size:
        return split
    if is_converted(path):
        raise DataError(f"{path} was converted to {edge} pixels; use --set image_size={edge}, or convert it again")
    return Split(*(_of_size(part, image_size) for part in (split.train, split.test)))


def _is_cifar10(path: Path) -> bool:
    batches = ("cifar-10-batches-py", "cifar-10-batches-bin", "data_batch_1", "data_batch_1.bin")
    archives = itertools.chain(path.glob("cifar-10-*.tar.gz"), path.rglob("*.parquet"))
    return any((path / name).exists() for name in batches) or any(True for _ in archives)


def _of_class(dataset: Dataset, name: str) -> Dataset:
    if name not in dataset.classes:
        raise DataError(f"{dataset.name} has no class '{name}'; classes: {', '.join(dataset.classes)}")
    (places,) = torch.nonzero(dataset.labels == dataset.classes.index(name), as_tuple=True)
    if not len(places):
        raise DataError(f"{dataset.name} has no images of '{name}' in one of its parts; choose another class")
    return dataset.subset(places)


def _of_size(dataset: Dataset, size: int) -> Dataset:
    digest = hashlib.sha256(f"{dataset.content_hash} at {size}".encode()).hexdigest()
    return Dataset(dataset.name, rescale(dataset.images_NHWC, size), dataset.labels, dataset.classes, digest)


def rescale(images_NHWC: torch.Tensor, size: int) -> torch.Tensor:
    """Scales images, uint8 [N, H, W, 3], to uint8 [N, size, size, 3] in pixels, on the same device.

    Bilinear, antialiased where they shrink, and rounded.
    """
    scaled = torch.empty(len(images_NHWC), size, size, 3, dtype=torch.uint8, device=images_NHWC.device)
    for start in range(0, len(images_NHWC), ENLARGED_TOGETHER):  # as float32 all at once would be four times the set
        part = images_NHWC[start : start + ENLARGED_TOGETHER].permute(0, 3, 1, 2).float()
        part = F.interpolate(part, size=(size, size), mode="bilinear", antialias=True)
        scaled[start : start + len(part)] = part.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1)
    return scaled


def _from_folder(path: Path, size: int) -> Split:
    """Reads all images below a folder; its immediate subfolders name the classes.

    Every tenth image, in the order of the paths, is held out.
    """
    files = sorted(filter(is_image, path.rglob("*")))
    if len(files) < 2:
        raise DataError(f"{path} holds {len(files)} images; expected PNG or JPEG files, at any depth")
    tops = [file.relative_to(path).parts[0] if file.parent != path else "images" for file in files]
    classes = tuple(sorted(set(tops)))
    try:
        with ThreadPoolExecutor(2) as pool:  # Pillow lets the lock go while it decodes
            pixels = pool.map(lambda file: decode_middle(file.read_bytes(), str(file), size), files)
            images = torch.from_numpy(np.stack(list(pixels)))
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}; restore or remove it") from None
    labels = torch.tensor([classes.index(top) for top in tops])
    held_out = torch.arange(len(files)) % 10 == 9 if len(files) >= 10 else torch.arange(len(files)) == len(files) - 1
    name = data_set_name("folder", path)
    parts = (Dataset.create(name, images[chosen], labels[chosen], classes) for chosen in (~held_out, held_out))
    return Split(*parts)
