"""Measures a CycleGAN's cycle error, and whether the cycle relies on signals hidden in the translations."""

import torch

from wallclock.bench.tasks.cyclegan.trainer import CycleGanTrainer
from wallclock.loaders.pipelines.shuffled import unit_range

NOISE = 0.02  # standard deviation, of values from -1 to 1: below what an eye sees in a photograph


@torch.no_grad()
def cycle_error(trainer: CycleGanTrainer, there: str, back: str, images_NHWC: torch.Tensor, noise: float = 0) -> float:
    """Returns the mean absolute difference between images and their translation there and back, for values in [-1, 1].

    Args:
        trainer: the trainer that holds the generators.
        there: name of the generator to the other domain.
        back: name of the generator back to the domain of the images.
        images_NHWC: images of one domain, uint8 [N, S, S, 3].
        noise: standard deviation of the noise that is added to the translation before it is translated back. If the
            error with noise is far above that without, the way back reads a signal hidden in the translation rather
            than the picture that it shows: Chu, Zhmoginov, Sandler, https://arxiv.org/abs/1712.02950
    """
    random = torch.Generator().manual_seed(0)
    total = 0.0
    for image in images_NHWC:
        fake = trainer.through_generator(there, unit_range(image[None].to(trainer.device)))
        if noise:
            fake = fake + noise * torch.randn(fake.shape, generator=random).to(fake)
        again = trainer.through_generator(back, fake)
        total += (again - unit_range(image[None].to(trainer.device))).abs().mean().item()
    return total / len(images_NHWC)
