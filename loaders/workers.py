"""What befalls the worker processes of a loader, in words."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class WorkerDied(RuntimeError):
    """A process that made batches is gone."""


def uninterrupted(loader: Iterable[T], pipeline: str) -> Iterator[T]:
    """Yields what a DataLoader yields; says what to do when the system kills one of its workers.

    Args:
        loader: to go through.
        pipeline: its name, for the message.

    Raises:
        WorkerDied: if a worker is killed.
    """
    try:
        yield from loader
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        why = " ".join(str(error).split())
        raise WorkerDied(
            f"the pipeline '{pipeline}' lost a worker: {why} Use fewer workers if memory ran out, and start again"
        ) from None
