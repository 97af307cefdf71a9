"""CycleGAN iterations per second: the rates, losses and pictures of one training."""

import functools
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from wallclock.bench.ablation.run import AblationRun
from wallclock.bench.engine.checkpoint import weights_of
from wallclock.bench.runs.iterations import Figure, IterationRun, Look, Window
from wallclock.bench.runs.record import change_notes
from wallclock.bench.runs.training import Training
from wallclock.bench.tasks.cyclegan.ablation import CycleGanTurns
from wallclock.bench.tasks.cyclegan.cycle_error import NOISE, cycle_error
from wallclock.bench.tasks.cyclegan.judged import judged
from wallclock.bench.tasks.cyclegan.networks import LOSSES
from wallclock.bench.tasks.cyclegan.requests import CycleGanAblationRequest, CycleGanRequest
from wallclock.bench.tasks.cyclegan.trainer import CycleGanTrainer, check_runnable
from wallclock.loaders.data.unpaired import DOMAINS, Unpaired, load_unpaired
from wallclock.models.networks.cyclegan import ResnetGenerator
from wallclock.models.recipes.cyclegan import CycleGanRecipe

PICTURED = 4  # test images of each domain
FULL_ITERATIONS = 200 * 1334  # the published training on horses and zebras, whose longer domain has 1,334 images
LOOKED_AT = 32  # test images of each domain, for the cycle's error
DIRECTIONS = {"a-to-b": "g_a", "b-to-a": "g_b"}
WAYS = (("g_a", "g_b"), ("g_b", "g_a"))  # from each domain to the other, and back


load_data = functools.lru_cache(maxsize=1)(load_unpaired)  # a suite runs job after job on the same data


class CycleGanRun(IterationRun):
    """A run of a CycleGAN; a look measures the cycle errors on test images, and pictures translations."""

    LOSSES = tuple(f"loss_{name}" for name in LOSSES)
    IMAGES = 2
    RESULT = "cycle_error", "fraction"

    request: CycleGanRequest
    data: Unpaired

    def look(self, trainer: CycleGanTrainer) -> Look:
        """Measures the cycle errors on test images, and draws the grid of translations."""
        figures, lines = list[Figure](), []
        for name, images, (there, back) in zip(DOMAINS, self.data.test, WAYS, strict=True):
            error = cycle_error(trainer, there, back, images[:LOOKED_AT])
            hidden = cycle_error(trainer, there, back, images[:LOOKED_AT], NOISE)
            figures.append(Figure("cycle_error", "fraction", error, {"domain": name}))
            figures.append(Figure("cycle_error_with_noise", "fraction", hidden, {"domain": name}))
            lines.append(
                f"iteration {trainer.iteration:,}: cycle of {name} is off by {error:.3g}, and by "
                f"{hidden:.3g} with noise on the way"
            )
        return Look(
            figures=figures,
            lines=lines,
            name=f"translations-{trainer.iteration:07d}",
            pixels=self._grid(trainer),
            title=f"Translations of {self.request.recipe.name}",
            caption=f"Test images after {trainer.iteration:,} iterations: A, as B, back; B, as A, back.",
        )

    def _grid(self, trainer: CycleGanTrainer) -> npt.NDArray[np.uint8]:
        """Returns a picture whose rows show an image, its translation, and that one back, both domains side by side."""
        columns = []
        for test, (there, back) in zip(self.data.test, WAYS, strict=True):
            images = test[:PICTURED]
            fakes = trainer.translated(there, images)
            columns += [images, fakes, trainer.translated(back, fakes)]
        count = min(map(len, columns))
        rows = [torch.cat([column[row] for column in columns], dim=1) for row in range(count)]
        return torch.cat(rows).numpy()

    def results(self, look: Look, steady: Sequence[Window]) -> Sequence[Figure]:
        """Returns the hours that the published training would take at the median rate."""
        if not steady:
            return ()
        rate = statistics.median(window.count / window.seconds for window in steady)
        of = {"projected_iterations": FULL_ITERATIONS}
        return [Figure("projected_training_h", "h, a projection", FULL_ITERATIONS / rate / 3600, of)]


def translator(recipe: CycleGanRecipe, tensors: Mapping[str, torch.Tensor], direction: str) -> ResnetGenerator:
    """Returns the generator of a direction; see `bench.runs.training.Training`."""
    if direction not in DIRECTIONS:
        raise ValueError(f"no direction '{direction}'; directions: {', '.join(DIRECTIONS)}")
    generator = ResnetGenerator(blocks=recipe.blocks, channels=recipe.channels)
    generator.load_state_dict(weights_of(tensors, DIRECTIONS[direction]))
    return generator.eval()


TRAINING = Training(
    load=lambda request: load_data(request.data, request.recipe.load_size, request.recipe.image_size),
    check=check_runnable,
    runs={CycleGanRequest: CycleGanRun, CycleGanAblationRequest: AblationRun},
    turns=CycleGanTurns,
    notes=lambda recipe, data: (*change_notes(recipe), *(f"skipped: {why}" for why in data.skipped)),
    judged=judged,
    translator=translator,
)
