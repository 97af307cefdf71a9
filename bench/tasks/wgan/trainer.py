"""One WGAN training run with the recipe's levers: what happens inside the clock, step by step."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from wallclock.bench.engine.trainer import StatefulTrainer, Step, check_device, set_lr
from wallclock.bench.tasks.wgan.networks import new_networks, noise_generator, stopped_at
from wallclock.kernels.rmsprop_clamp import RMSpropClamp
from wallclock.loaders.batches import Dataset, Split
from wallclock.loaders.pipelines.shuffled import ShuffledBatches, pixels, unit_range
from wallclock.models.networks.dcgan import MapToScore, NoiseToMap
from wallclock.models.recipes.wgan import Adam, WganRecipe

LOOK_IMAGES = 512  # images of each set, for an estimate of the distance


def wide(x: torch.Tensor) -> torch.Tensor:
    """Returns an output of autocast in the dtype of the weights: means and losses are never taken in 16 bits."""
    return x.to(torch.get_default_dtype())


@dataclass
class Position:
    """The progress of a training between two generator iterations: its stage, from 0, the steps done in it and in all.

    `epochs_before` are the epochs begun in earlier stages.
    """

    stage: int = 0
    generator_iterations: int = 0
    critic_steps: int = 0
    epochs_before: int = 0
    total_critic_steps: int = 0
    total_generator_iterations: int = 0


def check_runnable(recipe: WganRecipe, split: Split, device: torch.device) -> None:
    """Raises ValueError if the networks cannot be built, or cannot run on this device or data; names what helps."""
    new_networks(recipe, torch.device("meta"))
    check_device(recipe, device)
    edge = split.train.images_NHWC.shape[1]
    if edge != recipe.image_size:
        raise ValueError(f"the images have {edge} pixels; expected image_size={recipe.image_size}")
    ShuffledBatches(split.train, recipe.batch_size, device=torch.device("cpu"))


class WganTrainer(StatefulTrainer):
    """A recipe's networks, optimisers and images; an iteration is a generator step with the critic steps before it.

    The caller has put torch's generators into the seed's state (`bench.measure.numerics`). The images have the recipe's
    size; held-out images are left out of training. See `StatefulTrainer`.

    Raises:
        ValueError: if the recipe cannot run here.
    """

    recipe: WganRecipe
    position: Position

    def __init__(self, recipe: WganRecipe, split: Split, *, device: torch.device, seed: int) -> None:
        check_runnable(recipe, split, device)
        self.generator, self.critic = new_networks(recipe, device)
        nets = {"critic": self.critic, "generator": self.generator}
        super().__init__(recipe, nets, Position(), device=device, seed=seed)
        for layer in (layer for net in nets.values() for layer in net.modules()):
            if isinstance(layer, NoiseToMap | MapToScore):
                layer.as_product = recipe.implementations.products
        self.noise = noise_generator(device, seed)
        self.generators["noise"] = self.noise
        self.batches = ShuffledBatches(split.train, recipe.batch_size, **self.delivery)
        self.critic_optimizer, self.generator_optimizer = self._optimizer(self.critic), self._optimizer(self.generator)
        self.optimizers = {"critic_optimizer": self.critic_optimizer, "generator_optimizer": self.generator_optimizer}

    def _optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        rule, lr = self.recipe.optimizer, self.recipe.stages[0].lr
        if isinstance(rule, Adam):
            return self.adam([net], rule, lr)
        return RMSpropClamp(
            net.parameters(),
            lr=self.lr(lr),
            alpha=rule.alpha,
            eps=rule.eps,
            clamp=self.recipe.clamp if net is self.critic and self.recipe.clamp else None,
            implementation="triton" if self.recipe.implementations.optimizer == "triton" else "eager",
        )

    @property
    def finished(self) -> bool:
        """Whether the last stage is done."""
        return self.position.stage >= len(self.recipe.stages)

    @property
    def iteration(self) -> int:
        """The number of generator steps done."""
        return self.position.total_generator_iterations

    @property
    def step(self) -> int:
        """The number of critic steps done."""
        return self.position.total_critic_steps

    @property
    def pace(self) -> int:
        """Number of critic steps that the recipe has before the next generator step; 0 when all is done.

        At the end of an epoch fewer may be left.
        """
        at, recipe = self.position, self.recipe
        return 0 if self.finished else recipe.critic_steps.before(at.generator_iterations, recipe.stages[at.stage])

    def iterations(self) -> Iterator[torch.Tensor]:
        """Trains as `train`; yields the mean critic loss and the generator's loss of each iteration, [2]."""
        critic: list[torch.Tensor] = []
        for step in self.train():
            if step.kind == "critic":
                critic.append(step.losses)
            else:
                yield torch.stack([torch.stack(critic).mean(), step.losses])
                critic = []

    def train(self) -> Iterator[Step]:
        """Trains from the present position to the end of the last stage; yields after each step.

        When a generator step is yielded, `position` is the end of a cycle, where a checkpoint can be written.
        """
        recipe, at = self.recipe, self.position
        self.generator.train()
        self.critic.train()
        while not self.finished:
            stage, epoch = recipe.stages[at.stage], len(self.batches)
            steps = stopped_at(stage, epoch)
            set_lr(self.optimizers.values(), stage.lr)
            epoch_ends = min(steps, (at.critic_steps // epoch + 1) * epoch)
            count = min(self.pace, epoch_ends - at.critic_steps)
            if isinstance(self.critic_optimizer, RMSpropClamp):
                with torch.no_grad():
                    self.critic_optimizer.clamp_()
            for index in range(at.critic_steps, at.critic_steps + count):
                real = self.batches.images(at.epochs_before + index // epoch, index % epoch)
                last = index + 1 == at.critic_steps + count
                yield Step("critic", self.critic_step(real, clamp=not last))
            at.critic_steps += count
            at.total_critic_steps += count
            loss = self.generator_step()
            at.generator_iterations += 1
            at.total_generator_iterations += 1
            if at.critic_steps == steps:
                at.stage, at.generator_iterations, at.critic_steps = at.stage + 1, 0, 0
                at.epochs_before += -(-steps // epoch)
            yield Step("generator", loss)

    def drawn_noise(self, count: int) -> torch.Tensor:
        """Returns fresh noise [count, Z, 1, 1]."""
        return torch.randn(count, self.recipe.noise_channels, 1, 1, device=self.device, generator=self.noise)

    def critic_step(self, real: torch.Tensor, *, clamp: bool) -> torch.Tensor:
        """Takes one critic step on real images [N, 3, S, S], in the recipe's memory format, and as many fakes.

        Returns D(real) - D(fake), a scalar on the device; `clamp` also clamps the weights for a step that follows.
        """
        inputs = {"real": real, "noise": self.drawn_noise(len(real))}
        if self.recipe.gradient_penalty:
            inputs["mix"] = torch.rand(len(real), 1, 1, 1, device=self.device, generator=self.noise)
        return self.take(f"critic, clamp {clamp}", lambda given: self.update_critic(**given, clamp=clamp), inputs)

    def generator_step(self) -> torch.Tensor:
        """Takes one generator step; returns D(fake), a scalar on the device."""
        inputs = {"noise": self.drawn_noise(self.recipe.generator_batch_size)}
        return self.take("generator", lambda given: self.update_generator(**given), inputs)

    def update_critic(
        self, real: torch.Tensor, noise: torch.Tensor, mix: torch.Tensor | None = None, *, clamp: bool
    ) -> torch.Tensor:
        """Takes one critic step on given images and noise, without random draws, so that a CUDA graph can hold it.

        Args:
            real: real images, [N, 3, S, S].
            noise: noise of the fakes, [N, Z, 1, 1].
            mix: share of the real image where the gradient penalty is taken, [N, 1, 1, 1]; None without a penalty.
            clamp: whether the update ends with the clamp.
        """
        recipe, optimizer = self.recipe, self.critic_optimizer
        self.clear_gradients("critic_optimizer")
        with self.autocast():
            real_score = wide(self.compute["critic"](real)).mean()
        if recipe.implementations.early_backward:
            real_score.backward()
        with self.autocast(), torch.set_grad_enabled(recipe.implementations.generator_graph):
            fake = self.compute["generator"](noise)
        fake = wide(fake.detach())
        with self.autocast():
            fake_score = wide(self.compute["critic"](fake)).mean()
        loss = real_score.detach() - fake_score.detach()
        objective = -fake_score if recipe.implementations.early_backward else real_score - fake_score
        if mix is not None:
            objective = objective + recipe.gradient_penalty * self._penalty(mix * real + (1 - mix) * fake)
        objective.backward()
        if isinstance(optimizer, RMSpropClamp):
            optimizer.step(clamp=clamp)
        else:
            optimizer.step()
        return loss

    def _penalty(self, between: torch.Tensor) -> torch.Tensor:
        between.requires_grad_()
        with self.autocast():
            scores = wide(self.compute["critic"](between)).sum()
        (slope,) = torch.autograd.grad(scores, between, create_graph=True)
        return ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()

    def update_generator(self, noise: torch.Tensor) -> torch.Tensor:
        """Takes one generator step on given noise [N, Z, 1, 1], with the critic's weights frozen."""
        self.critic.requires_grad_(False)
        self.clear_gradients("generator_optimizer")
        with self.autocast():
            loss = wide(self.compute["critic"](self.compute["generator"](noise))).mean()
        loss.backward()
        self.generator_optimizer.step()
        self.critic.requires_grad_(True)
        return loss.detach()

    @torch.no_grad()
    def distance(self, dataset: Dataset) -> float:
        """Returns an estimate of the earth mover's distance to a data set, D(fake) - D(x), up to the critic's slope.

        It uses the first `LOOK_IMAGES` images, one set of fakes for every look, and batch statistics as in training;
        buffers and noise are left unchanged. Images learnt by heart show as a larger distance to held-out images. The
        data set holds at least one batch, of the recipe's size.
        """
        count = min(len(dataset), LOOK_IMAGES)
        size = min(self.recipe.batch_size, count)
        noise = noise_generator(self.device, 1)
        kept = [(buffer, buffer.clone()) for net in (self.generator, self.critic) for buffer in net.buffers()]
        scores = torch.zeros((), device=self.device)
        for start in range(0, count - size + 1, size):
            real = unit_range(dataset.images_NHWC[start : start + size].to(self.device))
            z = torch.randn(size, self.recipe.noise_channels, 1, 1, device=self.device, generator=noise)
            with self.autocast():
                for sign, images in ((1, self.generator(z)), (-1, real.contiguous(memory_format=self.memory_format))):
                    scores += sign * wide(self.critic(wide(images))).mean()
        for buffer, before in kept:
            buffer.copy_(before)
        return scores.item() / (count // size)

    @torch.no_grad()
    def samples(self, count: int) -> torch.Tensor:
        """Returns `count` fakes of one fixed noise for every look, uint8 [count, S, S, 3].

        Norms use running statistics, so that no image depends on its neighbours.
        """
        noise = noise_generator(self.device, 2)
        z = torch.randn(count, self.recipe.noise_channels, 1, 1, device=self.device, generator=noise)
        self.generator.eval()
        with self.autocast():
            images = self.generator(z)
        self.generator.train()
        return pixels(images).cpu()
