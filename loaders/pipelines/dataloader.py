"""The pipeline `dataloader`: torchvision's transforms in torch's DataLoader, tuned as a user would tune them.

The tuning: persistent worker processes of one thread each; a worker makes a whole batch at a time, which
is handed over once; batches travel as uint8 (a quarter of float32), are pinned where there is a GPU, and are normalised
there in one operation. Crop and flip are drawn for each sample: a batched transform draws once for the whole batch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset as TorchDataset

from wallclock.kernels.augment import Augmentation, draw
from wallclock.loaders.batches import BatchOptions, DataError, Dataset
from wallclock.loaders.data.stored import StoredImages
from wallclock.loaders.pipelines.base import IndexedBatches
from wallclock.loaders.pipelines.workers import WorkerLoader

# A sample's index, the rows and columns by which its crop is shifted, and whether it is mirrored.
Drawn = tuple[int, int, int, bool]


class _Samples(TorchDataset[Any]):
    """A data set whose items are whole batches of cropped and flipped samples.

    An item is uint8 [n, 3, H, W], or a text that says which image cannot be decoded.
    """

    def __init__(self, data: Dataset | StoredImages, augmentation: Augmentation) -> None:
        self.data, self.pad = data, augmentation.pad
        self.mode = "reflect" if augmentation.padding == "reflect" else "constant"
        from torchvision.transforms.v2 import functional  # here, because no other pipeline needs it

        self._functional = functional

    def __getitem__(self, batch: list[Drawn]) -> torch.Tensor | str:
        try:
            return torch.stack([self._sample(*drawn) for drawn in batch])
        except DataError as error:
            return str(error)

    def _sample(self, place: int, row: int, column: int, flip: bool) -> torch.Tensor:
        if isinstance(self.data, Dataset):
            image_CHW = self.data.images_NHWC[place].permute(2, 0, 1)
        else:
            image_CHW = torch.from_numpy(self.data.decode(place).copy()).permute(2, 0, 1)
        if self.pad:
            height, width = image_CHW.shape[1:]
            image_CHW = self._functional.pad(image_CHW, [self.pad], padding_mode=self.mode)
            image_CHW = self._functional.crop(image_CHW, self.pad + row, self.pad + column, height, width)
        return self._functional.horizontal_flip(image_CHW) if flip else image_CHW


class _Requests:
    """The requests for the workers: the samples of each batch, with the augmentation drawn for them."""

    coming: Iterator[list[Drawn]] = iter(())

    def __iter__(self) -> Iterator[list[Drawn]]:
        return self.coming


def _requests(
    order: torch.Tensor, drawn: dict[str, torch.Tensor], batches: Sequence[torch.Tensor]
) -> Iterator[list[Drawn]]:
    offsets = drawn.get("offsets", torch.zeros(len(order), 2, dtype=torch.int64))
    flips = drawn.get("flips", torch.zeros(len(order), dtype=torch.bool))
    for at in batches:
        rows, columns = offsets[at].unbind(1)
        yield list(zip(order[at].tolist(), rows.tolist(), columns.tolist(), flips[at].tolist(), strict=True))


class DataLoaderBatches(IndexedBatches):
    """Batches of augmented, normalised images from worker processes; each epoch shuffles across all ranks.

    The workers decode encoded images. Errors are those of `IndexedBatches`.
    """

    def __init__(self, data: Dataset | StoredImages, options: BatchOptions) -> None:
        super().__init__(data, options)
        self._requests = _Requests()
        self._loader = WorkerLoader(_Samples(self.data, self.augmentation), options, options.workers, self._requests)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = self.epochs.order(self._epoch)
        drawn = draw(self.augmentation, self.options.seed, self._epoch, order, *self.data.shape)
        batches = self.epochs.cut(torch.arange(len(order)))
        self._requests.coming = _requests(order, drawn, batches)
        # Crop and flip are done; jitter, normalisation and cutout remain.
        rest = {name: values for name, values in drawn.items() if name not in ("offsets", "flips")}
        for at, pixels in zip(batches, self._loader.whole("dataloader"), strict=True):
            images_NHWC = self._on_device(pixels).permute(0, 2, 3, 1).contiguous()
            images = self._augment(images_NHWC, {name: values[at] for name, values in rest.items()})
            yield images, self._on_device(self.data.labels[order[at]])
