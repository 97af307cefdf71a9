"""The order of samples in epochs, batches and ranks, the same for all pipelines."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from wallclock.loaders.batches import BatchOptions, DataError


@dataclass(frozen=True)
class Epochs:
    """The order of the samples in every epoch, cut into batches and shared out among ranks.

    Ranks get disjoint samples that together are the whole set, and the same number of batches: a rank with one sample
    less than another that would be a batch short splits its last batch in two. With `drop_last` each rank drops samples
    that do not fill a batch of its own.

    Attributes:
        count: number of samples in the set.
        options: options of the batches.

    Raises:
        DataError: if there are too few samples for one batch on each rank.
    """

    count: int
    options: BatchOptions

    def __post_init__(self) -> None:
        size, world, drop_last = self.options.batch_size, self.options.world, self.options.drop_last
        if self.count < world * (size if drop_last else 1):
            ranks = f" on each of {world} ranks" if world > 1 else ""
            raise DataError(f"{self.count} images do not fill one batch of {size}{ranks}; choose a smaller batch_size")
        if size == 1 and not drop_last and self.count % world:
            raise DataError(
                f"{self.count} images cannot be one a batch on each of {world} ranks; choose a batch_size above 1"
            )

    @property
    def own(self) -> int:
        """Number of this rank's samples, before any are dropped."""
        return len(range(self.options.rank, self.count, self.options.world))

    def sizes(self) -> list[int]:
        """Returns the number of samples in each batch of this rank."""
        size, world = self.options.batch_size, self.options.world
        if self.options.drop_last:
            return [size] * (self.count // world // size)
        whole, rest = divmod(self.own, size)
        sizes = [size] * whole + ([rest] if rest else [])
        if len(sizes) < -(-self.count // world // size):
            sizes[-1:] = [size - 1, 1]
        return sizes

    def order(self, epoch: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Returns the samples of this rank in the order of an epoch, from 0: int64 indices into the whole set."""
        rank, world = self.options.rank, self.options.world
        if not self.options.shuffle:
            return torch.arange(rank, self.count, world, device=device)
        return permutation(self.count, self.options.seed, epoch, device)[rank::world]

    def order_within(self, epoch: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Returns an order of the samples that this rank keeps in every epoch: int64 indices among those.

        This shuffles less than `order`: no sample ever changes its rank, and a batch mixes samples of one rank only.
        Each device can therefore keep 1/world of the data in its memory.
        """
        if not self.options.shuffle:
            return torch.arange(self.own, device=device)
        return permutation(self.own, self.rank_seed, epoch, device)

    @property
    def rank_seed(self) -> int:
        """The seed of this rank: rank 0 uses the common one, each other rank its own."""
        return (self.options.seed + self.options.rank * 0xD1342543DE82EF95) % 2**63

    def cut(self, order: torch.Tensor) -> Sequence[torch.Tensor]:
        """Returns the parts of an order that are its batches."""
        sizes = self.sizes()
        return order[: sum(sizes)].split(sizes)


def permutation(count: int, seed: int, epoch: int, device: torch.device | str) -> torch.Tensor:
    """Returns an epoch's order of 0 to count - 1, int64, drawn on `device`: a GPU draws another order than a CPU."""
    # Seeding a generator on the device copies nothing from it.
    mixed = (seed * 0x9E3779B97F4A7C15 + epoch + 1) % 2**63
    return torch.randperm(count, generator=torch.Generator(device).manual_seed(mixed), device=device)
