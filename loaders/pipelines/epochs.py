"""Which sample comes in which batch of which epoch, on which rank: one answer for all pipelines."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from wallclock.loaders.batches import DataError


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """The order of every epoch, cut into batches and shared out among ranks.

    Ranks get disjoint samples that together are all of them, and the same number of batches: one that has a sample less
    than another and would be a batch short makes two of its last. With `drop_last` each rank drops what fills no batch
    of its own.

    Attributes:
        count: samples in the set.
        batch_size: of one rank.
        seed: of the order.
        shuffle: whether each epoch has its own order.
        drop_last: whether an incomplete last batch is dropped.
        rank: which of the ranks this is.
        world: how many there are.

    Raises:
        ValueError: if a number is out of range.
        DataError: if there are too few samples for one batch on each rank.
    """

    count: int
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; expected a number above 0")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank is {self.rank} of {self.world}; expected one from 0 to {self.world - 1}")
        needed = self.world * (self.batch_size if self.drop_last else 1)
        if self.count < needed:
            ranks = f" on each of {self.world} ranks" if self.world > 1 else ""
            raise DataError(
                f"{self.count} images do not fill one batch of {self.batch_size}{ranks}; choose a smaller batch_size"
            )
        if self.batch_size == 1 and not self.drop_last and self.count % self.world:
            raise DataError(
                f"{self.count} images cannot be one a batch on each of {self.world} ranks; choose a batch_size above 1"
            )

    @property
    def own(self) -> int:
        """Samples of this rank before any are dropped."""
        return len(range(self.rank, self.count, self.world))

    def sizes(self) -> list[int]:
        """Returns how many samples each batch of this rank holds."""
        size = self.batch_size
        if self.drop_last:
            return [size] * (self.count // self.world // size)
        whole, rest = divmod(self.own, size)
        sizes = [size] * whole + ([rest] if rest else [])
        if len(sizes) < -(-self.count // self.world // size):
            sizes[-1:] = [size - 1, 1]
        return sizes

    def order(self, epoch: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Returns the samples of this rank in the order of an epoch: int64 places in the whole set.

        Args:
            epoch: from 0.
            device: whose generator draws, and where the result lies; a GPU draws another order than a CPU.
        """
        if not self.shuffle:
            return torch.arange(self.rank, self.count, self.world, device=device)
        return _shuffled(self.count, self.seed, epoch, device)[self.rank :: self.world]

    def order_within(self, epoch: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Returns an order of the samples that this rank always has: int64 places among those.

        A weaker shuffle than `order`: no sample ever changes its rank, so that a batch mixes one rank's samples only.
        It is what lets each device keep 1/world of the data in its memory.
        """
        if not self.shuffle:
            return torch.arange(self.own, device=device)
        return _shuffled(self.own, self.rank_seed, epoch, device)

    @property
    def rank_seed(self) -> int:
        """A seed of this rank's own; rank 0 keeps the common one."""
        return (self.seed + self.rank * 0xD1342543DE82EF95) % 2**63

    def cut(self, order: torch.Tensor, step: int = 0) -> Iterator[torch.Tensor]:
        """Yields the parts of an order that make the batches from `step` on."""
        sizes = self.sizes()
        start = sum(sizes[:step])
        for size in sizes[step:]:
            yield order[start : start + size]
            start += size


def _shuffled(count: int, seed: int, epoch: int, device: torch.device | str) -> torch.Tensor:
    # Seeding a generator on the device copies nothing from it.
    mixed = (seed * 0x9E3779B97F4A7C15 + epoch + 1) % 2**63
    return torch.randperm(count, generator=torch.Generator(device).manual_seed(mixed), device=device)
