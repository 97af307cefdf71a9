"""One training over several devices, as torchrun starts it: this process's rank, and its messages to the others."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class Ranks:
    """This process's number, from 0, among the `world` that train together; alone unless torchrun started it."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process keeps the records and prints."""
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """Returns the number of images of a batch that one rank takes.

        Raises:
            ValueError: if the batch cannot be shared equally.
        """
        if batch_size % self.world:
            fits = f"--set batch_size={batch_size // self.world * self.world or self.world}"
            raise ValueError(f"a batch of {batch_size} cannot be shared by {self.world} processes; use {fits}")
        return batch_size // self.world

    def add(self, tensors: Iterable[torch.Tensor], *, mean: bool) -> None:
        """Replaces each tensor by its sum over ranks, or their mean, in one message for each dtype."""
        if self.world == 1:
            return
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for same in by_dtype.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in same])
            distributed.all_reduce(flat)
            if mean:
                flat /= self.world
            for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def copy_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrites each tensor with that of rank 0."""
        for tensor in tensors if self.world > 1 else ():
            distributed.broadcast(tensor, 0)


@contextmanager
def join_ranks(device_type: str) -> Iterator[Ranks]:
    """Joins the processes that torchrun started, each on a GPU of its own for "cuda"; a process alone joins nothing.

    Raises:
        ValueError: if there are fewer GPUs than processes.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    if device_type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            gpus = torch.cuda.device_count()
            raise ValueError(f"{gpus} GPUs for {local + 1} or more processes; use --nproc-per-node {gpus}")
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if device_type == "cuda" else "gloo")
    try:
        yield Ranks(distributed.get_rank(), world)
    finally:
        distributed.destroy_process_group()
