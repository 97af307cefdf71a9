"""The published training loop, unchanged: eager, NCHW, float32. Every lever is measured against it."""

import itertools
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from wallclock.bench.engine.trainer import Step, set_lr
from wallclock.bench.tasks.cyclegan.networks import PoolDraw, new_networks, pool_draws
from wallclock.loaders.data.unpaired import Unpaired
from wallclock.loaders.pipelines.unpaired import UnpairedBatches
from wallclock.models.recipes.cyclegan import CycleGanRecipe


class ImagePool:
    """A list of earlier fakes that a discriminator may be shown again."""

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []

    def query(self, images: torch.Tensor, draws: list[PoolDraw]) -> torch.Tensor:
        """Returns as many images as it is given, some of them replaced by older ones."""
        shown = []
        for image, draw in zip(images.unsqueeze(1), draws, strict=True):
            if draw.fills:
                self.images.append(image)
            elif draw.swaps:
                image, self.images[draw.slot] = self.images[draw.slot].clone(), image
            shown.append(image)
        return torch.cat(shown)


def plain_loop(recipe: CycleGanRecipe, data: Unpaired, *, device: torch.device, seed: int) -> Iterator[Step]:
    """Trains through the recipe's epochs without its levers, and yields after each iteration.

    The recipe's `precision` and `implementations` have no effect; test images are left out of training. The seed is
    that of batches and pools; the caller has set torch's global generators, which draw weights, to it.

    Source: https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix, `CycleGANModel.optimize_parameters`
    """
    nets = new_networks(recipe, device)
    netG_A, netG_B, netD_A, netD_B = nets.g_a, nets.g_b, nets.d_a, nets.d_b
    betas = (recipe.adam.beta1, recipe.adam.beta2)
    optimizer_G = torch.optim.Adam(
        itertools.chain(netG_A.parameters(), netG_B.parameters()), lr=recipe.lr, betas=betas, eps=recipe.adam.eps
    )
    optimizer_D = torch.optim.Adam(
        itertools.chain(netD_A.parameters(), netD_B.parameters()), lr=recipe.lr, betas=betas, eps=recipe.adam.eps
    )
    batches = UnpairedBatches(data.train, recipe.batch_size, image_size=recipe.image_size, device=device, seed=seed)
    pools = ImagePool(), ImagePool()
    iteration = 0

    def gan_loss(score: torch.Tensor, real: bool) -> torch.Tensor:
        return F.mse_loss(score, torch.full_like(score, float(real)))

    def set_requires_grad(nets: list[nn.Module], requires_grad: bool) -> None:
        for net in nets:
            for p in net.parameters():
                p.requires_grad_(requires_grad)

    for epoch in range(recipe.epochs):
        set_lr((optimizer_G, optimizer_D), recipe.lr * recipe.lr_factor(epoch))
        for real_A, real_B in batches.epoch(epoch):
            fake_B = netG_A(real_A)
            rec_A = netG_B(fake_B)
            fake_A = netG_B(real_B)
            rec_B = netG_A(fake_A)

            set_requires_grad([netD_A, netD_B], False)
            optimizer_G.zero_grad()
            loss_idt = torch.zeros((), device=device)
            if recipe.identity_weight:
                weight = recipe.cycle_weight * recipe.identity_weight
                loss_idt = weight * (F.l1_loss(netG_A(real_B), real_B) + F.l1_loss(netG_B(real_A), real_A))
            loss_gan = gan_loss(netD_A(fake_B), True) + gan_loss(netD_B(fake_A), True)
            loss_cycle = recipe.cycle_weight * (F.l1_loss(rec_A, real_A) + F.l1_loss(rec_B, real_B))
            (loss_gan + loss_cycle + loss_idt).backward()
            optimizer_G.step()

            set_requires_grad([netD_A, netD_B], True)
            optimizer_D.zero_grad()
            losses_D = []
            for place, (netD, real, fake) in enumerate(((netD_A, real_B, fake_B), (netD_B, real_A, fake_A))):
                shown = pools[place].query(fake.detach(), pool_draws(recipe, seed, iteration, place))
                loss_D = 0.5 * (gan_loss(netD(real), True) + gan_loss(netD(shown), False))
                loss_D.backward()
                losses_D.append(loss_D.detach())
            optimizer_D.step()
            iteration += 1
            yield Step("iteration", torch.stack([*(t.detach() for t in (loss_gan, loss_cycle, loss_idt)), *losses_D]))
