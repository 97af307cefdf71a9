"""Batches of two unpaired domains of images: each image is cropped and flipped, as CycleGAN is trained.

Shape legend: N images of a domain, L edge of the stored images, B images in a batch, S edge of a crop; pixels.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from wallclock.loaders.batches import DataError
from wallclock.loaders.data.image_files import FileImages
from wallclock.loaders.data.unpaired import DOMAINS, THREADS, DomainImages
from wallclock.loaders.pipelines.shuffled import copy_in_unit_range

AHEAD = 3  # batches that are decoded while another is worked on


class UnpairedBatches:
    """Batches of both domains, each image cropped and flipped.

    Domain A comes in a random order, repeated if it is the shorter one, with images of B drawn at random, as in the
    published code. A batch depends on the seed, the epoch and its number only. Images in files are decoded
    by threads, some batches ahead.

    Args:
        domains: images of both domains, uint8 [N, L, L, 3] each.
        batch_size: B, number of images of each domain.
        image_size: S in pixels.
        device: as of `ShuffledBatches`, like `channels_last` and `resident`.
        seed: seed of order, pairing, crops and flips, which also depend on the epoch.

    Raises:
        DataError: if the longer domain has fewer images than one batch holds.
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
        """Returns the number of whole batches in an epoch, which is one pass over the longer domain."""
        return self.longest // self.batch_size

    def epoch(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields the batches of an epoch in order; see `images`."""
        return (self.images(epoch, index) for index in range(len(self)))

    def images(self, epoch: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns batch `index` of an epoch: for each domain, float32 [B, 3, S, S] in [-1, 1] on the device."""
        self._draw(epoch)
        of_batch = slice(index * self.batch_size, (index + 1) * self.batch_size)
        decoding = self._begin_decoding(epoch, index)
        a, b = (
            self._crop(images, places[of_batch], corners[of_batch], flips[of_batch], wholes)
            for images, (places, corners, flips), wholes in zip(self.domains, self._drawn, decoding, strict=True)
        )
        return a, b

    def _begin_decoding(self, epoch: int, index: int) -> list[list[Future[torch.Tensor]] | None]:
        """Returns the images of a batch that are being decoded from files, and starts decoding the next batches."""
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
        """Draws a whole epoch's numbers on the host, so that choosing images never waits for the device."""
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

    def _crop(
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
        return copy_in_unit_range(torch.stack(crops), self.device, self.memory_format)
