"""The turns of a CycleGAN's ablation; see `bench.ablation.turns`."""

from dataclasses import replace

from wallclock.bench.ablation.turns import Turns
from wallclock.bench.tasks.cyclegan.baseline import plain_loop
from wallclock.bench.tasks.cyclegan.trainer import CycleGanTrainer
from wallclock.loaders.data.unpaired import Unpaired

IMAGES = 64  # images of each domain that a turn's batches are drawn from


class CycleGanTurns(Turns):
    """Turns of CycleGAN iterations."""

    TRAINER, PLAIN_LOOP = CycleGanTrainer, plain_loop
    IMAGES = 2

    def part(self, data: Unpaired) -> Unpaired:
        """Returns the data with only the first training images of each domain."""
        a, b = (images[:IMAGES] for images in data.train)
        return replace(data, train=(a, b))
