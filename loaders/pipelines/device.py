"""The device-resident pipeline: uint8 images live on the device, and every batch is made there without a host sync."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch.nn import functional as F

from wallclock.kernels.augment import Augmentation, augment, augment_fused, draw
from wallclock.loaders.batches import DataError, Dataset, check_padding
from wallclock.loaders.pipelines.epochs import Epochs
from wallclock.loaders.pipelines.windows import Windows, one_thread


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


def resized(dataset: Dataset, augmentation: Augmentation | None, size: int | None) -> tuple[Dataset, Augmentation]:
    """Returns the data set scaled down to `size` x `size` pixels, and the augmentation scaled alike.

    Args:
        dataset: to scale.
        augmentation: None for none.
        size: new height and width, pixels; None keeps theirs.

    Raises:
        DataError: if the images are smaller than `size` or than the padding allows.
        ValueError: if `size` is not above 0.
    """
    if size is not None and size < 1:
        raise ValueError(f"size is {size}; expected a number above 0")
    augmentation = augmentation or Augmentation(pad=0, flip="none")
    if size is not None:
        edge = dataset.images_NHWC.shape[1]
        pad = max(1, round(augmentation.pad * size / edge)) if augmentation.pad else 0
        augmentation = replace(augmentation, pad=pad, cutout=round(augmentation.cutout * size / edge))
        dataset = replace(dataset, images_NHWC=scaled(dataset.images_NHWC, size))
    check_padding(augmentation, dataset.images_NHWC.shape[1:3])
    return dataset, augmentation


class DeviceBatches:
    """Batches of augmented, normalised images, made on the device from a resident uint8 data set.

    What an image meets in an epoch depends on the seed, the epoch and its place in the data set, never on `batch_size`
    or on which epochs ran before. Of several ranks each keeps its own samples, every `world`-th, in its memory, and
    shuffles and augments them under a seed of its own: see `Epochs.order_within`.

    Args:
        dataset: on `device`; with several ranks anywhere: only this rank's part is moved there.
        batch_size: images in a batch.
        device: where batches are made.
        dtype: of the images.
        seed: of order and augmentation.
        augmentation: None for none.
        shuffle: whether each epoch has its own order.
        drop_last: whether an incomplete last batch is dropped.
        size: scale the images down to this edge once, beforehand, and the padding with them; None keeps theirs.
        implementation: of the augmentation; either draws the same.
        rank: which of the ranks this is.
        world: how many there are.

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
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.epochs = Epochs(
            count=len(dataset),
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world=world,
        )
        if world > 1:
            dataset = dataset.subset(slice(rank, None, world)).to(device)
        dataset, self._augmentation = resized(dataset, augmentation, size)
        self.images_NHWC, self.labels = dataset.images_NHWC, dataset.labels
        self.batch_size, self.device, self.dtype, self.seed = batch_size, device, dtype, seed
        self.augmentation, self.implementation, self.pad = augmentation, implementation, self._augmentation.pad
        self._windows = None
        if device.type == "cpu" and implementation == "eager" and (self.pad or self._augmentation.flip != "none"):
            self._windows = Windows(self.images_NHWC, self.pad, self._augmentation.padding)
        self._epoch = self._step = 0

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return len(self.epochs.sizes())

    def set_epoch(self, epoch: int, step: int = 0) -> None:
        """Chooses the epoch that the next iteration yields, and the batch that it begins with."""
        self._epoch, self._step = epoch, step

    def order(self, epoch: int) -> list[torch.Tensor]:
        """Returns the samples of each batch of an epoch: int64 places in the whole set, on the CPU."""
        within = self.epochs.order_within(epoch, self.device).cpu()
        return list(self.epochs.cut(within * self.epochs.world + self.epochs.rank))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields images [N, 3, H, W] in channels-last memory, and labels int64 [N], both on the device."""
        order = self.epochs.order_within(self._epoch, self.device)
        for images, labels, _ in self.of(self.epochs.cut(order, self._step)):
            yield images, labels

    def of(self, batches: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yields images and labels as `__iter__`, with their indices, of chosen samples of the epoch.

        Args:
            batches: int64 places among this rank's samples, on the device.
        """
        epoch, drawn = self._epoch, {}
        # The whole epoch's at once: drawing takes some 300 small operations, however many they draw.
        if self.implementation == "eager":
            places = torch.arange(self.epochs.own, device=self.device)
            drawn = draw(self._augmentation, self.epochs.rank_seed, epoch, places, *self.images_NHWC.shape[1:3])
        for indices in batches:
            yield self._images(indices, drawn, epoch), self.labels[indices], indices

    def _images(self, indices: torch.Tensor, drawn: dict[str, torch.Tensor], epoch: int) -> torch.Tensor:
        augmentation = self._augmentation
        if self.implementation == "triton":
            return augment_fused(
                self.images_NHWC, indices, augmentation, seed=self.epochs.rank_seed, epoch=epoch, dtype=self.dtype
            )
        chosen: dict[str, Any] = {name: values[indices] for name, values in drawn.items()}
        told = chosen | {"cutout": augmentation.cutout, "padding": augmentation.padding, "dtype": self.dtype}
        if self._windows is None:
            return augment(self.images_NHWC, indices, **told)
        with one_thread():
            crops = self._windows.crop(indices, told.pop("offsets", None), told.pop("flips", None))
            return augment(crops, None, **told)
