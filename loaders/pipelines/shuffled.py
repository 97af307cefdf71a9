"""Shuffled images in [-1, 1] for a generative network, without augmentation; any batch can be read by its number.

Shape legend: N images in the set, B images in a batch, S edge in pixels.
"""

import torch

from wallclock.loaders.batches import DataError, Dataset
from wallclock.loaders.pipelines.epochs import permutation


class ShuffledBatches:
    """Whole batches of a data set; each epoch has its own order, decided by seed and epoch alone.

    Args:
        dataset: data set in the memory of any device, or mapped from a file.
        batch_size: B; the rest at the end of an epoch is not shown in it.
        device: device on which batches are made.
        seed: seed of the order, which also depends on the epoch.
        channels_last: whether a batch is in channels-last memory.
        resident: whether all images are moved to `device` at once; False moves each batch.

    Raises:
        DataError: if there are fewer images than one batch holds.
        ValueError: if `batch_size` is not above 0.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        device: torch.device,
        seed: int = 0,
        channels_last: bool = False,
        resident: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected a number above 0")
        if len(dataset) < batch_size:
            raise DataError(
                f"{len(dataset)} training images do not fill one batch of {batch_size}; "
                f"use --set batch_size={len(dataset)} or more data"
            )
        self.batch_size, self.device, self.seed = batch_size, device, seed
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.dataset = dataset.to(device) if resident else dataset
        self._ordered = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return len(self.dataset) // self.batch_size

    def images(self, epoch: int, index: int) -> torch.Tensor:
        """Returns batch `index`, below `len(self)`, of an epoch: float32 [B, 3, S, S] in [-1, 1] on the device."""
        pixels_NHWC = self.dataset.images_NHWC[self._places(epoch, index)]
        return copy_in_unit_range(pixels_NHWC, self.device, self.memory_format)

    def _places(self, epoch: int, index: int) -> torch.Tensor:
        where = self.dataset.labels.device
        if epoch != self._ordered:
            # Drawn on the CPU, so that every device sees the same images in the same order.
            self._order = permutation(len(self.dataset), self.seed, epoch, "cpu").to(where)
            self._ordered = epoch
        return self._order[index * self.batch_size : (index + 1) * self.batch_size]


def copy_in_unit_range(
    pixels_NHWC: torch.Tensor, device: torch.device, memory_format: torch.memory_format
) -> torch.Tensor:
    """Returns the `unit_range` of pixels on a device; the copy to a GPU does not block the host."""
    if device.type == "cuda" and not pixels_NHWC.is_cuda:
        pixels_NHWC = pixels_NHWC.pin_memory()
    return unit_range(pixels_NHWC.to(device, non_blocking=True)).contiguous(memory_format=memory_format)


def unit_range(pixels_NHWC: torch.Tensor) -> torch.Tensor:
    """Returns pixels as the networks take them: [N, 3, H, W] from -1 (black) to 1, made of uint8 [N, H, W, 3].

    The result has torch's default dtype: float32 unless a test has set another.
    """
    return pixels_NHWC.permute(0, 3, 1, 2).to(torch.get_default_dtype()).div_(127.5).sub_(1)


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Returns images float [N, 3, H, W] in [-1, 1] as uint8 [N, H, W, 3], rounded: the inverse of `unit_range`."""
    return images.float().add(1).mul(127.5).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous()
