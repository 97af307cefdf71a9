"""The pipeline `dali`: NVIDIA DALI decodes, pads, crops, flips and normalises, on the GPU or else on the CPU.

Images in memory and encoded ones (folders, Parquet, tar shards) go through one graph. `kernels.augment.draw`, rather
than DALI, draws order and augmentation, which are fed as inputs beside the images: an epoch equals that of the other
pipelines, image by image. It costs 12 bytes a sample. For the same reason our own index reads the files: DALI's readers
shuffle within a buffer of 1,024, know epochs only by name, and pad the last batch with samples that must not be
counted.

DALI runs ahead by `PREFETCH` batches and does not stop at the end of an epoch, or where a consumer leaves one early; a
batch of an abandoned iteration is recognised by its ticket and dropped.
"""

import weakref
from collections import deque
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from wallclock.kernels.augment import GREY, MEAN, STD, draw
from wallclock.loaders.batches import BatchOptions, DataError, Dataset
from wallclock.loaders.data.stored import StoredImages, is_cut_off
from wallclock.loaders.pipelines.base import IndexedBatches

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline

PREFETCH = 2  # batches that DALI prepares ahead; 3 gain nothing for images of 32 pixels


def unavailable() -> str:
    """Returns the reason why DALI cannot be used; empty if it can."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        return f"DALI is not installed ({error}); uv sync --extra dali, or pip install 'wallclock[dali]'"
    return ""


class _Batch(NamedTuple):
    """A batch on its way through DALI."""

    ticket: object  # identifies the iteration that the batch is for; None for one that only fills the queue
    places: torch.Tensor  # indices of the samples in the data set, int64 [n]
    inputs: dict[str, Any]  # inputs of DALI's graph, by name


class DaliBatches(IndexedBatches):
    """Batches of augmented, normalised images from a DALI pipeline; each epoch shuffles across all ranks.

    Args:
        data: images in memory, or encoded ones, which DALI decodes.
        options: on a GPU everything but the reading runs there; `workers` are threads of DALI on the CPU, at least one.

    Raises:
        DataError: if the data do not fit the options, see `IndexedBatches`.
        ValueError: if DALI is not installed.

    Source: https://docs.nvidia.com/deeplearning/dali/user-guide/docs/
    """

    def __init__(self, data: Dataset | StoredImages, options: BatchOptions) -> None:
        if why_not := unavailable():
            raise ValueError(why_not)
        super().__init__(data, options)
        if isinstance(self.data, Dataset):
            self.data = self.data.to(torch.device("cpu"))
        self._on_gpu = options.device.type == "cuda"
        self._under_way: deque[_Batch] = deque()
        self._coming: Iterator[_Batch] = iter(())
        self._pipeline: Pipeline | None = None

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        ticket = object()
        self._coming = self._batches_of_epoch(ticket)
        for _ in range(len(self)):
            while True:
                outputs = self._next()
                batch = self._under_way.popleft()
                if batch.ticket is ticket:
                    break
            if len(outputs) > 1:
                self._check_shapes(outputs[1].as_array(), batch)
            # A tensor over DALI's memory, without a copy where the dtypes agree.
            images_NHWC = torch.from_dlpack(outputs[0].as_tensor())
            images = images_NHWC.permute(0, 3, 1, 2).to(self.options.dtype)
            yield images, self._on_device(self.data.labels[batch.places])

    def _batches_of_epoch(self, ticket: object) -> Iterator[_Batch]:
        """Yields the batches of the chosen epoch, prepared for DALI."""
        epoch = self._epoch
        order = self.epochs.order(epoch)
        drawn = self._draw(epoch, order)
        for at in self.epochs.cut(torch.arange(len(order))):
            yield self._prepare(ticket, order[at], {name: values[at] for name, values in drawn.items()})

    def _draw(self, epoch: int, places: torch.Tensor) -> dict[str, torch.Tensor]:
        return draw(self.augmentation, self.options.seed, epoch, places, *self.data.shape)

    def _prepare(self, ticket: object, places: torch.Tensor, drawn: dict[str, torch.Tensor]) -> _Batch:
        """Returns a batch of the samples at `places`; refuses JPEGs that are cut off, which DALI fills up with grey."""
        if isinstance(self.data, Dataset):
            images: Any = self.data.images_NHWC.numpy()[places.numpy()]
        else:
            images = [self.data.content(place) for place in places.tolist()]
            for place, content in zip(places.tolist(), images, strict=True):
                if is_cut_off(content):
                    self.data.decode(place)
        inputs = {"images": images}
        for name, values in drawn.items():
            inputs[name] = values.numpy().astype(np.float32 if values.is_floating_point() else np.int32)
        return _Batch(ticket, places, inputs)

    def _source(self) -> tuple[Any, ...]:
        """Returns the inputs of the next batch for DALI, or of a filler where no batch is coming."""
        batch = next(self._coming, None) or self._filler()
        self._under_way.append(batch)
        return tuple(batch.inputs.values())

    def _filler(self) -> _Batch:
        first = torch.zeros(1, dtype=torch.int64)
        return self._prepare(None, first, self._draw(0, first))

    def _next(self) -> tuple[Any, ...]:
        """Returns DALI's next outputs; an error breaks the graph, and the next call builds a new one."""
        if self._pipeline is None:
            self._pipeline = self._build()
        # DALI's executor counts the owners of the outputs, which stay valid while we hold them. On a GPU they are
        # bound to torch's stream, which waits for them and frees them after their last use.
        stream = torch.cuda.current_stream(self.options.device) if self._on_gpu else None
        try:
            return tuple(self._pipeline.run(stream))
        except (DataError, RuntimeError) as error:  # from our own source, or from DALI
            self._pipeline = None
            if isinstance(error, RuntimeError) and isinstance(self.data, StoredImages):
                for place in torch.cat([batch.places for batch in self._under_way]).tolist():
                    self.data.decode(place)  # raises DataError for the image that is damaged, with its name
            raise

    def _build(self) -> "Pipeline":
        """Builds the graph: decode if needed, pad and crop in one slice, jitter, mirror and normalise, cut out."""
        dali: Any = import_module("nvidia.dali")  # it makes its modules' contents when it is imported
        fn, types = dali.fn, dali.types
        clamp = import_module("nvidia.dali.math").clamp
        augmentation, (height, width) = self.augmentation, self.data.shape
        batches = weakref.proxy(self)  # or neither would be freed before the garbage collector comes
        names = list(self._filler().inputs)
        encoded = isinstance(self.data, StoredImages)
        pipeline = dali.pipeline.Pipeline(
            batch_size=self.options.batch_size,
            num_threads=max(1, self.options.workers),
            device_id=(self.options.device.index or 0) if self._on_gpu else None,
            prefetch_queue_depth=PREFETCH,
        )
        with pipeline:
            layouts = ["" if encoded else "HWC", *[""] * (len(names) - 1)]
            fed = fn.external_source(source=lambda: batches._source(), num_outputs=len(names), layout=layouts)
            given = dict(zip(names, fed, strict=True))
            x = given["images"]
            if encoded:
                # Upsamples colour as Pillow does; without it a JPEG's pixels differ.
                x = fn.decoders.image(
                    x,
                    device="mixed" if self._on_gpu else "cpu",
                    output_type=types.RGB,
                    jpeg_fancy_upsampling=True,
                )
            elif self._on_gpu:
                x = x.gpu()
            shapes = x.shape()  # on the CPU
            if "offsets" in given:
                beyond = "reflect_101" if augmentation.padding == "reflect" else "pad"
                x = fn.slice(
                    x,
                    start=given["offsets"],
                    shape=(height, width),
                    axes=(0, 1),
                    out_of_bounds_policy=beyond,
                    fill_values=0,
                )
            if "brightness" in given:
                x = clamp(x * given["brightness"], 0, 255)
            if "contrast" in given:
                grey = fn.reductions.sum(fn.cast(x, dtype=types.FLOAT), axes=(0, 1)) * types.Constant(
                    np.array(GREY, dtype=np.float32)
                )
                grey = fn.reductions.sum(grey, axes=(0,)) / (height * width)
                x = clamp((x - grey) * given["contrast"] + grey, 0, 255)
            x = fn.crop_mirror_normalize(
                x,
                mirror=given.get("flips", 0),
                mean=[255 * mean for mean in MEAN],
                std=[255 * std for std in STD],
                dtype=types.FLOAT,
                output_layout="HWC",
            )
            if "cutout_centres" in given:
                edge = augmentation.cutout
                top_left = fn.cast(given["cutout_centres"] - edge // 2, dtype=types.FLOAT)
                x = fn.erase(x, anchor=top_left, shape=(edge, edge), axes=(0, 1), fill_value=0)
            pipeline.set_outputs(*(x, shapes) if encoded else (x,))
        self._under_way.clear()
        pipeline.build()
        return pipeline

    def _check_shapes(self, shapes: npt.NDArray[np.int64], batch: _Batch) -> None:
        """Refuses images of another size, which the crop would otherwise hide, and names the first."""
        assert isinstance(self.data, StoredImages)
        height, width = self.data.shape
        wrong = (shapes != (height, width, 3)).any(1).nonzero()[0]
        if len(wrong):
            name, found = self.data.names(int(batch.places[wrong[0]])), "{1}x{0}".format(*shapes[wrong[0]])
            raise DataError(f"{name}, is {found}; expected {width}x{height} pixels, scale it first")
