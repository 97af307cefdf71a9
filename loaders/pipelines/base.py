"""Base classes of all pipelines: they choose an epoch, and augment a batch on the device.

Shape legend: N images in a batch, M in the data set, H, W height and width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from wallclock.kernels.augment import Augmentation, augment
from wallclock.loaders.batches import BatchOptions, DataError, Dataset, check_padding
from wallclock.loaders.data.images import rescale
from wallclock.loaders.data.stored import StoredImages
from wallclock.loaders.pipelines.epochs import Epochs

NO_AUGMENTATION = Augmentation(pad=0, flip="none")


class Batches(ABC):
    """A pipeline: batches of normalised images on the device, reproducible from seed and epoch.

    Its `augmentation` has the random changes to each image in pixels of the scaled images.
    """

    def __init__(self, options: BatchOptions) -> None:
        self.options = options
        self.augmentation = options.augmentation or NO_AUGMENTATION
        self._epoch = 0

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of batches in an epoch, the same on every rank."""

    @abstractmethod
    def order(self, epoch: int) -> list[torch.Tensor]:
        """Returns the samples of each batch of an epoch: int64 indices into the whole set, on the CPU."""

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields images [N, 3, H, W] in channels-last memory, and labels int64 [N], both on the device."""

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration yields."""
        self._epoch = epoch

    def _on_device(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self.options.device, non_blocking=True)

    def _augment(
        self, images_MHWC: torch.Tensor, drawn: dict[str, torch.Tensor], indices: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Augments and normalises images on the device, and returns them, [N, 3, H, W].

        Args:
            images_MHWC: images, uint8 [M, H, W, 3], on any device.
            drawn: numbers of `kernels.augment.draw` for each image of the batch, on any device.
            indices: numbers of the batch's images in `images_MHWC`, int64 [N]; None for all in order.
        """
        numbers: dict[str, Any] = {name: self._on_device(values) for name, values in drawn.items()}
        numbers |= {"cutout": self.augmentation.cutout, "padding": self.augmentation.padding}
        return augment(self._on_device(images_MHWC), indices, dtype=self.options.dtype, **numbers)


class IndexedBatches(Batches):
    """A pipeline over samples that can be read in any order.

    Args:
        data: the images that this process reads, in memory or encoded.
        options: size, place, order and augmentation of the batches.
        count: number of samples of all ranks together; None where each rank reads the whole set.

    Raises:
        DataError: if the images are smaller than `options.size` or than the padding allows, or too few for one batch.
    """

    data: Dataset | StoredImages

    def __init__(self, data: Dataset | StoredImages, options: BatchOptions, count: int | None = None) -> None:
        super().__init__(options)
        self.epochs = Epochs(len(data) if count is None else count, options)
        if isinstance(data, Dataset):
            self.data, self.augmentation = scale_down(data, options.augmentation, options.size)
            return
        if options.size is not None:
            raise DataError(
                f"encoded images are not scaled to {options.size} pixels; decode them first: StoredImages.dataset"
            )
        check_padding(self.augmentation, data.shape)
        self.data = data

    def __len__(self) -> int:
        return len(self.epochs.sizes())

    def order(self, epoch: int) -> list[torch.Tensor]:
        """Returns the samples of each batch of an epoch: int64 indices into the whole set, on the CPU."""
        return list(self.epochs.cut(self.epochs.order(epoch)))


def scale_down(dataset: Dataset, augmentation: Augmentation | None, size: int | None) -> tuple[Dataset, Augmentation]:
    """Scales images on any device down to `size` x `size` pixels, antialiased and rounded, and the augmentation alike.

    The augmentation is given in pixels of the unscaled images. A size of None leaves both as they are.

    Raises:
        DataError: if the images are smaller than `size` or than the padding allows.
    """
    augmentation = augmentation or NO_AUGMENTATION
    if size is not None:
        if size > min(dataset.shape):
            raise DataError(f"cannot train on {size}-pixel images: they are stored with {min(dataset.shape)}")
        edge = dataset.shape[0]
        pad = max(1, round(augmentation.pad * size / edge)) if augmentation.pad else 0
        augmentation = replace(augmentation, pad=pad, cutout=round(augmentation.cutout * size / edge))
        dataset = replace(dataset, images_NHWC=rescale(dataset.images_NHWC, size))
    check_padding(augmentation, dataset.shape)
    return dataset, augmentation
