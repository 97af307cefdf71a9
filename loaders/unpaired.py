"""Two domains of images that are not pairs: folders as CycleGAN's data sets have them, and an embedded pair of domains.

Shape legend: N images, L edge that they are stored with, S edge of a crop.
"""

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from loaders.batches import DataError
from loaders.shuffled import unit_range

SYNTHETIC = "synthetic"
DOMAINS = ("A", "B")
PARTS = ("train", "test")
SYNTHETIC_COUNTS = {"train": 400, "test": 50}


@dataclass(frozen=True)
class Unpaired:
    """Two domains, decoded.

    Attributes:
        name: of the data set, for records.
        train: uint8 [N, L, L, 3] of each domain.
        test: uint8 [N, S, S, 3] of each domain.
        skipped: a line for each file that could not be read.
        content_hash: sha256 of all pixels.
    """

    name: str
    train: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]
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
        return _unpaired(SYNTHETIC, parts, [])
    path = Path(data)
    missing = [f"{part}{domain}" for part in PARTS for domain in DOMAINS if not (path / f"{part}{domain}").is_dir()]
    if missing:
        raise DataError(
            f"{path} has no folder {', '.join(missing)}; expected trainA, trainB, testA and testB with images, or use "
            "--data synthetic, or get a set with `wallclock data fetch horse2zebra`"
        )
    parts, skipped = {}, []
    for part in PARTS:
        for domain in DOMAINS:
            parts[f"{part}{domain}"], damaged = _folder(
                path / f"{part}{domain}", load_size if part == "train" else image_size
            )
            skipped += damaged
    name = "unpaired:" + (re.sub(r"[^\w.-]+", "-", path.resolve().name) or "images")
    return _unpaired(name, parts, skipped)


def _unpaired(name: str, parts: dict[str, torch.Tensor], skipped: list[str]) -> Unpaired:
    digest = hashlib.sha256()
    for part, images in sorted(parts.items()):
        digest.update(f"{part} {tuple(images.shape)}".encode())
        digest.update(images.numpy().data)
    train, test = ((parts[f"{part}A"], parts[f"{part}B"]) for part in PARTS)
    return Unpaired(name, train, test, tuple(skipped), digest.hexdigest())


def decoded(file: Path, size: int) -> npt.NDArray[np.uint8]:
    """Returns an image as squares of pixels, uint8 [size, size, 3]; grey, palette and CMYK images become RGB.

    Args:
        file: in any format that Pillow reads.
        size: of the result, pixels; the aspect is not kept, as in the published code.

    Raises:
        DataError: if it is damaged or no image; names it.
    """
    try:
        with Image.open(file) as image:
            return np.array(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} cannot be read as an image ({error})") from None


def _folder(folder: Path, size: int) -> tuple[torch.Tensor, list[str]]:
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))

    def read(file: Path) -> npt.NDArray[np.uint8] | str:
        try:
            return decoded(file, size)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:  # Pillow lets the lock go while it decodes
        read_files = list(pool.map(read, files))
    images = [found for found in read_files if not isinstance(found, str)]
    damaged = [found for found in read_files if isinstance(found, str)]
    if not images:
        first = f"; {damaged[0]}" if damaged else ""
        raise DataError(f"{folder} holds {len(files)} files and no image that can be read{first}; put some there")
    return torch.from_numpy(np.stack(images)), damaged


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
    published code. What a batch holds depends on the seed, the epoch and its number only.

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
        domains: tuple[torch.Tensor, torch.Tensor],
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
        self.domains = [images.to(device) if resident else images for images in domains]
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
        a, b = (
            self._crops(images, places[of_batch], corners[of_batch], flips[of_batch])
            for images, (places, corners, flips) in zip(self.domains, self._drawn, strict=True)
        )
        return a, b

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
        self, images_NHWC: torch.Tensor, places: list[int], corners: list[list[int]], flips: list[bool]
    ) -> torch.Tensor:
        size, crops = self.image_size, []
        for place, (y, x), flip in zip(places, corners, flips, strict=True):
            crop = images_NHWC[place, y : y + size, x : x + size]
            crops.append(crop.flip(1) if flip else crop)
        pixels_NHWC = torch.stack(crops)
        if self.device.type == "cuda" and not pixels_NHWC.is_cuda:
            pixels_NHWC = pixels_NHWC.pin_memory()
        return unit_range(pixels_NHWC.to(self.device, non_blocking=True)).contiguous(memory_format=self.memory_format)
