"""The translations of a trained CycleGAN that `wallclock judge` compares with real images."""

from collections.abc import Iterator

from wallclock.bench.runs.training import Judged
from wallclock.bench.tasks.cyclegan.trainer import CycleGanTrainer
from wallclock.loaders.data.unpaired import Unpaired


def judged(trainer: CycleGanTrainer, data: Unpaired, count: int, most_real: int) -> Iterator[Judged]:
    """Yields the translations of all test images, both ways; see `bench.runs.training.Training`."""
    recipe = trainer.recipe
    margin = (recipe.load_size - recipe.image_size) // 2
    inside = slice(margin, margin + recipe.image_size)
    for name, source, target, title in (("g_a", 0, 1, "A to B"), ("g_b", 1, 0, "B to A")):
        trained_on = data.train[target][:most_real, inside, inside]
        yield Judged(title, trainer.translated(name, data.test[source][:]), trained_on, data.test[target][:])
