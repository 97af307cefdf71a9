"""The pipeline `webdataset`: tar shards streamed with the library of that name."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from wallclock.kernels.augment import draw
from wallclock.loaders.batches import BatchOptions, DataError, check_padding
from wallclock.loaders.data.image_files import decode
from wallclock.loaders.data.shards import MANIFEST, Shards, label_of
from wallclock.loaders.pipelines.base import Batches
from wallclock.loaders.pipelines.workers import WorkerLoader

SHUFFLE_BUFFER = 2048  # samples


@dataclass
class _Stream(IterableDataset[Any]):
    """A stream of decoded batches, which one worker reads from its own shards in the order of the epoch.

    Attributes:
        workers: number of processes that share this rank's shards; 0 if this process reads them.
        steps: number of batches of each worker.
        epoch: number of the epoch, int64 [1] in memory shared with the workers, which persist between epochs.
    """

    shards: Shards
    options: BatchOptions
    workers: int
    steps: int
    shuffle_buffer: int
    epoch: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64).share_memory_())

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        try:
            yield from self.read(int(self.epoch), info.id if info else 0)
        except DataError as error:
            yield str(error)

    def own_shards(self, epoch: int, worker: int) -> list[int]:
        """Returns the numbers of the shards that a worker of this rank reads in an epoch, in order."""
        order = np.arange(len(self.shards.files))
        if self.options.shuffle:
            np.random.Generator(np.random.PCG64([self.options.seed, epoch])).shuffle(order)
        return order[self.options.rank :: self.options.world][worker :: max(1, self.workers)].tolist()

    def read(self, epoch: int, worker: int) -> Iterator[Any]:
        """Yields a worker's batches: images uint8 [n, H, W, 3], labels int64 [n], and indices int64 [n].

        Raises DataError if a shard, an image or a label is damaged.
        """
        batch: list[dict[str, Any]] = []
        own = self.own_shards(epoch, worker)
        sizes = self.batch_sizes(sum(self.shards.samples[number] for number in own))
        for sample in self.samples(epoch, worker, own):
            batch.append(sample)
            if sizes and len(batch) == sizes[0]:
                del sizes[0]
                yield self._decoded(batch)
                batch = []
        if sizes:
            raise DataError(
                f"{self.shards.folder}: shards {own} hold fewer samples than {MANIFEST} says; write them again"
            )

    def batch_sizes(self, count: int) -> list[int]:
        """Returns the sizes of the batches into which a worker divides `count` samples."""
        size = self.options.batch_size
        if -(-count // size) < self.steps:  # another worker has a few samples more, which take one batch more
            return [len(part) for part in np.array_split(np.arange(count), self.steps)]
        return [min(size, count - at) for at in range(0, self.steps * size, size)]

    def samples(self, epoch: int, worker: int, own: list[int]) -> Iterator[dict[str, Any]]:
        """Yields the encoded samples of tar files in the epoch's order; raises DataError if a file is damaged."""
        import random

        from webdataset import DataPipeline, SimpleShardList, shuffle, tarfile_to_samples

        urls = [str((self.shards.folder / self.shards.files[number]).resolve()) for number in own]
        stages: list[Any] = [SimpleShardList(urls), tarfile_to_samples()]
        if self.options.shuffle:
            chance = random.Random(f"{self.options.seed} {epoch} {self.options.rank} {worker}")
            stages.append(shuffle(self.shuffle_buffer, initial=self.shuffle_buffer, rng=chance))
        try:
            yield from DataPipeline(*stages)
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            raise DataError(f"{' '.join(str(error).split())}; write the shards in {self.shards.folder} again") from None

    def _decoded(self, samples: list[dict[str, Any]]) -> Any:
        images, labels = [], []
        for sample in samples:
            name = f"{sample['__url__']}, {sample['__key__']}"
            suffix = next((s for s in ("png", "jpg", "jpeg") if s in sample), "")
            if not suffix or "cls" not in sample:
                has = ", ".join(key for key in sample if not key.startswith("_"))
                raise DataError(f"{name} has {has}; expected png or jpg, and cls: write the shards again")
            labels.append(label_of(sample["cls"], name))
            if not 0 <= labels[-1] < len(self.shards.classes):
                raise DataError(f"{name} has label {labels[-1]}; expected 0 to {len(self.shards.classes) - 1}")
            images.append(decode(sample[suffix], f"{name}.{suffix}", *self.shards.shape))
        places = [int(sample["__key__"]) for sample in samples]
        return torch.from_numpy(np.stack(images)), torch.tensor(labels), torch.tensor(places)


class ShardBatches(Batches):
    """Batches streamed from tar shards by `webdataset`: read in sequence, decoded in workers, augmented on the device.

    Each epoch deals the shards out anew to ranks and their workers; a worker reads its shards one after another and
    shuffles through a buffer. That shuffles less than a set in memory, and reads sequentially from the disk. The
    number of steps in an epoch is fixed beforehand and the same on every rank; `drop_last` drops samples that fill no
    batch of their worker.

    Args:
        shards: tar shards, with a number of files that the ranks divide evenly.
        options: options of the batches; `size` is ignored. Of the `workers`, the pipeline uses as many as
            share the shards out evenly and, with `drop_last`, fill a batch each.
        shuffle_buffer: number of samples among which a worker draws its next one.

    Raises:
        DataError: if the shards do not divide evenly among the ranks, or hold too few samples for a batch.
    """

    def __init__(self, shards: Shards, options: BatchOptions, *, shuffle_buffer: int = SHUFFLE_BUFFER) -> None:
        super().__init__(options)
        size, world, drop_last = options.batch_size, options.world, options.drop_last
        if len(shards.files) % world:
            raise DataError(
                f"{len(shards.files)} shards do not go evenly to {world} ranks; write a multiple of {world}"
            )
        each = len(shards.files) // world
        smallest = sorted(shards.samples)
        full = [n for n in range(1, min(options.workers, each) + 1) if each % n == 0]
        full = [n for n in full if not drop_last or sum(smallest[: each // n]) >= size]
        self.workers = max(full, default=0)
        # Fewest and most samples that a worker can have, whichever shards it is dealt.
        dealt = each // max(1, self.workers)
        fewest, most = sum(smallest[:dealt]), sum(smallest[-dealt:])
        self._steps = fewest // size if drop_last else -(-most // size)
        if not 0 < self._steps <= fewest:
            raise DataError(
                f"{fewest} images of a reader do not fill its batches of {size}; choose a smaller batch_size"
            )
        check_padding(self.augmentation, shards.shape)
        self._stream = _Stream(shards, options, self.workers, self._steps, shuffle_buffer)
        self._loader = WorkerLoader(self._stream, options, self.workers)

    def __len__(self) -> int:
        return self._steps * max(1, self.workers)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        epoch = self._epoch
        self._stream.epoch.fill_(epoch)
        for images, labels, places in self._loader.whole("webdataset"):
            drawn = draw(self.augmentation, self.options.seed, epoch, places, *images.shape[1:3])
            yield self._augment(images, drawn), self._on_device(labels)

    def order(self, epoch: int) -> list[torch.Tensor]:
        """Returns the samples of each batch of an epoch: int64 indices into the whole set, read from the shards."""
        batches = []
        for worker in range(max(1, self.workers)):
            own = self._stream.own_shards(epoch, worker)
            places = [int(sample["__key__"]) for sample in self._stream.samples(epoch, worker, own)]
            sizes = self._stream.batch_sizes(len(places))
            batches.append(list(torch.tensor(places).split([*sizes, len(places) - sum(sizes)]))[: len(sizes)])
        return [batch for turn in zip(*batches, strict=True) for batch in turn]
