"""Worker processes of a loader: how they are made, and what befalls them, in words."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class WorkerDied(RuntimeError):
    """A process that made batches is gone."""


@contextmanager
def deaths_named(pipeline: str) -> Iterator[None]:
    """Says what to do when the system kills a worker; torch raises wherever this process happens to be.

    Args:
        pipeline: its name, for the message.

    Raises:
        WorkerDied: if a worker is killed.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid"):
            raise
        why = " ".join(str(error).split()).rstrip(".")
        if not isinstance(error, RuntimeError):  # it died while it handed a batch over
            why = f"it exited unexpectedly ({why or type(error).__name__})"
        raise WorkerDied(
            f"the pipeline '{pipeline}' lost a worker: {why}. Use fewer workers if memory ran out, and start again"
        ) from None


def forked(loader: Iterable[T]) -> Iterator[T]:
    """Returns the iterator of a DataLoader that makes its processes now.

    What is garbage here must not be collected in a worker: a DALI pipeline's end waits for threads that no fork takes
    along, for ever.

    Args:
        loader: to go through.
    """
    gc.collect()
    gc.freeze()
    try:
        return iter(loader)
    finally:
        gc.unfreeze()
