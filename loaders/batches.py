"""The data contract: what a data set is, what a pipeline yields, and which augmentation it declares.

Shape legend: N images, H, W height and width, C = 3 colour channels.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from wallclock.kernels.augment import Augmentation


class DataError(ValueError):
    """A data set is missing, damaged or not what it should be; the message names the next step."""


@dataclass(frozen=True)
class Dataset:
    """Labelled images, as stored.

    Attributes:
        name: what an accuracy on it may be called; "cifar10" only for the verified canonical set.
        images_NHWC: uint8 [N, H, W, 3].
        labels: int64 [N], each in [0, len(classes)).
        classes: the class names, in label order.
        content_hash: sha256 of shape, images and labels; two sets share it only when they are equal.

    Raises:
        DataError: if shapes, dtypes or labels are not as above.
    """

    name: str
    images_NHWC: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    content_hash: str

    def __post_init__(self) -> None:
        images, labels = self.images_NHWC, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(f"{self.name}: images are {images.dtype} {list(images.shape)}; expected uint8 [N, H, W, 3]")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"{self.name}: labels are {labels.dtype} {list(labels.shape)}; expected int64 [{len(images)}]"
            )

    @classmethod
    def create(cls, name: str, images_NHWC: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...]) -> "Dataset":
        """Returns the data set with its content hash, after checking that every label names a class.

        Args:
            name: see `Dataset`.
            images_NHWC: uint8 [N, H, W, 3] on the CPU.
            labels: int64 [N] on the CPU.
            classes: the class names.

        Raises:
            DataError: if it is empty or a label is out of range.
        """
        if len(images_NHWC) == 0:
            raise DataError(f"{name}: no images; point --data at a data set with some")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(classes):
            raise DataError(f"{name}: labels run from {low} to {high}; expected 0 to {len(classes) - 1}")
        digest = hashlib.sha256(repr(tuple(images_NHWC.shape)).encode())
        digest.update(images_NHWC.contiguous().numpy().data)
        digest.update(labels.contiguous().numpy().data)
        return cls(name, images_NHWC, labels, classes, digest.hexdigest())

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: torch.Tensor | slice) -> "Dataset":
        """Returns the images at `indices` (int64 [M], or a slice), under the hash of the whole set and its choice."""
        chosen = torch.arange(len(self))[indices]
        digest = hashlib.sha256(self.content_hash.encode() + chosen.numpy().tobytes()).hexdigest()
        at = chosen.to(self.labels.device)
        return Dataset(self.name, self.images_NHWC[at], self.labels[at], self.classes, digest)

    def to(self, device: torch.device) -> "Dataset":
        """Returns the same data set in the memory of `device`."""
        return Dataset(self.name, self.images_NHWC.to(device), self.labels.to(device), self.classes, self.content_hash)


def check_padding(augmentation: Augmentation, shape: Sequence[int]) -> None:
    """Refuses more padding than an image can be reflected by.

    Args:
        augmentation: whose padding.
        shape: height and width of the images, pixels.

    Raises:
        DataError: if it is too much.
    """
    if augmentation.pad >= min(shape):
        raise DataError(f"cannot reflect {augmentation.pad} pixels of an image of {min(shape)}; choose a smaller pad")


@dataclass(frozen=True)
class Split:
    """A training set and the set it is scored on."""

    train: Dataset
    test: Dataset

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.train.name

    @property
    def content_hash(self) -> str:
        """The sha256 of both sets' hashes: equal only when both are."""
        return hashlib.sha256((self.train.content_hash + self.test.content_hash).encode()).hexdigest()

    def tune(self, validation: int | None = None) -> "Split":
        """Returns a split of the training set alone, for tuning without looking at the test set.

        Args:
            validation: images held out; by default a tenth (5,000 of CIFAR-10's 50,000). Always the same ones.

        Raises:
            DataError: if nothing would be left on one side.
        """
        held_out = len(self.train) // 10 if validation is None else validation
        if not 0 < held_out < len(self.train):
            raise DataError(f"cannot hold out {held_out} of {len(self.train)} training images; use --split test")
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        return Split(self.train.subset(order[held_out:]), self.train.subset(order[:held_out]))


class Batches(Protocol):
    """A pipeline: batches of normalised images on the device, reproducible from seed and epoch."""

    batch_size: int
    seed: int
    augmentation: Augmentation | None

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""

    def set_epoch(self, epoch: int, step: int = 0) -> None:
        """Chooses the epoch that the next iteration yields, and the batch that it begins with."""

    def order(self, epoch: int) -> list[torch.Tensor]:
        """Returns the samples of each batch of an epoch: int64 places in the whole set, on the CPU."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields images [N, 3, H, W] in channels-last memory, and labels int64 [N], both on the device."""
