"""Several processes that read one data set: which of them this is, and whether they mean the same epoch."""

from typing import Any

import torch.distributed as dist

from wallclock.loaders.batches import Batches, DataError


def rank_and_world() -> tuple[int, int]:
    """Returns this process's rank and how many there are; 0 of 1 where torch.distributed is not set up."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def check_agreement(batches: Batches, content_hash: str) -> None:
    """Refuses ranks that would not take the same steps over the same data: the first to be done would hang the others.

    Every rank calls it, before the first epoch.

    Args:
        batches: of this rank.
        content_hash: of the data set that it reads from.

    Raises:
        DataError: on every rank, if they differ; says in what.
    """
    rank, world = rank_and_world()
    if world == 1:
        return
    own = {"steps": len(batches), "seed": batches.seed, "batch_size": batches.batch_size, "data": content_hash[:12]}
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, own)
    for name in own:
        values = [of_rank[name] for of_rank in everyone]
        if len(set(values)) > 1:
            told = ", ".join(f"rank {number}: {value}" for number, value in enumerate(values))
            raise DataError(f"the ranks differ in their {name} ({told}); start all of them with the same arguments")
