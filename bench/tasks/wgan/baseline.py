"""The lesson's training loop, unchanged: eager, NCHW, float32. Every lever is measured against it."""

from collections.abc import Iterator

import torch

from wallclock.bench.engine.trainer import Step
from wallclock.bench.tasks.wgan.networks import new_networks, noise_generator, stopped_at
from wallclock.loaders.batches import Split
from wallclock.loaders.pipelines.shuffled import ShuffledBatches
from wallclock.models.recipes.wgan import Adam, WganRecipe


def plain_loop(recipe: WganRecipe, split: Split, *, device: torch.device, seed: int) -> Iterator[Step]:
    """Trains through the recipe's stages without its levers, and yields after each step.

    The recipe's `precision` and `implementations` have no effect; held-out images are left out of training. The seed is
    that of batch order and noise; the caller has set torch's global generators, which draw weights, to it.

    Source: fast.ai 2018, part 2, lesson 12, `train`; the clamp and both batch sizes are those of the lesson
    """
    netG, netD = new_networks(recipe, device)
    noise = noise_generator(device, seed)
    batches = ShuffledBatches(split.train, recipe.batch_size, device=device, seed=seed)

    def create_noise(b: int) -> torch.Tensor:
        return torch.randn(b, recipe.noise_channels, 1, 1, device=device, generator=noise)

    def set_trainable(net: torch.nn.Module, trainable: bool) -> None:
        for p in net.parameters():
            p.requires_grad_(trainable)

    def new_optimizer(net: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
        rule = recipe.optimizer
        if isinstance(rule, Adam):
            return torch.optim.Adam(net.parameters(), lr=lr, betas=(rule.beta1, rule.beta2), eps=rule.eps)
        return torch.optim.RMSprop(net.parameters(), lr=lr, alpha=rule.alpha, eps=rule.eps)

    optimizerD, optimizerG = (new_optimizer(net, recipe.stages[0].lr) for net in (netD, netG))
    netD.train()
    netG.train()
    before = 0
    for stage in recipe.stages:
        for optimizer in (optimizerD, optimizerG):
            optimizer.param_groups[0]["lr"] = stage.lr
        gen_iterations, n = 0, stopped_at(stage, len(batches))
        i = 0
        while i < n:
            set_trainable(netD, True)
            set_trainable(netG, False)
            d_iters = recipe.critic_steps.before(gen_iterations, stage)
            j = 0
            epoch_ends = min(n, (i // len(batches) + 1) * len(batches))
            while j < d_iters and i < epoch_ends:
                if recipe.clamp:
                    for p in netD.parameters():
                        p.data.clamp_(-recipe.clamp, recipe.clamp)
                real = batches.images(before + i // len(batches), i % len(batches))
                j += 1
                i += 1
                real_loss = netD(real).mean()
                fake = netG(create_noise(len(real)))
                fake_loss = netD(fake.data).mean()
                netD.zero_grad()
                lossD = real_loss - fake_loss
                objective = lossD
                if recipe.gradient_penalty:
                    alpha = torch.rand(len(real), 1, 1, 1, device=device, generator=noise)
                    between = (alpha * real + (1 - alpha) * fake.data).requires_grad_()
                    (slope,) = torch.autograd.grad(netD(between).sum(), between, create_graph=True)
                    penalty = ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
                    objective = lossD + recipe.gradient_penalty * penalty
                objective.backward()
                optimizerD.step()
                yield Step("critic", lossD.detach())
            set_trainable(netD, False)
            set_trainable(netG, True)
            netG.zero_grad()
            lossG = netD(netG(create_noise(recipe.generator_batch_size))).mean()
            lossG.backward()
            optimizerG.step()
            yield Step("generator", lossG.detach())
            gen_iterations += 1
        before += -(-n // len(batches))
