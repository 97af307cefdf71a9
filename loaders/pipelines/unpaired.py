"""Two domains of images that are not pairs: folders as CycleGAN's data sets have them, and an embedded pair of domains.

Shape legend: N images, L edge that they are stored with, S edge of a crop.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import torch

from wallclock.loaders.batches import DataError
from wallclock.loaders.data.file_images import DomainImages, FileImages, decoded
from wallclock.loaders.pipelines.shuffled import unit_range

SYNTHETIC = "synthetic"
DOMAINS = ("A", "B")
PARTS = ("train", "test")
THREADS = max(2, len(os.sched_getaffinity(0)))  # that decode
AHEAD = 3  # batches that are being decoded while one is worked on
HELD_SHARE = 0.5  # of the free memory that decoded images may take
SYNTHETIC_COUNTS = {"train": 400, "test": 50}


@dataclass(frozen=True)
class Unpaired:
    """Two domains, decoded, or left in their files where half of the free memory does not hold them.

    Attributes:
        name: of the data set, for records.
        train: uint8 [N, L, L, 3] of each domain.
        test: uint8 [N, S, S, 3] of each domain.
        skipped: a line for each file that could not be read.
        content_hash: over all pixels, wherever they are.
    """

    name: str
    train: tuple[DomainImages, DomainImages]
    test: tuple[DomainImages, DomainImages]
    skipped: tuple[str, ...]
    content_hash: str


def load_unpaired(data: str, load_size: int, image_size: int) -> Unpaired:
    """Returns the domains at a path, images scaled to squares as the published code scales them.

    Args:
        data: "synthetic" for the embedded domains; or a folder that holds `trainA`, `trainB`, `testA` and `testB`, in
            any format that Pillow reads. A file that it cannot read is skipped, and named in the result.
        load_size: L, of training images, pixels.
        image_size: S, of test images, pixels.

    Raises:
        DataError: if a folder is missing, or holds no image that can be read.
    """
    if data == SYNTHETIC:
        parts = {
            f"{part}{domain}": synthetic_domain(domain, part, load_size if part == "train" else image_size)
            for part in PARTS
            for domain in DOMAINS
        }
        digests = {part: hashlib.sha256(images.numpy().data).digest() for part, images in parts.items()}
        return _unpaired(SYNTHETIC, {**parts}, [], digests)
    path = Path(data)
    missing = [f"{part}{domain}" for part in PARTS for domain in DOMAINS if not (path / f"{part}{domain}").is_dir()]
    if missing:
        raise DataError(
            f"{path} has no folder {', '.join(missing)}; expected trainA, trainB, testA and testB with images, or use "
            "--data synthetic, or get a set with `wallclock data fetch horse2zebra`"
        )
    sizes = {f"{part}{domain}": load_size if part == "train" else image_size for part in PARTS for domain in DOMAINS}
    needed = sum(len(_files(path / name)) * size * size * 3 for name, size in sizes.items())
    keep = needed <= HELD_SHARE * psutil.virtual_memory().available
    loaded = {name: _folder(path / name, size, keep=keep) for name, size in sizes.items()}
    skipped = [line for _, damaged, _ in loaded.values() for line in damaged]
    name = "unpaired:" + (re.sub(r"[^\w.-]+", "-", path.resolve().name) or "images")
    digests = {part: digest for part, (_, _, digest) in loaded.items()}
    return _unpaired(name, {part: images for part, (images, _, _) in loaded.items()}, skipped, digests)


def _unpaired(name: str, parts: dict[str, DomainImages], skipped: list[str], digests: dict[str, bytes]) -> Unpaired:
    digest = hashlib.sha256()
    for part, images in sorted(parts.items()):
        digest.update(f"{part} {tuple(images.shape)}".encode() + digests[part])
    train, test = ((parts[f"{part}A"], parts[f"{part}B"]) for part in PARTS)
    return Unpaired(name, train, test, tuple(skipped), digest.hexdigest())


def _folder(folder: Path, size: int, *, keep: bool) -> tuple[DomainImages, list[str], bytes]:
    """The images of a folder that can be read, a line for each file that cannot, and a digest of the pixels.

    Each file is decoded once, whether the pixels are kept or not: what is damaged has to be known before an epoch is.
    """
    files = _files(folder)

    def read(file: Path) -> tuple[Path, npt.NDArray[np.uint8] | None, bytes] | str:
        try:
            pixels = decoded(file, size)
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
    """Returns images of one of two domains that differ in the texture of a shape: plain, or striped.

    Args:
        domain: "A" or "B".
        part: "train" or "test".
        size: edge, pixels.

    Returns:
        uint8 [N, size, size, 3], the same in every process.
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


class UnpairedBatches:
    """Batches of both domains, each image cropped and flipped.

    A comes in a random order, over and over if it is the shorter one, with images of B drawn at random, as in the
    published code. What a batch holds depends on the seed, the epoch and its number only. Images in files are decoded
    by threads, some batches ahead.

    Args:
        domains: uint8 [N, L, L, 3] each.
        batch_size: images of each domain.
        image_size: S.
        device: where batches are made.
        seed: of order, pairing, crops and flips.
        channels_last: memory format of a batch.
        resident: keep the images in the device's memory; else each batch is copied there.

    Raises:
        DataError: if there are fewer images than one batch holds.
    """

    def __init__(
        self,
        domains: tuple[DomainImages, DomainImages],
        batch_size: int,
        *,
        image_size: int,
        device: torch.device,
        seed: int = 0,
        channels_last: bool = False,
        resident: bool = True,
    ) -> None:
        self.longest = max(map(len, domains))
        if self.longest < batch_size:
            raise DataError(
                f"the longer domain has {self.longest} images, which do not fill one batch of {batch_size}; use "
                f"--set batch_size={self.longest} or more data"
            )
        self.domains = [
            images.to(device) if resident and isinstance(images, torch.Tensor) else images for images in domains
        ]
        streamed = any(isinstance(images, FileImages) for images in domains)
        self._pool = ThreadPoolExecutor(THREADS, "decoder") if streamed else None
        self._ahead: dict[tuple[int, int], list[list[Future[torch.Tensor]] | None]] = {}
        self.batch_size, self.image_size, self.device, self.seed = batch_size, image_size, device, seed
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._drawn_epoch = -1

    def __len__(self) -> int:
        """Returns the number of whole batches in an epoch, as long as the longer domain."""
        return self.longest // self.batch_size

    def epoch(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields an epoch's batches; see `images`."""
        return (self.images(epoch, index) for index in range(len(self)))

    def images(self, epoch: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns batch `index` of an epoch: of each domain float32 [B, 3, S, S] in [-1, 1] on the device."""
        self._draw(epoch)
        of_batch = slice(index * self.batch_size, (index + 1) * self.batch_size)
        decoding = self._decoding(epoch, index)
        a, b = (
            self._crops(images, places[of_batch], corners[of_batch], flips[of_batch], wholes)
            for images, (places, corners, flips), wholes in zip(self.domains, self._drawn, decoding, strict=True)
        )
        return a, b

    def _decoding(self, epoch: int, index: int) -> list[list[Future[torch.Tensor]] | None]:
        """The images of a batch that are in files, on their way; begins with those of the next batches too."""
        if self._pool is None:
            return [None, None]
        for ahead in range(index, min(index + 1 + AHEAD, len(self))):
            if (epoch, ahead) not in self._ahead:
                of_batch = slice(ahead * self.batch_size, (ahead + 1) * self.batch_size)
                self._ahead[epoch, ahead] = [
                    [self._pool.submit(images.__getitem__, place) for place in places[of_batch]]
                    if isinstance(images, FileImages)
                    else None
                    for images, (places, _, _) in zip(self.domains, self._drawn, strict=True)
                ]
        wanted = self._ahead.pop((epoch, index))
        self._ahead = {key: value for key, value in self._ahead.items() if key[0] == epoch}  # after a resume elsewhere
        return wanted

    def _draw(self, epoch: int) -> None:
        """Draws all of an epoch, on the host: what is chosen there needs no word from the device."""
        if epoch == self._drawn_epoch:
            return
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(self.longest)
        self._drawn = []
        for domain, images in zip(DOMAINS, self.domains, strict=True):
            count, room = len(images), images.shape[1] - self.image_size + 1
            places = order % count if domain == "A" else random.integers(0, count, self.longest)
            corners, flips = random.integers(0, room, (self.longest, 2)), random.random(self.longest) < 0.5
            self._drawn.append((places.tolist(), corners.tolist(), flips.tolist()))
        self._drawn_epoch = epoch

    def _crops(
        self,
        images_NHWC: DomainImages,
        places: list[int],
        corners: list[list[int]],
        flips: list[bool],
        wholes: list[Future[torch.Tensor]] | None,
    ) -> torch.Tensor:
        size, crops = self.image_size, []
        for number, (place, (y, x), flip) in enumerate(zip(places, corners, flips, strict=True)):
            if wholes is None:
                crop = images_NHWC[place, y : y + size, x : x + size]
            else:
                crop = wholes[number].result()[y : y + size, x : x + size]
            crops.append(crop.flip(1) if flip else crop)
        pixels_NHWC = torch.stack(crops)
        if self.device.type == "cuda" and not pixels_NHWC.is_cuda:
            pixels_NHWC = pixels_NHWC.pin_memory()
        return unit_range(pixels_NHWC.to(self.device, non_blocking=True)).contiguous(memory_format=self.memory_format)
