"""Two unpaired domains of images: folders in the form of CycleGAN's data sets, and an embedded pair of domains.

Shape legend: N images, L edge of training images, S edge of test images, both in pixels.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from wallclock.loaders.batches import DataError
from wallclock.loaders.data.image_files import FileImages, Pixels, data_set_name, decode_stretched
from wallclock.loaders.data.synthetic import SYNTHETIC

DomainImages = torch.Tensor | FileImages

DOMAINS = ("A", "B")
PARTS = ("train", "test")
THREADS = max(2, len(os.sched_getaffinity(0)))  # threads that decode
HELD_SHARE = 0.5  # share of the free memory that decoded images may take
SYNTHETIC_COUNTS = {"train": 400, "test": 50}


@dataclass(frozen=True)
class Unpaired:
    """Two domains of images, decoded in memory, or left in their files if they would take over half of the free memory.

    Attributes:
        name: name of the data set in records.
        train: training images of each domain, uint8 [N, L, L, 3].
        test: test images of each domain, uint8 [N, S, S, 3].
        skipped: message for each file that could not be read.
        content_hash: sha256 of all pixels, whether in memory or in files.
    """

    name: str
    train: tuple[DomainImages, DomainImages]
    test: tuple[DomainImages, DomainImages]
    skipped: tuple[str, ...]
    content_hash: str


def load_unpaired(data: str, load_size: int, image_size: int) -> Unpaired:
    """Returns the two domains at a path, with images scaled to squares as the published code scales them.

    Args:
        data: "synthetic" for the embedded domains, or a folder that holds `trainA`, `trainB`, `testA` and `testB`, in
            any format that Pillow reads. A file that cannot be read is skipped, and named in the result.
        load_size: L in pixels.
        image_size: S in pixels.

    Raises:
        DataError: if a folder is missing, or holds no image that can be read.
    """
    sizes = {f"{part}{domain}": load_size if part == "train" else image_size for part in PARTS for domain in DOMAINS}
    if data == SYNTHETIC:
        made = {part: synthetic_domain(part[-1], part[:-1], size) for part, size in sizes.items()}
        digests = {part: hashlib.sha256(images.numpy().data).digest() for part, images in made.items()}
        return _unpaired(SYNTHETIC, {**made}, [], digests)
    path = Path(data)
    missing = [part for part in sizes if not (path / part).is_dir()]
    if missing:
        raise DataError(
            f"{path} has no folder {', '.join(missing)}; expected trainA, trainB, testA and testB with images, or use "
            "--data synthetic, or get a set with `wallclock data fetch horse2zebra`"
        )
    needed = sum(len(_files(path / part)) * size * size * 3 for part, size in sizes.items())
    keep = needed <= HELD_SHARE * psutil.virtual_memory().available
    loaded = {part: _folder(path / part, size, keep=keep) for part, size in sizes.items()}
    skipped = [line for _, damaged, _ in loaded.values() for line in damaged]
    digests = {part: digest for part, (_, _, digest) in loaded.items()}
    parts = {part: images for part, (images, _, _) in loaded.items()}
    return _unpaired(data_set_name("unpaired", path), parts, skipped, digests)


def _unpaired(name: str, parts: dict[str, DomainImages], skipped: list[str], digests: dict[str, bytes]) -> Unpaired:
    digest = hashlib.sha256()
    for part, images in sorted(parts.items()):
        digest.update(f"{part} {tuple(images.shape)}".encode() + digests[part])
    train, test = ((parts[f"{part}A"], parts[f"{part}B"]) for part in PARTS)
    return Unpaired(name, train, test, tuple(skipped), digest.hexdigest())


def _folder(folder: Path, size: int, *, keep: bool) -> tuple[DomainImages, list[str], bytes]:
    """Returns a folder's readable images, a message for each unreadable file, and a digest of the pixels.

    Each file is decoded once, even if the pixels are not kept: the number of sound files sets the length of an epoch.
    """
    files = _files(folder)

    def read(file: Path) -> tuple[Path, Pixels | None, bytes] | str:
        try:
            pixels = decode_stretched(file, size)
        except DataError as error:
            return str(error)
        return file, pixels if keep else None, hashlib.sha256(pixels.data).digest()

    with ThreadPoolExecutor(THREADS) as pool:  # Pillow lets the lock go while it decodes
        found = list(pool.map(read, files))
    whole = [one for one in found if not isinstance(one, str)]
    damaged = [one for one in found if isinstance(one, str)]
    if not whole:
        first = f"; {damaged[0]}" if damaged else ""
        raise DataError(f"{folder} holds {len(files)} files and no image that can be read{first}; put some there")
    digest = hashlib.sha256(b"".join(one for _, _, one in whole)).digest()
    kept = [pixels for _, pixels, _ in whole if pixels is not None]
    if not keep:
        return FileImages([file for file, _, _ in whole], size), damaged, digest
    return torch.from_numpy(np.stack(kept)), damaged, digest


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))


def synthetic_domain(domain: str, part: str, size: int) -> torch.Tensor:
    """Returns images of one of two domains that differ in the texture of a shape: plain ("A") or striped ("B").

    Those of the `part`, "train" or "test", as uint8 [N, size, size, 3] in pixels, the same in every process.
    """
    count = SYNTHETIC_COUNTS[part]
    random = np.random.default_rng([ord(domain), ord(part[1])])
    row, column = np.mgrid[0:size, 0:size] / size
    images = np.empty((count, size, size, 3), np.uint8)
    for image in images:
        ground = random.uniform(0.2, 0.8, 3) * (0.7 + 0.3 * row[..., None])
        (y, x), (height, width) = random.uniform(0.35, 0.65, 2), random.uniform(0.2, 0.33, 2)
        square = random.random() < 0.5
        distance = np.maximum(abs(row - y) / height, abs(column - x) / width)
        round_ = ((row - y) / height) ** 2 + ((column - x) / width) ** 2
        inside = (distance if square else round_) < 1
        colour = np.array([0.75, 0.45, 0.2]) + random.uniform(-0.1, 0.1, 3)
        texture = np.broadcast_to(colour, (size, size, 3))
        if domain == "B":
            slant, phase = random.uniform(-0.5, 0.5), random.random()
            dark = ((row + slant * column) * 9 + phase) % 1 < 0.5
            texture = np.where(dark[..., None], 0.1, 0.95) * np.ones(3)
        pixels = np.where(inside[..., None], texture, ground) + random.normal(0, 0.02, (size, size, 3))
        image[:] = np.clip(255 * pixels, 0, 255)
    return torch.from_numpy(images)
