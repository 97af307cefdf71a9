"""One CycleGAN training with the recipe's levers: what happens inside the clock, iteration by iteration."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from wallclock.bench.engine.cuda_graphs import Inputs
from wallclock.bench.engine.trainer import StatefulTrainer, Step, check_device, set_lr
from wallclock.bench.tasks.cyclegan.networks import new_networks, pool_draws
from wallclock.loaders.data.unpaired import Unpaired
from wallclock.loaders.pipelines.shuffled import pixels, unit_range
from wallclock.loaders.pipelines.unpaired import UnpairedBatches
from wallclock.models.recipes.cyclegan import CycleGanRecipe


@dataclass
class Position:
    """The progress of a training between two iterations."""

    epoch: int = 0
    batch: int = 0
    iteration: int = 0


def check_runnable(recipe: CycleGanRecipe, data: Unpaired, device: torch.device) -> None:
    """Raises ValueError if the recipe cannot run on this device or these images; names the change that helps."""
    check_device(recipe, device)
    UnpairedBatches(data.train, recipe.batch_size, image_size=recipe.image_size, device=torch.device("cpu"))


class Pool:
    """A pool of `size` earlier fakes that a discriminator may be shown again, in a tensor that a CUDA graph can hold.

    The pool takes the shape, layout, dtype and device of an image [1, 3, S, S].
    """

    def __init__(self, size: int, image: torch.Tensor) -> None:
        last = image.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        self.images = image.new_zeros((max(size, 1), *image.shape[1:])).contiguous(memory_format=layout)

    def query(self, fakes: torch.Tensor, slots: torch.Tensor, fills: torch.Tensor, swaps: torch.Tensor) -> torch.Tensor:
        """Returns as many images as it is given, some of them replaced by older ones.

        Args:
            fakes: new fakes, [B, 3, S, S].
            slots: slot drawn for each fake, int64 [B], on the device like the next two.
            fills: whether each fake fills its slot, bool [B]; see `PoolDraw`.
            swaps: whether each fake is swapped for the image in its slot, bool [B].
        """
        shown = []
        for place in range(len(fakes)):  # one after the other: the second may draw what the first has put there
            fake, slot = fakes[place : place + 1], slots[place : place + 1]
            old, swap = self.images.index_select(0, slot), swaps[place]
            shown.append(torch.where(swap, old, fake))
            self.images.index_copy_(0, slot, torch.where(swap | fills[place], fake, old))
        return torch.cat(shown)


class CycleGanTrainer(StatefulTrainer):
    """A recipe's networks, optimisers, pools and images of both domains for one seed; see `StatefulTrainer`.

    The caller has put torch's generators into the seed's state (`bench.measure.numerics`).

    Raises:
        ValueError: if the recipe cannot run here.
    """

    recipe: CycleGanRecipe
    position: Position

    def __init__(self, recipe: CycleGanRecipe, data: Unpaired, *, device: torch.device, seed: int) -> None:
        check_runnable(recipe, data, device)
        nets = new_networks(recipe, device)
        super().__init__(recipe, nets._asdict(), Position(), device=device, seed=seed)
        self.nets = nets
        self.batches = UnpairedBatches(data.train, recipe.batch_size, image_size=recipe.image_size, **self.delivery)
        image = torch.empty(1, 3, recipe.image_size, recipe.image_size, device=device)
        image = image.contiguous(memory_format=self.memory_format)
        self.pools = Pool(recipe.pool_size, image), Pool(recipe.pool_size, image)
        self.buffers = {f"pool_{name}": pool.images for name, pool in zip("ab", self.pools, strict=True)}
        fused = recipe.implementations.fused_adam or None
        self.generator_optimizer = self.adam([nets.g_a, nets.g_b], recipe.adam, recipe.lr, fused=fused)
        self.discriminator_optimizer = self.adam([nets.d_a, nets.d_b], recipe.adam, recipe.lr, fused=fused)
        self.optimizers = {"generators": self.generator_optimizer, "discriminators": self.discriminator_optimizer}

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done."""
        return self.position.epoch >= self.recipe.epochs

    def train(self) -> Iterator[Step]:
        """Trains from the present position to the end of the last epoch; yields after each iteration.

        The losses of a step are those that `bench.tasks.cyclegan.networks.LOSSES` names, [5].
        """
        at = self.position
        while not self.finished:
            set_lr(self.optimizers.values(), self.recipe.lr * self.recipe.lr_factor(at.epoch))
            real_a, real_b = self.batches.images(at.epoch, at.batch)
            inputs = {"real_a": real_a, "real_b": real_b, **self._draws(at.iteration)}
            losses = self.take("iteration", self.update, inputs)
            at.iteration, at.batch = at.iteration + 1, at.batch + 1
            if at.batch == len(self.batches):
                at.epoch, at.batch = at.epoch + 1, 0
            yield Step("iteration", losses)

    def _draws(self, iteration: int) -> Inputs:
        """Returns the draws of both pools, on the device: int64 slots [2, B], bool fills and swaps [2, B]."""
        drawn = torch.tensor([pool_draws(self.recipe, self.seed, iteration, pool) for pool in (0, 1)])
        if self.device.type == "cuda":
            drawn = drawn.pin_memory().to(self.device, non_blocking=True)
        slots, fills, swaps = drawn.unbind(2)
        return {"slots": slots, "fills": fills.bool(), "swaps": swaps.bool()}

    def through(self, name: str, images: torch.Tensor) -> torch.Tensor:
        """Returns the output of a network, by its name in `Networks`, for a batch of images, in float32 or wider."""
        with self.autocast():
            return self.compute[name](images).to(torch.get_default_dtype())

    def update(self, inputs: Inputs) -> torch.Tensor:
        """Takes one iteration on given images and pool draws, without random draws, so that a CUDA graph can hold it.

        Args:
            inputs: `real_a` and `real_b` [B, 3, S, S]; `slots`, `fills` and `swaps` [2, B] of the pools.

        Returns:
            The losses, [5]; see `bench.tasks.cyclegan.networks.LOSSES`.
        """
        recipe, real_a, real_b = self.recipe, inputs["real_a"], inputs["real_b"]
        fake_b, fake_a, losses = self._generators(real_a, real_b)
        for net in (self.nets.d_a, self.nets.d_b):
            net.requires_grad_(True)
        self.clear_gradients("discriminators")
        for place, (name, real, fake) in enumerate((("d_a", real_b, fake_b), ("d_b", real_a, fake_a))):
            fake = fake.detach()
            if recipe.pool_size:
                draws = (inputs[part][place] for part in ("slots", "fills", "swaps"))
                fake = self.pools[place].query(fake, *draws)
            loss = 0.5 * self._discriminator_loss(name, real, fake)
            loss.backward()
            losses.append(loss.detach())
        self.discriminator_optimizer.step()
        return torch.stack(losses)

    def _generators(
        self, real_a: torch.Tensor, real_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Takes the generators' step; returns their fakes and losses."""
        recipe = self.recipe
        for net in (self.nets.d_a, self.nets.d_b):
            net.requires_grad_(False)
        self.clear_gradients("generators")
        identity_weight = recipe.cycle_weight * recipe.identity_weight
        if identity_weight and recipe.implementations.concatenated:
            count = len(real_a)
            fake_b, same_b = self.through("g_a", torch.cat((real_a, real_b))).split(count)
            fake_a, same_a = self.through("g_b", torch.cat((real_b, real_a))).split(count)
        else:
            fake_b, fake_a = self.through("g_a", real_a), self.through("g_b", real_b)
            if identity_weight:
                same_b, same_a = self.through("g_a", real_b), self.through("g_b", real_a)
        again_a, again_b = self.through("g_b", fake_b), self.through("g_a", fake_a)
        gan = _squared(self.through("d_a", fake_b), 1.0) + _squared(self.through("d_b", fake_a), 1.0)
        cycle = recipe.cycle_weight * (F.l1_loss(again_a, real_a) + F.l1_loss(again_b, real_b))
        identity = torch.zeros_like(gan)
        if identity_weight:
            identity = identity_weight * (F.l1_loss(same_b, real_b) + F.l1_loss(same_a, real_a))
        (gan + cycle + identity).backward()
        self.generator_optimizer.step()
        return fake_b, fake_a, [gan.detach(), cycle.detach(), identity.detach()]

    def _discriminator_loss(self, name: str, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        if self.recipe.implementations.concatenated:
            of_real, of_fake = self.through(name, torch.cat((real, fake))).split(len(real))
        else:
            of_real, of_fake = self.through(name, real), self.through(name, fake)
        return _squared(of_real, 1.0) + _squared(of_fake, 0.0)

    @torch.no_grad()
    def through_generator(self, name: str, images: torch.Tensor) -> torch.Tensor:
        """Returns translations of images [N, 3, S, S] in [-1, 1], on the device, without compiled code and CUDA graphs.

        `name` is that of the generator, "g_a" or "g_b".
        """
        with self.autocast():
            images = images.contiguous(memory_format=self.memory_format)
            return self.networks[name](images).to(torch.get_default_dtype())

    def translated(self, name: str, images_NHWC: torch.Tensor) -> torch.Tensor:
        """Returns a generator's translations of images, uint8 [N, S, S, 3] on any device, one by one on the CPU."""
        made = [pixels(self.through_generator(name, unit_range(i[None].to(self.device)))) for i in images_NHWC]
        return torch.cat(made).cpu()


def _squared(scores: torch.Tensor, target: float) -> torch.Tensor:
    """Returns the least-squares loss of scores against one target."""
    return (scores - target).square().mean()
