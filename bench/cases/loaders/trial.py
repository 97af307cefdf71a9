"""Checks and measures every pipeline over one data set, in one form and at one batch size."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import psutil
import torch

from wallclock.bench.measure.sampling import measure
from wallclock.bench.measure.timing import PhaseTimer, RunClocks, now_s, process_tree_cpu_s, synchronize
from wallclock.bench.tasks.cifar.trainer import DTYPES, Trainer
from wallclock.kernels.augment import Augmentation, augment_ref, draw
from wallclock.loaders.batches import BatchOptions, Dataset, Split
from wallclock.loaders.data.shards import Shards
from wallclock.loaders.data.stored import StoredImages
from wallclock.loaders.pipelines.base import Batches
from wallclock.loaders.pipelines.choose import make_batches
from wallclock.models.recipes.recipe import Recipe

Regime = Literal["one image", "alone", "first batch", "training", "tuning"]
HELD = "held batch"  # name of the baseline without a pipeline, which trains on one batch again and again
AUGMENTATION = Augmentation(pad=4, flip="random")  # as is usual with DALI and torchvision
CHECKED_IMAGES = 32
TOLERANCE = 1e-6  # largest error of normalised values in float32
SEED = 0
WARM_BATCHES = 4  # batches read before memory is measured, when the queues are full


@dataclass(frozen=True)
class Form:
    """A data set in the form that pipelines read ("pixels", "parquet", "folders" or "shards").

    Batches of `data`, which are in this form, are checked against the decoded images, `pixels`.
    """

    name: str
    data: Dataset | StoredImages | Shards
    pixels: Dataset


@dataclass(frozen=True)
class Measured:
    """One measured value of one metric in one regime."""

    regime: Regime
    metric: str
    unit: str
    value: float
    index: int | None = None


class LoaderTrial:
    """The pipelines over one form of a data set at one batch size.

    `workers` are the processes or threads of each pipeline, by name; 0 for a pipeline that is missing.
    """

    def __init__(self, form: Form, batch_size: int, device: torch.device, workers: dict[str, int]) -> None:
        self.form, self.batch_size, self.device, self.workers = form, batch_size, device, workers
        self.name = f"{form.name} {batch_size}"

    def open(self, pipeline: str, **changes: Any) -> Batches:
        """Returns an open pipeline to iterate over; `changes` replace fields of its `BatchOptions`."""
        own = {"batch_size": self.batch_size, "workers": self.workers.get(pipeline, 0), **changes}
        options = BatchOptions(device=self.device, seed=SEED, augmentation=AUGMENTATION, **own)
        return make_batches(pipeline, self.form.data, options)

    def check(self, pipeline: str) -> float:
        """Returns the largest error of a batch's first images against the reference; NaN if a label differs."""
        batches = self.open(pipeline, drop_last=False)
        images, labels = next(iter(batches))
        places = batches.order(0)[0]
        if not torch.equal(labels.cpu(), self.form.pixels.labels[places]):
            return float("nan")
        places = places[:CHECKED_IMAGES]
        drawn = draw(AUGMENTATION, SEED, 0, places, *self.form.pixels.images_NHWC.shape[1:3])
        errors = []
        for number, place in enumerate(places.tolist()):
            row, column = drawn["offsets"][number].tolist()
            expected = augment_ref(self.form.pixels.images_NHWC[place], (row, column), bool(drawn["flips"][number]))
            errors.append((images[number].cpu().float() - expected).abs().max().item())
        return max(errors)

    def one_image(self, pipeline: str, budget_s: float) -> Iterator[Measured]:
        """Times a pipeline that makes batches of one image in this process."""
        batches = self.open(pipeline, batch_size=1, workers=0)
        stream = endless(batches)
        found = measure(lambda: next(stream), device=self.device, budget_s=budget_s, min_count=10)
        for index, seconds in enumerate(found.samples_s):
            yield Measured("one image", "image_time", "s", seconds, index)

    def alone(self, pipeline: str) -> Iterator[Measured]:
        """Opens a pipeline, times its first batch, then reads a whole epoch without training on it."""
        memory_before = tree_memory_bytes()
        synchronize(self.device)
        begun_s = now_s()
        batches = self.open(pipeline)
        stream = iter(batches)
        next(stream)
        synchronize(self.device)
        yield Measured("first batch", "first_batch", "s", now_s() - begun_s)
        for _ in itertools.islice(stream, WARM_BATCHES):
            pass
        yield Measured("alone", "added_memory", "B", max(0, tree_memory_bytes() - memory_before))
        del stream
        batches.set_epoch(1)
        images, cpu_before, begun_s = 0, process_tree_cpu_s(), now_s()
        for _, labels in batches:
            images += len(labels)
        synchronize(self.device)
        seconds, cpu_s = now_s() - begun_s, process_tree_cpu_s() - cpu_before
        yield Measured("alone", "images_per_s", "images/s", images / seconds)
        yield Measured("alone", "cpu_time", "s", cpu_s / images)

    def trainer(self, recipe: Recipe) -> Trainer:
        """Returns a trainer of the recipe's network for batches of this size from any pipeline."""
        split = Split(self.form.pixels, self.form.pixels)
        recipe = replace(recipe, batch_size=self.batch_size, resolutions=(), pipeline="device")
        trainer = Trainer(recipe, split, device=self.device, seed=SEED, clocks=RunClocks(self.device))
        trainer.model.train()
        return trainer

    def training(self, pipeline: str, trainer: Trainer, steps: int) -> Iterator[Measured]:
        """Times training steps on a pipeline's batches, and the share of each step that waits for the batch.

        An untimed step precedes the `steps`. `pipeline` may be `HELD`, for one batch held in memory.
        """
        if pipeline == HELD:
            stream: Iterator[tuple[torch.Tensor, torch.Tensor]] = itertools.repeat(next(iter(trainer.batches())))
        else:
            stream = endless(self.open(pipeline, dtype=DTYPES[trainer.recipe.precision], drop_last=True))
        trainer.step(stream, 0, PhaseTimer(self.device, enabled=False))
        phases, whole = PhaseTimer(self.device), PhaseTimer(self.device)
        for _ in range(steps):
            with whole.phase("step"):
                trainer.step(stream, 0, phases)
        times, steps_s = phases.times_s(), whole.times_s()["step"]
        for index, (step_s, data_s) in enumerate(zip(steps_s, times["data"], strict=True)):
            yield Measured("training", "step_time", "s", step_s, index)
            yield Measured("training", "stall", "fraction", data_s / step_s, index)


def endless(batches: Batches) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields a pipeline's batches without end, epoch after epoch."""
    for epoch in itertools.count():
        batches.set_epoch(epoch)
        yield from batches


def tree_memory_bytes() -> int:
    """Returns the memory of this process and its children in bytes; memory that they share counts once."""
    process, total = psutil.Process(), 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total
