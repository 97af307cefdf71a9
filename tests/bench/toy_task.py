"""A made-up task: one filter that learns to see through noise. All that a task has to say, in a few dozen lines."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import nn

from wallclock.bench.ablation.request import AblationRequest
from wallclock.bench.ablation.run import AblationRun
from wallclock.bench.ablation.turns import Turns
from wallclock.bench.engine.trainer import StatefulTrainer, Step, check_device
from wallclock.bench.runs.iterations import Figure, IterationRun, Look
from wallclock.bench.runs.request import IterationRequest, by_device, option
from wallclock.bench.runs.task import Task
from wallclock.bench.runs.training import Training
from wallclock.bench.tasks.jobs import task_job
from wallclock.loaders.data.synthetic import synthetic_split
from wallclock.loaders.pipelines.shuffled import ShuffledBatches, pixels
from wallclock.models.recipes.levers import Levered
from wallclock.models.recipes.recipe import Implementations
from wallclock.models.recipes.wgan import Adam


@dataclass(frozen=True, kw_only=True)
class ToyRecipe(Levered):
    PARTS: ClassVar = (Adam, Implementations)
    LEVERS: ClassVar = {"implementations.channels_last": False, "implementations.keep_heap": False, "precision": "fp32"}
    CHANGES: ClassVar = {"precision": "it rounds"}

    name: str = "one"
    summary: str = "one filter"
    epochs: int = 2
    batch_size: int = 8
    lr: float = 1e-2
    adam: Adam = field(default_factory=Adam)
    precision: str = "fp32"
    implementations: Implementations = field(default_factory=Implementations)


@dataclass(frozen=True, kw_only=True)
class ToyRequest(IterationRequest):
    BENCHMARK: ClassVar = "toy"
    LIMIT: ClassVar = "steps"
    WINDOW: ClassVar = "together"
    steps: int = option(0, "Stop after so many; 0 for all.")
    look_every: int = option(4, "Steps between looks.")
    seed: int = option(0, "Of weights and noise.")
    together: int = by_device(cpu=2, cuda=8)


@dataclass(frozen=True, kw_only=True)
class ToyAblationRequest(AblationRequest):
    BENCHMARK: ClassVar = "toy ablation"
    steady = staticmethod(lambda recipe: replace(recipe, epochs=10**6))


@dataclass
class Position:
    iteration: int = 0


class ToyTrainer(StatefulTrainer):
    def __init__(self, recipe, split, *, device, seed):
        check_device(recipe, device)
        net = nn.Conv2d(3, 3, 3, padding=1).to(device)
        super().__init__(recipe, {"filter": net}, Position(), device=device, seed=seed)
        self.optimizers["adam"] = self.adam([net], recipe.adam, recipe.lr, fused=True)
        self.generators["noise"] = torch.Generator(device).manual_seed(seed)
        self.batches = ShuffledBatches(split.train, recipe.batch_size, device=device, seed=seed)

    @property
    def finished(self) -> bool:
        return self.iteration >= self.recipe.epochs * len(self.batches)

    def train(self) -> Iterator[Step]:
        while not self.finished:
            images = self.batches.images(*divmod(self.iteration, len(self.batches)))
            noise = torch.randn(images.shape, device=self.device, generator=self.generators["noise"])
            losses = self.take("step", self.update, {"images": images, "noise": noise})
            self.position.iteration += 1
            yield Step("iteration", losses)

    def update(self, inputs):
        self.clear_gradients("adam")
        with self.autocast():
            seen = self.compute["filter"](inputs["images"] + inputs["noise"])
        loss = (seen.float() - inputs["images"]).square().mean()
        loss.backward()
        self.optimizers["adam"].step()
        return loss.detach()[None]


def plain_loop(recipe, split, *, device, seed) -> Iterator[Step]:
    return ToyTrainer(recipe.without(*recipe.levers()), split, device=device, seed=seed).train()


class ToyRun(IterationRun):
    LOSSES = ("loss",)
    RESULT = "final_brightness", "level"

    def look(self, trainer):
        with torch.no_grad():
            seen = pixels(trainer.networks["filter"](trainer.batches.images(0, 0)))
        brightness = seen.float().mean().item()
        return Look(
            figures=[Figure("brightness", "level", brightness)],
            lines=[f"brightness {brightness:.3g}"],
            name=f"seen-{trainer.iteration:03d}",
            pixels=seen[0].numpy(),
            title="Seen",
            caption=f"After {trainer.iteration} steps.",
        )

    def results(self, look, steady):
        return [Figure(*self.RESULT, look.figures[0].value)]


class ToyTurns(Turns):
    TRAINER, PLAIN_LOOP = ToyTrainer, plain_loop


TRAINING = Training(
    load=lambda request: synthetic_split(train=40, test=20),
    check=lambda recipe, split, device: check_device(recipe, device),
    runs={ToyRequest: ToyRun, ToyAblationRequest: AblationRun},
    turns=ToyTurns,
)
TOY = Task(
    name="toy",
    title="Toy",
    summary="Train one filter.",
    place=9,
    recipes={"one": lambda device_type: ToyRecipe()},
    recipe=ToyRecipe,
    usual="one",
    request=ToyRequest,
    ablation=ToyAblationRequest,
    training_module=__name__,
    quick=(
        task_job(
            "toy one",
            "one filter",
            lambda context: ToyRequest(recipe=ToyRecipe(epochs=1), device=context.device),
        ),
    ),  # fmt: skip
    case=("lr",),
)
