"""The device-resident pipeline: uint8 images live on the device, and every batch is made there without a host sync."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch.nn import functional as F

from kernels.augment import Augmentation, augment, augment_fused, draw
from loaders.batches import DataError, Dataset


def scaled(images_NHWC: torch.Tensor, size: int) -> torch.Tensor:
    """Returns the images scaled down to `size` x `size` pixels, antialiased and rounded.

    Args:
        images_NHWC: uint8 [N, H, W, 3].
        size: new height and width, pixels, not above the old.

    Returns:
        uint8 [N, size, size, 3].

    Raises:
        DataError: if the images are smaller.
    """
    if size > min(images_NHWC.shape[1:3]):
        raise DataError(f"cannot train on {size}-pixel images: they are stored with {min(images_NHWC.shape[1:3])}")
    parts = []
    for chunk in images_NHWC.split(5000):  # as float32, all of CIFAR-10 at once would take 600 MB
        x = F.interpolate(chunk.permute(0, 3, 1, 2).float(), size=(size, size), mode="bilinear", antialias=True)
        parts.append(x.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous())
    return torch.cat(parts)


class DeviceBatches:
    """Batches of augmented, normalised images, made on the device from a resident uint8 data set.

    What an image meets in an epoch depends on the seed, the epoch and its place in the data set, never on `batch_size`
    or on which epochs ran before.

    Args:
        dataset: on `device`.
        batch_size: images in a batch.
        device: where batches are made.
        dtype: of the images.
        seed: of order and augmentation.
        augmentation: None for none.
        shuffle: whether each epoch has its own order.
        drop_last: whether an incomplete last batch is dropped.
        size: scale the images down to this edge once, beforehand, and the padding with them; None keeps theirs.
        implementation: of the augmentation; either draws the same.

    Raises:
        DataError: if the images are smaller than `size` or than the padding allows, or too few for one batch.
        ValueError: if `batch_size` or `size` is not above 0.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        augmentation: Augmentation | None,
        shuffle: bool = True,
        drop_last: bool = False,
        size: int | None = None,
        implementation: Literal["eager", "triton"] = "eager",
    ) -> None:
        if batch_size < 1 or (size is not None and size < 1):
            raise ValueError(f"batch_size is {batch_size} and size {size}; expected numbers above 0")
        if drop_last and len(dataset) < batch_size:
            raise DataError(f"{len(dataset)} images do not fill one batch of {batch_size}; choose a smaller batch_size")
        edge = dataset.images_NHWC.shape[1]
        self.images_NHWC = dataset.images_NHWC if size is None else scaled(dataset.images_NHWC, size)
        self.labels = dataset.labels
        self.batch_size, self.device, self.dtype, self.seed = batch_size, device, dtype, seed
        self.augmentation, self.shuffle, self.drop_last = augmentation, shuffle, drop_last
        self.implementation = implementation
        self.pad = 0
        if augmentation is not None and augmentation.pad > 0:
            self.pad = max(1, round(augmentation.pad * (size or edge) / edge))
            smallest = min(self.images_NHWC.shape[1:3])
            if self.pad >= smallest:
                raise DataError(f"cannot reflect {self.pad} pixels of an image of {smallest}; choose a smaller pad")
        self._scaled_augmentation = replace(augmentation or Augmentation(flip="none"), pad=self.pad)
        self._epoch = 0

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        whole, rest = divmod(len(self.labels), self.batch_size)
        return whole if self.drop_last or rest == 0 else whole + 1

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration yields."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields images [N, 3, H, W] in channels-last memory, and labels int64 [N], both on the device."""
        count, epoch = len(self.labels), self._epoch
        order = torch.arange(count, device=self.device)
        if self.shuffle:
            # Seeding a generator on the device copies nothing from it.
            mixed = (self.seed * 0x9E3779B97F4A7C15 + epoch + 1) % 2**63
            random = torch.Generator(self.device).manual_seed(mixed)
            order = torch.randperm(count, generator=random, device=self.device)
        drawn = {}  # the whole epoch's at once: drawing takes some 300 small operations, however many they draw
        if self.implementation == "eager":
            places = torch.arange(count, device=self.device)
            drawn = draw(self._scaled_augmentation, self.seed, epoch, places, *self.images_NHWC.shape[1:3])
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            indices = order[start : start + self.batch_size]
            yield self._images(indices, drawn), self.labels[indices]

    def _images(self, indices: torch.Tensor, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
        augmentation = self._scaled_augmentation
        if self.implementation == "triton":
            return augment_fused(
                self.images_NHWC, indices, augmentation, seed=self.seed, epoch=self._epoch, dtype=self.dtype
            )
        chosen = {name: values[indices] for name, values in drawn.items()}
        return augment(self.images_NHWC, indices, **chosen, cutout=augmentation.cutout, dtype=self.dtype)
