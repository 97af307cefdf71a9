"""Parts shared by the plain WGAN loop and the trainer with levers: networks, noise, the length of a stage."""

import math

import torch

from wallclock.models.networks.dcgan import Critic, Generator
from wallclock.models.recipes.wgan import Stage, WganRecipe


def new_networks(recipe: WganRecipe, device: torch.device) -> tuple[Generator, Critic]:
    """Returns the recipe's generator and critic with fresh float32 weights from torch's global generator.

    The device "meta" only checks that the networks can be built.

    Raises:
        ValueError: if networks of these sizes cannot be built.
    """
    shared = {"image_size": recipe.image_size, "n_extra_layers": recipe.n_extra_layers, "order": recipe.order}
    with torch.device("meta" if device.type == "meta" else "cpu"):
        generator = Generator(
            noise_channels=recipe.noise_channels,
            base_channels=recipe.generator_channels,
            upsampling=recipe.upsampling,
            **shared,  # type: ignore[arg-type]
        )
        critic = Critic(base_channels=recipe.critic_channels, norm=recipe.critic_norm, **shared)  # type: ignore[arg-type]
    return generator.to(device), critic.to(device)


def noise_generator(device: torch.device, seed: int) -> torch.Generator:
    """Returns a random generator for a run's noise alone, so that other random draws do not change the noise."""
    return torch.Generator(device).manual_seed(seed)


def stopped_at(stage: Stage, batches: int) -> int:
    """Returns the number of critic steps in a stage; `batches` is the number of batches in an epoch."""
    return math.ceil(stage.epochs * batches)
