"""The data contract: data sets, their splits, and the options that every pipeline takes.

Shape legend: N images, H, W height and width, C = 3 colour channels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from wallclock.kernels.augment import Augmentation


class DataError(ValueError):
    """A data set is missing, damaged or not what it should be; the message names the next step."""


@dataclass(frozen=True)
class Dataset:
    """Labelled images in the form they are stored in.

    Attributes:
        name: the name under which accuracies are recorded; "cifar10" only for the verified canonical set.
        images_NHWC: images, uint8 [N, H, W, 3].
        labels: labels, int64 [N], each in [0, len(classes)).
        classes: names of the classes, in label order.
        content_hash: sha256 of shape, images and labels; two sets share it only when they are equal.

    Raises:
        DataError: if shapes or dtypes are not as above.
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
        """Returns the data set of these attributes, on the CPU, with its content hash; checks every label.

        Raises:
            DataError: if there are no images, or a label names no class.
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

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.images_NHWC.shape[1], self.images_NHWC.shape[2]

    def subset(self, indices: torch.Tensor | slice) -> "Dataset":
        """Returns the images at `indices` (int64 [M], or a slice), hashed by the whole set's hash and these indices."""
        chosen = torch.arange(len(self))[indices]
        digest = hashlib.sha256(self.content_hash.encode() + chosen.numpy().tobytes()).hexdigest()
        at = chosen.to(self.labels.device)
        return Dataset(self.name, self.images_NHWC[at], self.labels[at], self.classes, digest)

    def to(self, device: torch.device) -> "Dataset":
        """Returns the data set in the memory of `device`."""
        return Dataset(self.name, self.images_NHWC.to(device), self.labels.to(device), self.classes, self.content_hash)


def check_padding(augmentation: Augmentation, shape: Sequence[int]) -> None:
    """Refuses padding too wide to be filled by reflecting an image of this height and width, in pixels.

    Raises:
        DataError: if the padding is no narrower than the image.
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
        """The sha256 of the two sets' hashes: splits share it only when both of their sets are equal."""
        return hashlib.sha256((self.train.content_hash + self.test.content_hash).encode()).hexdigest()

    def tune(self, validation: int | None = None) -> "Split":
        """Returns a split of the training set alone, for tuning without looking at the test set.

        Args:
            validation: number of images held out, always the same; by default a tenth (5,000 of CIFAR-10's 50,000).

        Raises:
            DataError: if one side would be empty.
        """
        held_out = len(self.train) // 10 if validation is None else validation
        if not 0 < held_out < len(self.train):
            raise DataError(f"cannot hold out {held_out} of {len(self.train)} training images; use --split test")
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        return Split(self.train.subset(order[held_out:]), self.train.subset(order[:held_out]))


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Options of a pipeline: size, place, order and augmentation of its batches.

    Attributes:
        batch_size: number of images in a batch of one rank.
        device: device of the finished batches.
        augmentation: random changes to each image; None for none.
        dtype: type of the normalised images.
        seed: seed of order and augmentation, which also depend on the epoch.
        shuffle: whether each epoch has its own order.
        drop_last: whether an incomplete last batch is dropped; False yields it smaller, never padded.
        size: edge in pixels to which images in memory are scaled down once, beforehand, along with their padding; None
            leaves them as they are.
        implementation: code by which the pipeline `device` augments; both ways draw the same numbers.
        rank: number of this process among those that share the data set, from 0.
        world: number of processes that share the data set.
        workers: number of processes of `dataloader` and `webdataset`, or threads of `dali`; with 0 this process works.

    Raises:
        ValueError: if a number is out of range.
    """

    batch_size: int
    device: torch.device
    augmentation: Augmentation | None
    dtype: torch.dtype = torch.float32
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    size: int | None = None
    implementation: Literal["eager", "triton"] = "eager"
    rank: int = 0
    world: int = 1
    workers: int = 2

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("size", self.size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected a number above 0")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank is {self.rank} of {self.world}; expected one from 0 to {self.world - 1}")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; expected 0 or more")
