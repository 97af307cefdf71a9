"""Every pipeline by its name, and what each can read."""

import os
from pathlib import Path
from typing import Literal, get_args

import torch

from wallclock.kernels.augment import Augmentation
from wallclock.loaders.batches import Batches, DataError, Dataset
from wallclock.loaders.data.shards import SHARDS, Shards, write_shards
from wallclock.loaders.data.stored import StoredImages
from wallclock.loaders.pipelines import dali
from wallclock.loaders.pipelines.dataloader import DataLoaderBatches
from wallclock.loaders.pipelines.device import DeviceBatches
from wallclock.loaders.pipelines.webdataset import ShardBatches

PipelineName = Literal["device", "dataloader", "dali", "webdataset"]
PIPELINES: tuple[str, ...] = get_args(PipelineName)


def unavailable(name: str) -> str:
    """Returns why a pipeline cannot be used here; empty if it can.

    Raises:
        ValueError: if there is no such pipeline.
    """
    if name not in PIPELINES:
        raise ValueError(f"no pipeline '{name}'; expected one of {', '.join(PIPELINES)}")
    return dali.unavailable() if name == "dali" else ""


def make_batches(
    name: str,
    data: Dataset | StoredImages | Shards,
    batch_size: int,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    augmentation: Augmentation | None,
    shuffle: bool = True,
    drop_last: bool = False,
    size: int | None = None,
    implementation: Literal["eager", "triton"] = "eager",
    rank: int = 0,
    world: int = 1,
    workers: int = 2,
) -> Batches:
    """Returns a pipeline over a data set.

    `device` decodes what is encoded when it is made; `webdataset` reads shards only, which `write_shards` makes.

    Args:
        name: of `PIPELINES`.
        data: to read.
        batch_size: images in a batch.
        device: where batches end up.
        dtype: of the images.
        seed: of order and augmentation.
        augmentation: None for none.
        shuffle: whether each epoch has its own order.
        drop_last: whether an incomplete last batch is dropped.
        size: scale images in memory down to this edge once, beforehand, and the padding with them.
        implementation: of the augmentation in `device`.
        rank: which of the ranks this is.
        world: how many there are.
        workers: processes of `dataloader` and `webdataset`, threads of `dali`.

    Raises:
        DataError: if the data do not fit.
        ValueError: if there is no such pipeline, it is not installed, or it cannot read such data.
    """
    if why_not := unavailable(name):
        raise ValueError(why_not)
    share = {"rank": rank, "world": world}
    common = {"device": device, "dtype": dtype, "seed": seed, "augmentation": augmentation, "shuffle": shuffle}
    common |= {"drop_last": drop_last, **share}
    if name == "webdataset":
        if not isinstance(data, Shards):
            raise ValueError(f"the pipeline 'webdataset' reads shards, not {type(data).__name__}; see write_shards")
        return ShardBatches(data, batch_size, workers=workers, **common)  # type: ignore[arg-type]
    if isinstance(data, Shards):
        data = data.stored()
    if name == "dataloader":
        return DataLoaderBatches(data, batch_size, size=size, workers=workers, **common)  # type: ignore[arg-type]
    if name == "dali":
        return dali.DaliBatches(data, batch_size, size=size, threads=max(1, workers), **common)  # type: ignore[arg-type]
    if isinstance(data, StoredImages):
        data, _ = data.dataset()
    if world == 1:
        data = data.to(device)
    return DeviceBatches(data, batch_size, size=size, implementation=implementation, **common)  # type: ignore[arg-type]


def shards_of(dataset: Dataset) -> Shards:
    """Returns a data set as tar shards in the user's cache, written when they are wanted for the first time.

    Args:
        dataset: in memory.

    Raises:
        DataError: if they cannot be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wallclock" / "shards"
    height, width = dataset.images_NHWC.shape[1:3]
    folder = cache / f"{dataset.content_hash[:16]}-{height}x{width}"
    if folder.exists():
        return Shards.open(folder)
    if len(dataset) < SHARDS:
        raise DataError(f"{dataset.name}: {len(dataset)} images do not fill {SHARDS} shards; use another pipeline")
    return write_shards(dataset, folder)
