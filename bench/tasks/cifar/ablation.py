"""The turns of a classifier's ablation; see `bench.ablation.turns`."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from wallclock.bench.ablation.kernel_share import Stand
from wallclock.bench.ablation.turns import Counted, Cycle, Turns
from wallclock.bench.engine.trainer import Step
from wallclock.bench.measure.timing import PhaseTimer, RunClocks
from wallclock.bench.tasks.cifar.trainer import Trainer
from wallclock.loaders.batches import Split
from wallclock.models.build import build_model
from wallclock.models.recipes.recipe import Recipe

IMAGES = 5000  # images that a turn's batches are drawn from


class CifarTurns(Turns):
    """Turns of optimiser steps; the plain loop is the trainer with all levers off."""

    STEP_METRIC, CPU_METRIC = "step_s", "step_cpu_s"

    def part(self, data: Split) -> Split:
        """Returns the first `IMAGES` training images, and one test image."""
        return Split(data.train.subset(slice(0, IMAGES)), data.test.subset(slice(0, 1)))

    def cycle(self, recipe: Recipe) -> Cycle:
        """Returns a cycle of one step."""
        return (("step", 1),)

    @property
    def length(self) -> int:
        """Number of steps in a turn."""
        return self.request.steps

    def steps(self, recipe: Recipe, device: torch.device, *, plain: bool) -> Iterator[Step]:
        """Returns endless steps: from the start of the schedule at full resolution, or spread over the schedule."""
        trainer = self._classifier(recipe, device)
        places: list[tuple[int | None, int]] = [(None, 0)] * self.length  # size of the images, and step of the run
        if self.request.scheduled:
            epochs = trainer.epoch_of_each_step()
            spread = (int((place + 0.5) / self.length * len(epochs)) for place in range(self.length))
            places = [(epochs[step].size, step) for step in spread]
        batches = {size: trainer.endless_batches(size) for size, _ in places}
        return _endless_steps(trainer, [(batches[size], step) for size, step in places])

    def _classifier(self, recipe: Recipe, device: torch.device) -> Trainer:
        clocks = RunClocks(device)
        trainer = Trainer(recipe, self.data, device=device, seed=self.request.seed, clocks=clocks)
        trainer.model.train()
        return trainer

    def stand(self, recipe: Recipe) -> Stand:
        """Sets up a recipe's training; see `bench.ablation.kernel_share.Stand`."""
        device = torch.device(self.request.device)
        trainer = self._classifier(recipe, device)
        batches, unmeasured = trainer.endless_batches(), PhaseTimer(device, enabled=False)

        def update() -> None:
            for optimizer in trainer.optimizers.optimizers:
                optimizer.step()

        def step() -> None:
            trainer.step(batches, 0, unmeasured)
            for parameter in trainer.model.parameters():  # gradients that `update` needs
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)

        parts = {"augment": lambda: next(batches), "optimizer": update}
        return Stand(model=trainer.model, dtype=trainer.dtype, step=step, parts=parts)

    def counted(self, variants: Mapping[str, Any]) -> Counted:
        """Returns the operations of each variant's step; in a study of devices, the bytes of gradients exchanged."""
        if self.request.choice.grid == ("devices",):
            model = build_model(self.request.recipe, len(self.data.train.classes), torch.device("meta"))
            size = float(sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad))
            return (("gradient_bytes", "B", dict.fromkeys(variants, size)),)
        return (("step_flop", "FLOP", {name: step_flop(recipe, self.data) for name, recipe in variants.items()}),)


def _endless_steps(trainer: Trainer, turn: list[tuple[Iterator[Any], int]]) -> Iterator[Step]:
    """Takes the steps of a turn, over and over; only the first yields its loss, since the host has to wait for it.

    `turn` has for each step the batches that it draws from, and its number in a run.
    """
    unmeasured = PhaseTimer(trainer.device, enabled=False)
    while True:
        for place, (batches, number) in enumerate(turn):
            if place == 0:
                trainer.taken_loss()
            trainer.step(batches, number, unmeasured)
            yield Step("step", torch.tensor(trainer.taken_loss() if place == 0 else 0.0, dtype=torch.float64))


def step_flop(recipe: Recipe, split: Split) -> float:
    """Returns the floating-point operations of a step's forward and backward at full resolution, without running it.

    Matrix products and convolutions are counted by `torch.utils.flop_counter`, a multiply-add as two operations. The
    recipe's levers do not change the count; the split gives the image size and the number of classes.
    """
    model = build_model(recipe.without(*recipe.levers()), len(split.train.classes), torch.device("meta"))
    size = split.train.images_NHWC.shape[1]
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(recipe.batch_size, 3, size, size, device="meta")).sum().backward()
    return float(counter.get_total_flops())
