"""The pipeline `dali`: NVIDIA DALI decodes, pads, crops, flips and normalises; on a GPU there, on the CPU elsewhere.

Images in memory and encoded ones (folders, Parquet, tar shards) go through one graph. Order and numbers are drawn by
`kernels.augment.draw`, not by DALI, and fed as inputs beside the images: so an epoch is that of the other pipelines,
image by image. It costs 12 bytes a sample. For the same reason the files come from an index of ours and not from DALI's
readers: those shuffle within a buffer of 1,024, know epochs only by name, and pad the last batch with samples that must
not be counted.

DALI runs ahead by `PREFETCH` batches. It does not stop at the end of an epoch, or where a consumer leaves one early: a
batch that nobody waits for any more is told by its ticket and dropped.
"""

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from wallclock.kernels.augment import GREY, MEAN, STD, Augmentation, draw
from wallclock.loaders.batches import DataError, Dataset
from wallclock.loaders.data.stored import Damaged, StoredImages, check_policy, cut_off
from wallclock.loaders.pipelines.device import resized
from wallclock.loaders.pipelines.epochs import Epochs

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline

PREFETCH = 2  # batches that DALI is ahead; 3 gain nothing for images of 32 pixels


def unavailable() -> str:
    """Returns why DALI cannot be used; empty if it can."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        return f"DALI is not installed ({error}); uv sync --extra dali, or pip install 'wallclock[dali]'"
    return ""


def _called(source: "weakref.WeakMethod[Callable[[], tuple[Any, ...]]]") -> tuple[Any, ...]:
    method = source()
    assert method is not None, "a pipeline runs only while its DaliBatches iterates"
    return method()


@dataclass
class _Batch:
    """A batch on its way through DALI.

    Attributes:
        ticket: of the iteration that asked for it; None for one that nobody did, which fills the queue.
        places: int64 [n] in the data set.
        inputs: what is fed, by name.
        left_out: why images were.
    """

    ticket: object
    places: torch.Tensor
    inputs: dict[str, Any]
    left_out: list[str]


class DaliBatches:
    """Batches of augmented, normalised images from a DALI pipeline.

    Args:
        data: in memory, or encoded: then DALI decodes it.
        batch_size: images in a batch.
        device: where batches end up; on a GPU all but the reading runs there.
        dtype: of the images.
        seed: of order and augmentation.
        augmentation: None for none.
        shuffle: whether each epoch has its own order.
        drop_last: whether an incomplete last batch is dropped; else it is smaller, never padded.
        size: scale the images in memory down to this edge once, beforehand, and the padding with them.
        rank: which of the ranks this is.
        world: how many there are; each epoch shuffles across all of them.
        threads: of DALI on the CPU.
        damaged: what happens to images that cannot be decoded; a batch that had some is smaller.

    Attributes:
        skipped: why each image that was left out was, since the beginning.

    Raises:
        DataError: if the images are too small or too few.
        ValueError: if a number is out of range, or DALI is not installed.

    Source: https://docs.nvidia.com/deeplearning/dali/user-guide/docs/
    """

    def __init__(
        self,
        data: Dataset | StoredImages,
        batch_size: int,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        augmentation: Augmentation | None,
        shuffle: bool = True,
        drop_last: bool = False,
        size: int | None = None,
        rank: int = 0,
        world: int = 1,
        threads: int = 2,
        damaged: Damaged = "raise",
    ) -> None:
        if why_not := unavailable():
            raise ValueError(why_not)
        check_policy(damaged)
        if threads < 1:
            raise ValueError(f"threads is {threads}; expected a number above 0")
        self.epochs = Epochs(
            count=len(data),
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world=world,
        )
        self.augmentation, self._augmentation = augmentation, augmentation or Augmentation(pad=0, flip="none")
        if isinstance(data, Dataset):
            data, self._augmentation = resized(data, augmentation, size)
            self._shape = (data.images_NHWC.shape[1], data.images_NHWC.shape[2])
            self._pixels = data.images_NHWC.cpu().numpy()
        else:
            self._shape = data.checked_shape(self._augmentation, size)
        self.data, self.labels, self.damaged = data, data.labels.cpu(), damaged
        self.batch_size, self.device, self.dtype, self.seed = batch_size, device, dtype, seed
        self.threads, self.skipped = threads, list[str]()
        self._epoch = self._step = 0
        self._under_way: deque[_Batch] = deque()
        self._coming: Iterator[_Batch] = iter(())
        self._pipeline: Pipeline | None = None

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return len(self.epochs.sizes())

    def set_epoch(self, epoch: int, step: int = 0) -> None:
        """Chooses the epoch that the next iteration yields, and the batch that it begins with."""
        self._epoch, self._step = epoch, step

    def order(self, epoch: int) -> list[torch.Tensor]:
        """Returns the samples of each batch of an epoch: int64 places in the whole set, on the CPU."""
        return list(self.epochs.cut(self.epochs.order(epoch)))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields images [N, 3, H, W] in channels-last memory, and labels int64 [N], both on the device."""
        ticket = object()
        self._coming = self._asked_for(ticket)
        for _ in range(self._step, len(self)):
            while True:
                outputs = self._next()
                batch = self._under_way.popleft()
                if batch.ticket is ticket:
                    break
            self.skipped += batch.left_out
            if len(outputs) > 1:
                self._check_shapes(outputs[1].as_array(), batch)
            yield self._images(outputs[0]), self.labels[batch.places].to(self.device, non_blocking=True)

    def _asked_for(self, ticket: object) -> Iterator[_Batch]:
        """Yields the batches of the chosen epoch, ready to be fed."""
        epoch = self._epoch
        order = self.epochs.order(epoch)
        drawn = draw(self._augmentation, self.seed, epoch, order, *self._shape)
        for at in self.epochs.cut(torch.arange(len(order)), self._step):
            yield self._fed(ticket, order[at], {name: values[at] for name, values in drawn.items()})

    def _fed(self, ticket: object, places: torch.Tensor, drawn: dict[str, torch.Tensor]) -> _Batch:
        left_out: list[str] = []
        if isinstance(self.data, Dataset):
            images: Any = self._pixels[places.numpy()]
        else:
            images = [self.data.content(place) for place in places.tolist()]
            if doubtful := [number for number, content in enumerate(images) if cut_off(content)]:
                images, places, drawn, left_out = self._sound(images, places, drawn, doubtful)
        inputs: dict[str, Any] = {"images": images}
        for name, of_type in (("offsets", np.int32), ("flips", np.int32), ("cutout_centres", np.int32)):
            if name in drawn:
                inputs[name] = drawn[name].numpy().astype(of_type)
        for name in ("brightness", "contrast"):
            if name in drawn:
                inputs[name] = drawn[name].numpy().astype(np.float32)
        return _Batch(ticket, places, inputs, left_out)

    def _sound(
        self, images: list[Any], places: torch.Tensor, drawn: dict[str, torch.Tensor], doubtful: list[int]
    ) -> tuple[list[Any], torch.Tensor, dict[str, torch.Tensor], list[str]]:
        """Leaves out those doubtful images that Pillow cannot decode either.

        Raises:
            DataError: if there are some and the policy is "raise", or nothing is left.
        """
        assert isinstance(self.data, StoredImages)
        why = {number: self.data.trouble(int(places[number])) for number in doubtful}
        why = {number: trouble for number, trouble in why.items() if trouble}
        if why and self.damaged == "raise":
            raise DataError(next(iter(why.values())))
        kept = [number for number in range(len(images)) if number not in why]
        if not kept:
            raise DataError(f"none of the images of a batch can be decoded; {next(iter(why.values()))}")
        drawn = {name: values[kept] for name, values in drawn.items()}
        return [images[number] for number in kept], places[kept], drawn, list(why.values())

    def _source(self) -> tuple[Any, ...]:
        """What DALI asks for its next batch: the next that is coming, or a repeated image while there is none."""
        batch = next(self._coming, None)
        if batch is None:
            none = torch.zeros(1, dtype=torch.int64)
            batch = self._fed(None, none, draw(self._augmentation, self.seed, 0, none, *self._shape))
        self._under_way.append(batch)
        return tuple(batch.inputs.values())

    def _next(self) -> tuple[Any, ...]:
        """Returns DALI's next outputs; where an image broke its pipeline, begins a new one without it.

        Raises:
            DataError: if there is such an image and the policy is "raise".
        """
        while True:
            if self._pipeline is None:
                self._pipeline = self._built()
            # The outputs are ours for as long as we hold them: DALI's executor counts their owners. On a GPU they are
            # bound to torch's stream, which waits for them, and which frees them when it has done with them.
            stream = torch.cuda.current_stream(self.device) if self._on_gpu else None
            try:
                return tuple(self._pipeline.run(stream))
            except DataError:  # from our own source
                self._pipeline = None
                raise
            except RuntimeError as error:
                if isinstance(self.data, Dataset):
                    raise
                self._pipeline = None
                self._without_damaged(error)

    def _without_damaged(self, error: RuntimeError) -> None:
        """Puts what was under way back in front, less what cannot be decoded."""
        again, found = [], False
        for batch in self._under_way:
            drawn = {name: torch.from_numpy(values) for name, values in batch.inputs.items() if name != "images"}
            every = list(range(len(batch.places)))
            images, places, drawn, left_out = self._sound(batch.inputs["images"], batch.places, drawn, every)
            found |= bool(left_out)
            inputs = {"images": images, **{name: values.numpy() for name, values in drawn.items()}}
            again.append(_Batch(batch.ticket, places, inputs, batch.left_out + left_out))
        if not found:  # nothing that Pillow finds fault with
            raise error
        self._under_way.clear()
        coming = self._coming

        def chained() -> Iterator[_Batch]:
            yield from again
            yield from coming

        self._coming = chained()

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _built(self) -> "Pipeline":
        """The graph: decode where needed, pad and crop in one slice, jitter, mirror and normalise, cut out."""
        dali: Any = import_module("nvidia.dali")  # it makes its modules' contents when it is imported
        fn, types = dali.fn, dali.types
        clamp = import_module("nvidia.dali.math").clamp
        augmentation, (height, width) = self._augmentation, self._shape
        source = weakref.WeakMethod(self._source)  # or neither would be freed before the garbage collector comes
        names = list(self._fed(None, torch.zeros(1, dtype=torch.int64), self._drawn_for_one()).inputs)
        encoded = isinstance(self.data, StoredImages)
        pipeline = dali.pipeline.Pipeline(
            batch_size=self.batch_size,
            num_threads=self.threads,
            device_id=(self.device.index or 0) if self._on_gpu else None,
            prefetch_queue_depth=PREFETCH,
        )
        with pipeline:
            layouts = ["" if encoded else "HWC", *[""] * (len(names) - 1)]
            fed = fn.external_source(source=lambda: _called(source), num_outputs=len(names), layout=layouts)
            given = dict(zip(names, fed, strict=True))
            x = given["images"]
            if encoded:
                # As Pillow upsamples colour; without it a JPEG's pixels differ.
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

    def _drawn_for_one(self) -> dict[str, torch.Tensor]:
        return draw(self._augmentation, self.seed, 0, torch.zeros(1, dtype=torch.int64), *self._shape)

    def _check_shapes(self, shapes: npt.NDArray[np.int64], batch: _Batch) -> None:
        """Refuses images of another size, which a crop would hide.

        Raises:
            DataError: names the first one.
        """
        assert isinstance(self.data, StoredImages)
        wrong = (shapes != (*self._shape, 3)).any(1).nonzero()[0]
        if len(wrong):
            height, width, _ = shapes[wrong[0]]
            name = self.data.names(int(batch.places[wrong[0]]))
            raise DataError(
                f"{name}, is {width}x{height}; expected {self._shape[1]}x{self._shape[0]} pixels, scale it first"
            )

    def _images(self, images: Any) -> torch.Tensor:
        """DALI's memory as a tensor, without a copy."""
        return torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2).to(self.dtype)
