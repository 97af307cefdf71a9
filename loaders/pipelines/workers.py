"""Worker processes of a loader: how they start, and an error that explains the death of one."""

import gc
from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from wallclock.loaders.batches import BatchOptions, DataError

PREFETCH = 4  # batches that each worker makes ahead


class WorkerDied(RuntimeError):
    """A worker process has died."""


class WorkerLoader(DataLoader[Any]):
    """A DataLoader whose worker processes hand over whole batches and stay from epoch to epoch.

    Args:
        source: data set each of whose items is a whole batch.
        options: options of the batches; for a GPU, batches are pinned.
        workers: number of processes; 0 makes the batches in this one.
        requests: keys of the items, one for each batch; None for an iterable source.
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
        """Begins an epoch; the first one starts the processes.

        Garbage of that moment must not be collected in a worker: the end of a DALI pipeline would wait for ever for
        threads that a fork does not copy.
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

    def whole(self, pipeline: str) -> Iterator[Any]:
        """Yields the batches of an epoch; messages name the `pipeline`.

        Raises:
            DataError: if an item is a text, by which a worker names damaged data.
            WorkerDied: if a worker is killed; torch's errors do not tell the user what to do.
        """
        try:
            for batch in self:
                if isinstance(batch, str):
                    raise DataError(batch)
                yield batch
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid"):
                raise
            why = " ".join(str(error).split()).rstrip(".")
            if not isinstance(error, RuntimeError):  # it died while it handed a batch over
                why = f"it exited unexpectedly ({why or type(error).__name__})"
            raise WorkerDied(
                f"the pipeline '{pipeline}' lost a worker: {why}. Use fewer workers if memory ran out, and start again"
            ) from None
