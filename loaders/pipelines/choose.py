"""The registry of the pipelines by name, and the data that each can read."""

import os
from pathlib import Path
from typing import Literal, get_args

from wallclock.loaders.batches import BatchOptions, DataError, Dataset
from wallclock.loaders.data.shards import SHARDS, Shards, write_shards
from wallclock.loaders.data.stored import StoredImages
from wallclock.loaders.pipelines import dali
from wallclock.loaders.pipelines.base import Batches
from wallclock.loaders.pipelines.dataloader import DataLoaderBatches
from wallclock.loaders.pipelines.device import DeviceBatches
from wallclock.loaders.pipelines.webdataset import ShardBatches

PipelineName = Literal["device", "dataloader", "dali", "webdataset"]
PIPELINES: tuple[str, ...] = get_args(PipelineName)


def unavailable(name: str) -> str:
    """Returns the reason why a pipeline cannot be used here; empty if it can.

    Raises:
        ValueError: if no pipeline has that name.
    """
    if name not in PIPELINES:
        raise ValueError(f"no pipeline '{name}'; expected one of {', '.join(PIPELINES)}")
    return dali.unavailable() if name == "dali" else ""


def make_batches(name: str, data: Dataset | StoredImages | Shards, options: BatchOptions) -> Batches:
    """Returns the pipeline of this name in `PIPELINES` over images in memory, encoded images or tar shards.

    `device` decodes encoded images when it is made; `webdataset` reads shards only, which `write_shards` makes.

    Raises:
        DataError: if the data do not fit the options.
        ValueError: if no pipeline has that name, it is not installed, or it cannot read such data.
    """
    if why_not := unavailable(name):
        raise ValueError(why_not)
    if name == "webdataset":
        if not isinstance(data, Shards):
            raise ValueError(f"the pipeline 'webdataset' reads shards, not {type(data).__name__}; see write_shards")
        return ShardBatches(data, options)
    if isinstance(data, Shards):
        data = data.stored()
    if name == "dataloader":
        return DataLoaderBatches(data, options)
    if name == "dali":
        return dali.DaliBatches(data, options)
    if isinstance(data, StoredImages):
        data = data.dataset()
    return DeviceBatches(data.to(options.device) if options.world == 1 else data, options)


def shards_of(dataset: Dataset) -> Shards:
    """Returns a data set as tar shards in the user's cache; the first call writes them.

    Raises:
        DataError: if the shards cannot be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wallclock" / "shards"
    height, width = dataset.shape
    folder = cache / f"{dataset.content_hash[:16]}-{height}x{width}"
    if folder.exists():
        return Shards.open(folder)
    if len(dataset) < SHARDS:
        raise DataError(f"{dataset.name}: {len(dataset)} images do not fill {SHARDS} shards; use another pipeline")
    return write_shards(dataset, folder)
