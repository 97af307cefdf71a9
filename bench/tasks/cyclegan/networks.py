"""Parts shared by the plain CycleGAN loop and the trainer with levers: networks, pool draws, names of losses."""

from typing import NamedTuple

import numpy as np
import torch

from wallclock.models.networks.cyclegan import PatchDiscriminator, ResnetGenerator
from wallclock.models.recipes.cyclegan import CycleGanRecipe

LOSSES = ("gan", "cycle", "identity", "discriminator_a", "discriminator_b")


class Networks(NamedTuple):
    """The generators from domain A to B (`g_a`) and back (`g_b`), and the discriminators of their translations.

    `d_a` tells images of B from those that `g_a` makes, `d_b` images of A from those that `g_b` makes.
    """

    g_a: ResnetGenerator
    g_b: ResnetGenerator
    d_a: PatchDiscriminator
    d_b: PatchDiscriminator


def new_networks(recipe: CycleGanRecipe, device: torch.device) -> Networks:
    """Returns the recipe's networks with fresh float32 weights from torch's global generator.

    The device "meta" only checks that the networks can be built.
    """
    with torch.device("meta" if device.type == "meta" else "cpu"):
        g_a, g_b = (ResnetGenerator(blocks=recipe.blocks, channels=recipe.channels) for _ in range(2))
        d_a, d_b = (PatchDiscriminator(channels=recipe.channels) for _ in range(2))
    return Networks(g_a.to(device), g_b.to(device), d_a.to(device), d_b.to(device))


class PoolDraw(NamedTuple):
    """What happens to one fake at a slot of the pool.

    It `fills` an empty slot and is shown itself, `swaps` places with the slot's image, which is shown, or is shown and
    forgotten.
    """

    slot: int
    fills: bool
    swaps: bool


def pool_draws(recipe: CycleGanRecipe, seed: int, iteration: int, pool: int) -> list[PoolDraw]:
    """Returns a draw for each fake of an iteration's batch: slots are filled first, then half of the fakes are swapped.

    Draws depend on the seed, the iteration's number from 0 and that of the pool, 0 or 1, so that a training can resume.
    """
    random = np.random.default_rng([seed, iteration, pool])
    draws = []
    for place in range(iteration * recipe.batch_size, (iteration + 1) * recipe.batch_size):
        swaps, slot = random.random() > 0.5, int(random.integers(max(recipe.pool_size, 1)))
        if place < recipe.pool_size:
            draws.append(PoolDraw(place, fills=True, swaps=False))
        else:
            draws.append(PoolDraw(slot, fills=False, swaps=bool(swaps and recipe.pool_size)))
    return draws
