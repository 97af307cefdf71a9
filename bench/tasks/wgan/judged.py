"""The samples of a trained WGAN that `wallclock judge` compares with real images."""

import torch

from wallclock.bench.runs.training import Judged
from wallclock.bench.tasks.wgan.networks import noise_generator
from wallclock.bench.tasks.wgan.trainer import WganTrainer
from wallclock.loaders.batches import Split
from wallclock.loaders.pipelines.shuffled import pixels

MADE_TOGETHER = 100


@torch.no_grad()
def judged(trainer: WganTrainer, split: Split, count: int, most_real: int) -> list[Judged]:
    """Returns `count` samples of fixed noise; norms use running statistics. See `bench.runs.training.Training`."""
    trainer.generator.eval()
    noise, channels, made = noise_generator(trainer.device, 3), trainer.recipe.noise_channels, []
    for first in range(0, count, MADE_TOGETHER):
        shape = min(MADE_TOGETHER, count - first), channels, 1, 1
        made.append(pixels(trainer.generator(torch.randn(shape, device=trainer.device, generator=noise))).cpu())
    train, test = (part.images_NHWC[:most_real] for part in (split.train, split.test))
    return [Judged("samples", torch.cat(made), train, test)]
