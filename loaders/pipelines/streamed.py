"""The device pipeline for sets that its memory does not hold: batches are gathered on the host and copied ahead."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from wallclock.kernels.augment import Augmentation, augment, draw
from wallclock.loaders.batches import Dataset
from wallclock.loaders.pipelines.device import resized
from wallclock.loaders.pipelines.epochs import Epochs


class StreamedBatches:
    """Batches of augmented, normalised images, made on the device from a uint8 set in host memory or mapped from disk.

    A thread gathers the next batch into pinned memory while a side stream copies the one before and the device works on
    the one before that; the device augments it as it does a resident set. On a CPU nothing is copied or
    pinned: the thread only gathers ahead. Epochs are those of `DeviceBatches` on a CPU, image by image; across ranks
    each epoch shuffles anew.

    Args:
        dataset: on the CPU, such as from `open_memmap`.
        batch_size: images in a batch.
        device: where batches end up.
        dtype: of the images.
        seed: of order and augmentation.
        augmentation: None for none.
        shuffle: whether each epoch has its own order.
        drop_last: whether an incomplete last batch is dropped.
        rank: which of the ranks this is.
        world: how many there are.

    Raises:
        DataError: if the images are too small for the padding, or too few for one batch.
        ValueError: if a number is out of range.
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
        self.dataset, self._augmentation = resized(dataset, augmentation, None)
        self.batch_size, self.device, self.dtype, self.seed = batch_size, device, dtype, seed
        self.augmentation = augmentation
        self._epoch = self._step = 0
        self._on_gpu = device.type == "cuda"
        self._side = torch.cuda.Stream(device) if self._on_gpu else None

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return len(self.epochs.sizes())

    def set_epoch(self, epoch: int, step: int = 0) -> None:
        """Chooses the epoch that the next iteration yields, and the batch that it begins with."""
        self._epoch, self._step = epoch, step

    def order(self, epoch: int) -> list[torch.Tensor]:
        """Returns the samples of each batch of an epoch: int64 places in the whole set, on the CPU."""
        return list(self.epochs.cut(self.epochs.order(epoch)))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields images [N, 3, H, W] in channels-last memory, and labels int64 [N], both on the device."""
        augmentation = self._augmentation
        order = self.epochs.order(self._epoch)
        drawn = draw(augmentation, self.seed, self._epoch, order, *self.dataset.images_NHWC.shape[1:3])
        drawn = {name: values.to(self.device) for name, values in drawn.items()}
        labels = self.dataset.labels[order].to(self.device)
        parts = list(self.epochs.cut(torch.arange(len(order)), self._step))
        with ThreadPoolExecutor(1) as pool:
            ahead: Future[torch.Tensor] = pool.submit(self._gathered, order[parts[0]])
            for number, part in enumerate(parts):
                pixels = self._on_device(ahead.result())
                if number + 1 < len(parts):
                    ahead = pool.submit(self._gathered, order[parts[number + 1]])
                at = slice(int(part[0]), int(part[-1]) + 1)
                chosen = {name: values[at] for name, values in drawn.items()}
                images = augment(
                    pixels,
                    None,
                    **chosen,
                    cutout=augmentation.cutout,
                    padding=augmentation.padding,
                    dtype=self.dtype,
                )
                yield images, labels[at]

    def _gathered(self, places: torch.Tensor) -> torch.Tensor:
        """Gathers a batch into pinned memory; torch keeps that from being used again until it has been copied."""
        buffer = torch.empty(
            (len(places), *self.dataset.images_NHWC.shape[1:]), dtype=torch.uint8, pin_memory=self._on_gpu
        )
        return torch.index_select(self.dataset.images_NHWC, 0, places, out=buffer)

    def _on_device(self, pixels: torch.Tensor) -> torch.Tensor:
        """Copies a gathered batch on the side stream; the device's own stream waits for it, the host does not."""
        if self._side is None:
            return pixels
        with torch.cuda.stream(self._side):
            copy = pixels.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._side)
        copy.record_stream(current)
        return copy
