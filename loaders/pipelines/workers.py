"""Worker processes of a loader: how they are made, and an error that says so when one of them dies."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from wallclock.loaders.batches import BatchOptions

PREFETCH = 4  # batches of each worker


class WorkerDied(RuntimeError):
    """A process that made batches is gone."""


class WorkerLoader(DataLoader[Any]):
    """A DataLoader that is handed whole batches, by processes that stay from epoch to epoch.

    Args:
        source: data set each of whose items is a whole batch.
        options: see `BatchOptions`; for a GPU, batches are pinned.
        workers: processes; 0 works in this one.
        requests: items that the source is asked for, one a batch; None for a source that is iterable.
    """

    def __init__(
        self,
        source: Dataset[Any] | IterableDataset[Any],
        options: BatchOptions,
        workers: int,
        requests: Iterable[Any] | None = None,
    ) -> None:
        super().__init__(
            source,
            sampler=requests,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            persistent_workers=workers > 0,
            pin_memory=options.device.type == "cuda",
            multiprocessing_context="fork" if workers else None,
        )
        self._forked = workers == 0

    def __iter__(self) -> Any:
        """Begins an epoch; the first one makes the processes.

        What is garbage then must not be collected in a worker: a DALI pipeline's end waits for threads that no fork
        takes along, for ever.
        """
        if self._forked:
            return super().__iter__()
        self._forked = True
        gc.collect()
        gc.freeze()
        try:
            return super().__iter__()
        finally:
            gc.unfreeze()


@contextmanager
def name_deaths(pipeline: str) -> Iterator[None]:
    """Says what to do when the system kills a worker; torch raises wherever this process happens to be.

    Args:
        pipeline: name in the message.

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
