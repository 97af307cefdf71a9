"""What befalls the worker processes of a loader, in words."""

import gc
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class WorkerDied(RuntimeError):
    """A process that made batches is gone."""


def uninterrupted(loader: Iterable[T], pipeline: str, *, forks: bool) -> Iterator[T]:
    """Yields what a DataLoader yields; says what to do when the system kills one of its workers.

    Args:
        loader: to go through.
        pipeline: its name, for the message.
        forks: whether going through it makes processes now.

    Raises:
        WorkerDied: if a worker is killed.
    """
    if forks:
        # What is garbage here must not be collected in a worker: a DALI pipeline's end waits for threads that no fork
        # takes along, for ever.
        gc.collect()
        gc.freeze()
    try:
        iterator = iter(loader)
    finally:
        if forks:
            gc.unfreeze()
    try:
        yield from iterator
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        why = " ".join(str(error).split())
        raise WorkerDied(
            f"the pipeline '{pipeline}' lost a worker: {why} Use fewer workers if memory ran out, and start again"
        ) from None
