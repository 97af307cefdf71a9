"""One training run of an image classifier: what happens inside the clock, step by step."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from wallclock.bench.engine.compile import compile_network
from wallclock.bench.engine.cuda_graphs import Inputs, StepGraphs, restoring
from wallclock.bench.engine.ranks import Ranks
from wallclock.bench.engine.trainer import DTYPES, check_device
from wallclock.bench.measure.environment import cpu_cores
from wallclock.bench.measure.timing import PhaseTimer, RunClocks
from wallclock.bench.tasks.cifar.fastest_convs import Choices
from wallclock.kernels.augment import Augmentation
from wallclock.loaders.batches import BatchOptions, Dataset, Split
from wallclock.loaders.data.shards import Shards
from wallclock.loaders.pipelines.base import Batches, scale_down
from wallclock.loaders.pipelines.choose import make_batches, shards_of
from wallclock.loaders.pipelines.choose import unavailable as pipeline_unavailable
from wallclock.loaders.pipelines.device import DeviceBatches
from wallclock.loaders.pipelines.pruned import EasySamples
from wallclock.models.build import build_model, build_optimizers
from wallclock.models.layers import units
from wallclock.models.networks.sprint import Sprint
from wallclock.models.recipes.recipe import MuonSGD, Recipe, TestTimeAugmentation

WHITENING_IMAGES = 5000
EVALUATION_BATCH = 1000
WARMUP_STEPS = 3


class Diverged(RuntimeError):
    """The error that the training loss became NaN or infinite."""


@dataclass(frozen=True)
class StepDone:
    """The event that one optimiser step is done; on the CPU only, where reading the clock costs nothing."""

    step: int
    total_steps: int
    images: int
    elapsed_train_eval_s: float


@dataclass(frozen=True)
class Evaluated:
    """The test accuracy without augmentation during training, off the clocks, and the mean loss since the last one."""

    epoch: float
    step: int
    accuracy: float
    train_loss_nats: float
    elapsed_train_eval_s: float


@dataclass(frozen=True)
class Finished:
    """The end of a training: the fixed budget is spent, and the final evaluation, inside the clock, is done."""

    accuracy: float
    images_per_s: float
    train_eval_s: float


Event = StepDone | Evaluated | Finished


def check_runnable(recipe: Recipe, split: Split, device: torch.device) -> None:
    """Refuses a recipe that cannot be trained, before anything is moved, built or recorded.

    Raises:
        ValueError: if the recipe names no network, or cannot run on this device or this data; names the change that
            helps.
    """
    if device.type == "cpu" and recipe.precision == "fp16":
        raise ValueError("fp16 has no kernels worth timing on a CPU; use --set precision=bf16 or a GPU")
    check_device(recipe, device)
    if recipe.implementations.cuda_graph and recipe.precision == "fp16":
        raise ValueError("fp16's scaled loss asks the host in every step; use --set precision=bf16 with a CUDA graph")
    if why_not := pipeline_unavailable(recipe.pipeline):
        raise ValueError(why_not)
    if recipe.pruning is not None and recipe.pipeline != "device":
        raise ValueError(f"{recipe.pipeline} does not say which samples it shows; use --set pruning=null")
    model = build_model(recipe, len(split.train.classes), torch.device("meta"))
    if build_optimizers(recipe, model).moves_momentum and recipe.implementations.cuda_graph:
        raise ValueError(
            f"a CUDA graph keeps the momentum that it was captured with, and {recipe.name}'s schedule moves it; use "
            "--set implementations.cuda_graph=false"
        )
    for size in (*(r.size for r in recipe.resolutions), split.train.images_NHWC.shape[1]):
        try:
            model(torch.empty(2, 3, size, size, device="meta"))
        except RuntimeError as error:
            raise ValueError(f"model {recipe.model} cannot compute images of {size} pixels: {error}") from error
    if len(split.train) < recipe.batch_size:
        raise ValueError(
            f"{len(split.train)} training images do not fill one batch of {recipe.batch_size}; "
            f"use --set batch_size={len(split.train)} or more data"
        )


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch of the planned training, by its number from 0; it may leave out (prune) easy samples.

    Images have an edge of `size` pixels, or stay as they are if it is None. Of the epoch's `whole_steps`, fewer are
    taken (`steps`) where the budget ends within it.
    """

    number: int
    size: int | None
    prunes: bool
    whole_steps: int
    steps: int


class Trainer:
    """A recipe's network, optimisers and pipelines for one seed, on one device.

    The caller has put torch's generators into the seed's state (`bench.measure.numerics`).

    Args:
        split: training and test set; moved to `device` before the resident clock starts.
        seed: seed of batch order, augmentation and pruning.
        clocks: clocks of the run, started by the caller when the process or the seed begins.
        choices: implementations of convolutions by unit name; see `bench.tasks.cifar.fastest_convs`.
        ranks: processes that train together, each on its part of every batch; gradients are those of the whole batch,
            norms take the statistics of their part.

    Raises:
        ValueError: if the recipe cannot run on this device or this data.
    """

    def __init__(
        self,
        recipe: Recipe,
        split: Split,
        *,
        device: torch.device,
        seed: int,
        clocks: RunClocks,
        choices: Mapping[str, Choices] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        check_runnable(recipe, split, device)
        implementations = recipe.implementations
        self.ranks = ranks or Ranks()
        self._own_batch = self.ranks.share(recipe.batch_size)
        if self.ranks.world > 1 and implementations.cuda_graph:
            raise ValueError(
                "a CUDA graph of a step holds no other process; use --set implementations.cuda_graph=false"
            )
        if self.ranks.world > 1 and recipe.pruning is not None:
            raise ValueError("losses of all samples lie in one process; use --set pruning=null under torchrun")
        self.recipe, self.device, self.seed, self.clocks = recipe, device, seed, clocks
        # Only the "device" pipeline starts from raw data on the device; the others read the data where they are.
        resident = recipe.pipeline == "device"
        self.split = Split(split.train.to(device) if resident else split.train, split.test.to(device))
        pad = 0 if recipe.padding == "none" else recipe.pad
        self._augmentation = Augmentation(
            pad=pad, flip=recipe.flip, cutout=recipe.cutout, padding="zero" if recipe.padding == "zero" else "reflect"
        )
        self._shards: dict[int | None, tuple[Shards, Augmentation]] = {}
        if recipe.pipeline == "webdataset":
            for size in (*(r.size for r in recipe.resolutions), None):
                dataset, augmentation = scale_down(split.train, self._augmentation, size)
                self._shards[size] = shards_of(dataset), augmentation
        clocks.start_resident()
        self.dtype = DTYPES[recipe.precision]
        self._delivery: dict[str, Any] = {"device": device, "dtype": self.dtype, "seed": seed}
        self._evaluated_together = min(EVALUATION_BATCH, len(split.test.labels))
        self.model = build_model(recipe, len(split.train.classes), device)
        for name, chosen in (choices or {}).items():
            units(self.model)[name].choose(chosen)
        self.ranks.copy_first([*self.model.parameters(), *self.model.buffers()])
        self.optimizers = build_optimizers(recipe, self.model)
        self.scaler = self._new_scaler()
        self.steps_per_epoch = len(split.train.labels) // recipe.batch_size
        if self._shards:  # each worker drops samples that do not fill a batch of its own
            self.steps_per_epoch = len(self.batches())
        self._easy = None
        if (pruning := recipe.pruning) is not None:
            count = len(split.train.labels)
            self._easy = EasySamples(count, easy=pruning.easy, rate=pruning.rate, seed=seed, device=device)
        self.epochs = self._planned()
        self.total_steps = sum(epoch.steps for epoch in self.epochs)
        self.network: Callable[[torch.Tensor], torch.Tensor] = self.model
        if implementations.compile:
            self.network = compile_network(self.model)
        self._loss_sum = torch.zeros((), device=device)
        self._graphs = StepGraphs(device, self._state) if implementations.cuda_graph else None
        if self.network is not self.model or device.type == "cuda":
            self._warm_up()

    def _planned(self) -> list[Epoch]:
        """Returns the epochs of the run, with the number of steps in each."""
        pruning, planned, count = self.recipe.pruning, list[Epoch](), math.ceil(self.recipe.epochs)
        for number in range(count):
            prunes = pruning is not None and pruning.from_epoch <= number < count - pruning.whole_epochs
            whole = self.steps_per_epoch
            if prunes and self._easy is not None:
                whole = (len(self.split.train.labels) - self._easy.left_out_count) // self.recipe.batch_size
            size = next((r.size for r in self.recipe.resolutions if number < r.until_epoch), None)
            steps = math.ceil(min(1.0, self.recipe.epochs - number) * whole)
            planned.append(Epoch(number=number, size=size, prunes=prunes, whole_steps=whole, steps=steps))
        return planned

    def epoch_of_each_step(self) -> list[Epoch]:
        """Returns the epoch that each step of the whole run belongs to."""
        return [epoch for epoch in self.epochs for _ in range(epoch.steps)]

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.recipe.precision == "fp16")

    def batches(self, size: int | None = None) -> Batches:
        """Returns the training pipeline, with images scaled to `size` pixels unless it is None."""
        data: Dataset | Shards = self.split.train
        augmentation = self._augmentation
        if self._shards:  # shards are written at that size
            (data, augmentation), size = self._shards[size], None
        shared = {"rank": self.ranks.rank, "world": self.ranks.world, "workers": cpu_cores(), **self._delivery}
        options = BatchOptions(
            batch_size=self._own_batch,
            augmentation=augmentation,
            drop_last=True,
            size=size,
            implementation=self.recipe.implementations.augment,
            **shared,
        )
        return make_batches(self.recipe.pipeline, data, options)

    def test_batches(self) -> DeviceBatches:
        """Returns the test set in order, without augmentation."""
        size = self._evaluated_together
        options = BatchOptions(batch_size=size, augmentation=None, shuffle=False, **self._delivery)
        return DeviceBatches(self.split.test, options)

    def endless_batches(self, size: int | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields training batches, epoch after epoch; see `batches`."""
        batches = self.batches(size)
        for epoch in itertools.count():
            batches.set_epoch(epoch)
            yield from batches

    @torch.no_grad()
    def evaluate_batch(self, images: torch.Tensor) -> None:
        """Evaluates one batch without test-time augmentation, for the phase pass."""
        self.model.eval()
        self.predict(images, None)
        self.model.train()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns float32 logits [N, classes] of normalised images [N, 3, H, W]."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.network(images).float()

    def step(self, batches: Iterator[tuple[torch.Tensor, ...]], step: int, phases: PhaseTimer) -> None:
        """Takes one optimiser step on the next batch: images, labels and, where samples are pruned, their indices."""
        with phases.phase("data"):
            images, labels, *indices = next(batches)
        frozen = self.optimizers.set_progress(step / self.total_steps)
        if self._graphs is None:
            self._update(images, labels, *indices, phases=phases)
            return

        def update(static: Inputs) -> torch.Tensor:
            return self._update(*static.values(), phases=PhaseTimer(self.device, enabled=False))

        with phases.phase("replay"):
            name = f"images {tuple(images.shape)}, frozen {frozen}, pruned {bool(indices)}"
            inputs = {"images": images, "labels": labels} | ({"indices": indices[0]} if indices else {})
            self._graphs.replay(name, update, inputs)

    def _update(
        self, images: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor | None = None, *, phases: PhaseTimer
    ) -> torch.Tensor:
        """Takes one optimiser step on given images; returns their mean loss. No random draws: a graph can hold it."""
        with phases.phase("forward"):
            logits, smoothing = self.forward(images), self.recipe.label_smoothing
            if indices is None or self._easy is None:
                loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            else:
                losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
                loss = self._easy.weighted(losses, indices).mean()
        with phases.phase("backward"):
            summed = isinstance(self.recipe.optimizer, MuonSGD)  # its learning rates are for the summed loss
            self.scaler.scale(loss * len(labels) if summed else loss).backward()
            self.ranks.add((p.grad for p in self.model.parameters() if p.grad is not None), mean=not summed)
        with phases.phase("optimiser"):
            for optimizer in self.optimizers.optimizers:
                self.scaler.step(optimizer)
            self.scaler.update()
            self.optimizers.zero_grad(keep_memory=self._graphs is not None)
            self._loss_sum += loss.detach()
        return loss.detach()

    def _state(self) -> dict[str, torch.Tensor]:
        """Returns all tensors that a step changes, by name."""
        own = {"loss sum": self._loss_sum} | ({} if self._easy is None else {"losses": self._easy.losses})
        return {**self.model.state_dict(keep_vars=True), **self.optimizers.state(), **own}

    def _shown(self, batches: Batches, epoch: Epoch) -> Iterator[tuple[torch.Tensor, ...]]:
        """Returns an epoch's batches, with the samples' indices if the recipe prunes in any epoch."""
        batches.set_epoch(epoch.number)
        if self._easy is None or not isinstance(batches, DeviceBatches):
            return iter(batches)
        order = batches.epochs.order_within(epoch.number, self.device)
        order = self._easy.kept(order, epoch.number) if epoch.prunes else self._easy.all(order)
        size = self.recipe.batch_size
        return batches.of(order[start : start + size] for start in range(0, epoch.whole_steps * size, size))

    def train(self, *, look: bool = True) -> Iterator[Event]:
        """Trains for the recipe's whole budget, then evaluates; the caller's time between events is off the clock.

        Args:
            look: whether to evaluate during training as well, off the clock; without it divergence shows at the end.
        """
        clocks, recipe = self.clocks, self.recipe
        clocks.start_train_eval()
        if isinstance(self.model, Sprint):
            sample = self.split.train.subset(slice(0, WHITENING_IMAGES)).to(self.device)
            options = BatchOptions(batch_size=len(sample), device=self.device, augmentation=None)
            images, _ = next(iter(DeviceBatches(sample, options)))
            self.model.initialise_from(images)
        self.model.train()
        step, seen, unmeasured = 0, 0, PhaseTimer(self.device, enabled=False)
        size, batches = None, None
        # Evaluates once an epoch, but four times in a run of a single epoch, to see it learn.
        interval = math.inf if recipe.epochs > 1 else math.ceil(self.total_steps / 4)
        for epoch in self.epochs:
            if batches is None or epoch.size != size:
                size, batches = epoch.size, self.batches(epoch.size)
            shown = self._shown(batches, epoch)
            for done in range(1, epoch.steps + 1):
                self.step(shown, step, unmeasured)
                step += 1
                if self.device.type == "cpu":
                    with clocks.excluded():
                        yield StepDone(step, self.total_steps, step * recipe.batch_size, clocks.train_eval_s)
                if look and (done == epoch.steps or done % interval == 0):
                    with clocks.excluded():
                        yield self._evaluated(epoch.number + done / epoch.whole_steps, step, step - seen)
                    seen = step
        images_per_s = step * recipe.batch_size / clocks.train_eval_s
        accuracy = self.accuracy(recipe.tta)
        clocks.stop()
        yield Finished(accuracy, images_per_s, clocks.train_eval_s)

    def _evaluated(self, epoch: float, step: int, steps: int) -> Evaluated:
        """Evaluates in training; the mean loss since the last look shows divergence without a host sync per step."""
        loss = self.taken_loss() / steps
        if not math.isfinite(loss):
            raise Diverged(f"the training loss became {loss} by step {step} of {self.total_steps}")
        return Evaluated(epoch, step, self.accuracy(), loss, self.clocks.train_eval_s)

    def taken_loss(self) -> float:
        """Returns the sum of the losses of all steps since the last call, in nats; waits for the device."""
        self.ranks.add([self._loss_sum], mean=True)
        loss = self._loss_sum.item()
        self._loss_sum.zero_()
        return loss

    @torch.no_grad()
    def accuracy(self, tta: TestTimeAugmentation | None = None) -> float:
        """Returns the share of test images classified correctly, with test-time augmentation if given."""
        self.model.eval()
        self.ranks.add((b for b in self.model.buffers() if b.is_floating_point()), mean=True)  # the norms' statistics
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for number, (images, labels) in enumerate(self.test_batches()):
            if number % self.ranks.world == self.ranks.rank:
                correct += (self.predict(images, tta) == labels).sum()
        self.ranks.add([correct], mean=False)
        self.model.train()
        return correct.item() / len(self.split.test.labels)

    def predict(self, images: torch.Tensor, tta: TestTimeAugmentation | None) -> torch.Tensor:
        """Returns the class of each image, int64 [N]; it depends on that image alone."""
        logits = self._logits(images)
        if tta is not None:
            doubtful = (logits.softmax(1).amax(1) < tta.threshold).nonzero().squeeze(1)
            if len(doubtful):
                logits[doubtful] = self._six_views(images[doubtful], logits[doubtful])
        return logits.argmax(1)

    def _six_views(self, images: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
        """Averages plain, mirrored and diagonally shifted views, weighted as airbench does."""
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1), "reflect")
        logits = 0.25 * plain + 0.25 * self._logits(images.flip(3))
        for shift in (0, 2):
            view = padded[:, :, shift : shift + height, shift : shift + width]
            logits += 0.125 * (self._logits(view) + self._logits(view.flip(3)))
        return logits

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the network's logits; where a new batch shape costs time, the batch is filled up with zeros."""
        missing = self._evaluated_together - len(images)
        if missing == 0 or (self.network is self.model and self.device.type == "cpu"):
            return self.forward(images.contiguous(memory_format=torch.channels_last))
        padded = F.pad(images, (0, 0, 0, 0, 0, 0, 0, missing)).contiguous(memory_format=torch.channels_last)
        return self.forward(padded)[: len(images)]

    def _warm_up(self) -> None:
        """Compiles and captures every shape of the run, then restores all state that the steps changed."""
        unmeasured = PhaseTimer(self.device, enabled=False)
        kinds: dict[tuple[int | None, tuple[bool, ...]], tuple[Epoch, int]] = {}
        for step, epoch in enumerate(self.epoch_of_each_step()):
            kinds.setdefault((epoch.size, self.optimizers.frozen_at(step / self.total_steps)), (epoch, step))
        with restoring(self._state):
            for epoch, step in kinds.values():
                batches = self.batches(epoch.size)
                for _ in range(WARMUP_STEPS):
                    self.step(self._shown(batches, epoch), step, unmeasured)
            self.accuracy(self.recipe.tta)
        self.optimizers.set_progress(0.0)
        self.scaler = self._new_scaler()
