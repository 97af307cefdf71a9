"""The pipeline `dataloader`: torchvision's transforms in torch's DataLoader, as a user tunes them.

What is tuned: worker processes that stay, each with one thread; a worker makes a whole batch at a time, so that it is
handed over once; batches travel as uint8 (a quarter of float32), are pinned where there is a GPU, and are normalised
there all at once. Crop and flip are drawn for each sample: a batched transform draws once for all.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from wallclock.kernels.augment import Augmentation, augment, draw
from wallclock.loaders.batches import DataError, Dataset
from wallclock.loaders.data.stored import Damaged, StoredImages, check_policy
from wallclock.loaders.pipelines.device import resized
from wallclock.loaders.pipelines.epochs import Epochs
from wallclock.loaders.pipelines.workers import deaths_named, forked

PREFETCH = 4  # batches of each worker
# A sample's place, rows and columns by which its crop lies off it, and whether it is mirrored.
Drawn = tuple[int, int, int, bool]


class _Samples(TorchDataset[Any]):
    """Cropped and flipped samples, a batch at a time: uint8 [n, 3, H, W], the places kept, and why others were not."""

    def __init__(self, data: Dataset | StoredImages, augmentation: Augmentation, damaged: Damaged) -> None:
        self.data, self.damaged, self.pad = data, damaged, augmentation.pad
        self.mode = "reflect" if augmentation.padding == "reflect" else "constant"
        from torchvision.transforms.v2 import functional  # here, because no other pipeline needs it

        self._functional = functional

    def __getitem__(self, batch: list[Drawn]) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        images, kept, left_out = [], [], []
        for number, (place, row, column, flip) in enumerate(batch):
            if isinstance(self.data, Dataset):
                image = self.data.images_NHWC[place]
            else:
                try:
                    image = torch.from_numpy(self.data.decode(place).copy())
                except DataError as error:
                    left_out.append(str(error))
                    continue
            kept.append(number)
            images.append(self._transformed(image.permute(2, 0, 1), row, column, flip))
        shape = self.data.images_NHWC.shape[1:3] if isinstance(self.data, Dataset) else self.data.shape
        pixels = torch.stack(images) if images else torch.zeros(0, 3, *shape, dtype=torch.uint8)
        return pixels, torch.tensor(kept, dtype=torch.int64), left_out

    def _transformed(self, image_CHW: torch.Tensor, row: int, column: int, flip: bool) -> torch.Tensor:
        if self.pad:
            height, width = image_CHW.shape[1:]
            image_CHW = self._functional.pad(image_CHW, [self.pad], padding_mode=self.mode)
            image_CHW = self._functional.crop(image_CHW, self.pad + row, self.pad + column, height, width)
        return self._functional.horizontal_flip(image_CHW) if flip else image_CHW


class _Batches:
    """What the loader asks the workers for: the samples of each batch, with what is drawn for them."""

    def __init__(self, epochs: Epochs, augmentation: Augmentation, height: int, width: int) -> None:
        self.epochs, self.augmentation, self.shape = epochs, augmentation, (height, width)
        self.epoch = self.step = 0
        self._kept: tuple[int, torch.Tensor, dict[str, torch.Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.epochs.sizes())

    def drawn(self, epoch: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns the order of an epoch, and what is drawn for each sample in that order."""
        if self._kept is None or self._kept[0] != epoch:
            order = self.epochs.order(epoch)
            self._kept = epoch, order, draw(self.augmentation, self.epochs.seed, epoch, order, *self.shape)
        return self._kept[1:]

    def __iter__(self) -> Iterator[list[Drawn]]:
        order, drawn = self.drawn(self.epoch)
        offsets = drawn.get("offsets", torch.zeros(len(order), 2, dtype=torch.int64))
        flips = drawn.get("flips", torch.zeros(len(order), dtype=torch.bool))
        for at in self.epochs.cut(torch.arange(len(order)), self.step):
            rows, columns = offsets[at].unbind(1)
            yield list(zip(order[at].tolist(), rows.tolist(), columns.tolist(), flips[at].tolist(), strict=True))


class DataLoaderBatches:
    """Batches of augmented, normalised images from worker processes.

    Args:
        data: in memory, or encoded: then a worker decodes what it is asked for.
        batch_size: images in a batch.
        device: where batches end up.
        dtype: of the images.
        seed: of order and augmentation.
        augmentation: None for none.
        shuffle: whether each epoch has its own order.
        drop_last: whether an incomplete last batch is dropped.
        size: scale the images in memory down to this edge once, beforehand, and the padding with them.
        rank: which of the ranks this is.
        world: how many there are; each epoch shuffles across all of them.
        workers: processes; 0 works in this one.
        damaged: what happens to images that cannot be decoded; a batch that had some is smaller.

    Attributes:
        skipped: why each image that was left out was, since the beginning.

    Raises:
        DataError: if the images are too small or too few.
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        data: Dataset | StoredImages,
        batch_size: int,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        augmentation: Augmentation | None,
        shuffle: bool = True,
        drop_last: bool = False,
        size: int | None = None,
        rank: int = 0,
        world: int = 1,
        workers: int = 2,
        damaged: Damaged = "raise",
    ) -> None:
        check_policy(damaged)
        if workers < 0:
            raise ValueError(f"workers is {workers}; expected 0 or more")
        self.epochs = Epochs(
            count=len(data),
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world=world,
        )
        self.augmentation, self._augmentation = augmentation, augmentation or Augmentation(pad=0, flip="none")
        if isinstance(data, Dataset):
            data, self._augmentation = resized(data, augmentation, size)
            shape = (data.images_NHWC.shape[1], data.images_NHWC.shape[2])
        else:
            shape = data.checked_shape(self._augmentation, size)
        self.labels, self.damaged = data.labels, damaged
        self.batch_size, self.device, self.dtype, self.seed = batch_size, device, dtype, seed
        self.workers, self.skipped = workers, list[str]()
        self._forked = False  # the workers stay
        self._batches = _Batches(self.epochs, self._augmentation, *shape)
        self._loader: DataLoader[Any] = DataLoader(
            _Samples(data, self._augmentation, damaged),
            sampler=self._batches,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            multiprocessing_context="fork" if workers else None,
        )

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return len(self._batches)

    def set_epoch(self, epoch: int, step: int = 0) -> None:
        """Chooses the epoch that the next iteration yields, and the batch that it begins with."""
        self._batches.epoch, self._batches.step = epoch, step

    def order(self, epoch: int) -> list[torch.Tensor]:
        """Returns the samples of each batch of an epoch: int64 places in the whole set, on the CPU."""
        return list(self.epochs.cut(self.epochs.order(epoch)))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields images [N, 3, H, W] in channels-last memory, and labels int64 [N], both on the device."""
        order, drawn = self._batches.drawn(self._batches.epoch)
        places = self.epochs.cut(torch.arange(len(order)), self._batches.step)
        with deaths_named("dataloader"):
            parts = forked(self._loader) if self.workers and not self._forked else iter(self._loader)
            self._forked = True
            for at, (pixels, kept, left_out) in zip(places, parts, strict=True):
                if left_out and self.damaged == "raise":
                    raise DataError(left_out[0])
                self.skipped += left_out
                if not len(kept):
                    raise DataError(f"none of the images of a batch can be decoded; {left_out[0]}")
                at = at[kept]
                yield self._finished(pixels, at, drawn), self.labels[order[at]].to(self.device, non_blocking=True)

    def _finished(self, pixels: torch.Tensor, at: torch.Tensor, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
        """Jitters, normalises and cuts out a batch that is cropped and flipped."""
        rest = {name: values[at].to(self.device) for name, values in drawn.items() if name not in ("offsets", "flips")}
        images_NHWC = pixels.to(self.device, non_blocking=True).permute(0, 2, 3, 1).contiguous()
        augmentation = self._augmentation
        return augment(
            images_NHWC,
            None,
            **rest,
            cutout=augmentation.cutout,
            padding=augmentation.padding,
            dtype=self.dtype,
        )
