"""The pipeline `device`: uint8 images live on the device, where every batch is made without a host sync."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from wallclock.kernels.augment import Padding, augment_fused, draw
from wallclock.loaders.batches import BatchOptions, Dataset
from wallclock.loaders.pipelines.base import IndexedBatches


class DeviceBatches(IndexedBatches):
    """Batches of augmented, normalised images, made on the device from a resident uint8 data set.

    The augmentation of an image in an epoch depends on the seed, the epoch and its index, never on `batch_size`
    or on which epochs ran before. Each of several ranks keeps its own samples, every `world`-th, in its memory, and
    shuffles and augments them under a seed of its own: see `Epochs.order_within`.

    Args:
        dataset: data set on `options.device`; with several ranks, each moves its own part there.
        options: size, place, order and augmentation of the batches.

    Raises:
        DataError: if the data do not fit the options, see `IndexedBatches`.
    """

    data: Dataset

    def __init__(self, dataset: Dataset, options: BatchOptions) -> None:
        own = dataset
        if options.world > 1:
            own = dataset.subset(slice(options.rank, None, options.world)).to(options.device)
        super().__init__(own, options, len(dataset))
        self._windows = None
        moves = self.augmentation.pad or self.augmentation.flip != "none"
        if options.device.type == "cpu" and options.implementation == "eager" and moves:
            self._windows = Windows(self.data.images_NHWC, self.augmentation.pad, self.augmentation.padding)

    def order(self, epoch: int) -> list[torch.Tensor]:
        """Returns the samples of each batch of an epoch: int64 indices into the whole set, on the CPU."""
        within = self.epochs.order_within(epoch, self.options.device).cpu()
        return list(self.epochs.cut(within * self.options.world + self.options.rank))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = self.epochs.order_within(self._epoch, self.options.device)
        for images, labels, _ in self.of(self.epochs.cut(order)):
            yield images, labels

    def of(self, batches: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yields images, labels and indices of chosen samples, augmented as in the current epoch.

        Args:
            batches: for each batch the indices among this rank's samples, int64 on the device.
        """
        epoch, drawn = self._epoch, {}
        # Drawn for the whole epoch at once: drawing takes some 300 small operations, whatever their size.
        if self.options.implementation == "eager":
            places = torch.arange(self.epochs.own, device=self.options.device)
            drawn = draw(self.augmentation, self.epochs.rank_seed, epoch, places, *self.data.shape)
        for indices in batches:
            yield self._images(indices, drawn, epoch), self.data.labels[indices], indices

    def _images(self, indices: torch.Tensor, drawn: dict[str, torch.Tensor], epoch: int) -> torch.Tensor:
        images, dtype = self.data.images_NHWC, self.options.dtype
        if self.options.implementation == "triton":
            seed = self.epochs.rank_seed
            return augment_fused(images, indices, self.augmentation, seed=seed, epoch=epoch, dtype=dtype)
        chosen = {name: values[indices] for name, values in drawn.items()}
        if self._windows is None:
            return self._augment(images, chosen, indices)
        with one_thread():
            crops = self._windows.crop(indices, chosen.pop("offsets", None), chosen.pop("flips", None))
            return self._augment(crops, chosen)


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch's operations within it on the calling thread alone.

    A batch is some 25 short operations; on two threads each ends with a barrier that spins. On a machine with other
    work to do that took 73 us of CPU time an image, and 6 on one thread.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Windows:
    """Images on a CPU, padded once at the left and right, so that a row of a crop is contiguous and copied whole.

    1,000 crops of 32x32 pixels take 0.15 ms on one thread, and mirroring half of them 0.4; gathering pixel by pixel
    takes 3.1. The padding above and below is read through reflected rows; the padding at the sides costs memory:
    2 * pad / W more than the set.

    Args:
        images_NHWC: images, uint8 [M, H, W, 3] on the CPU.
        pad: most pixels by which a crop is shifted; below H and W.
        padding: content of the pixels outside an image; see `kernels.augment.augment_ref`.
    """

    def __init__(self, images_NHWC: torch.Tensor, pad: int, padding: Padding) -> None:
        count, self._height, self._width, _ = images_NHWC.shape
        self._pad, self._padding, self._rows = pad, padding, count * self._height
        wide = self._width + 2 * pad
        # One more row, of black, which stands for all rows above and below an image with black padding.
        memory = torch.zeros((self._rows + 1) * wide, 3, dtype=torch.uint8)
        image = memory[:-wide].view(count, self._height, wide, 3)
        image[:, :, pad : pad + self._width] = images_NHWC
        if padding == "reflect":
            for offset in range(1, pad + 1):
                image[:, :, pad - offset] = images_NHWC[:, :, offset]
                image[:, :, pad + self._width - 1 + offset] = images_NHWC[:, :, self._width - 1 - offset]
        # A view with one row for each pixel at which a crop's row may begin; rows overlap, and take no memory.
        starts = len(memory) - self._width + 1
        self._starts = memory.view(-1).as_strided((starts, 3 * self._width), (3, 1))

    def crop(self, indices: torch.Tensor, offsets: torch.Tensor | None, flips: torch.Tensor | None) -> torch.Tensor:
        """Returns crops, each mirrored or not: uint8 [N, H, W, 3].

        Args:
            indices: indices of the images in the set, int64 [N].
            offsets: rows and columns by which each crop is shifted, int64 [N, 2], at most `pad`; None for no shift.
            flips: whether each crop is mirrored, bool [N]; None for no mirroring.
        """
        wide, rows = self._width + 2 * self._pad, torch.arange(self._height).expand(len(indices), self._height)
        columns = torch.full((len(indices), 1), self._pad)
        if offsets is not None:
            rows, columns = rows + offsets[:, :1], columns + offsets[:, 1:]
        inside = rows.abs()
        inside = torch.where(inside >= self._height, 2 * (self._height - 1) - inside, inside)
        starts = (indices[:, None] * self._height + inside) * wide + columns
        if self._padding == "zero":
            starts = torch.where((rows < 0) | (rows >= self._height), self._rows * wide, starts)
        crops = self._starts.index_select(0, starts.view(-1)).view(-1, self._height, self._width, 3)
        if flips is not None:
            mirrored = flips.nonzero()[:, 0]
            # By numpy: 0.05 ms for 500 images, where torch's index_copy_ goes byte by byte and takes 1.4.
            crops.numpy()[mirrored.numpy()] = crops.index_select(0, mirrored).flip(2).numpy()
        return crops
