"""WGAN iterations per second: the rates, losses and samples of one training."""

import functools
from collections.abc import Sequence

from wallclock.bench.ablation.run import AblationRun
from wallclock.bench.runs.iterations import Figure, IterationRun, Look, Window
from wallclock.bench.runs.training import Training
from wallclock.bench.tasks.wgan.ablation import WganTurns
from wallclock.bench.tasks.wgan.judged import judged
from wallclock.bench.tasks.wgan.requests import WganAblationRequest, WganRequest
from wallclock.bench.tasks.wgan.trainer import WganTrainer, check_runnable
from wallclock.loaders.batches import Split
from wallclock.loaders.data.images import load_images

GALLERY_EDGE = 8  # images along each side


load_split = functools.lru_cache(maxsize=1)(load_images)  # a suite runs job after job on the same data


class WganRun(IterationRun):
    """A WGAN run; a look estimates the earth mover's distance to training and held-out images, and draws samples."""

    COUNTED = "generator iterations"
    LOSSES = ("critic_loss", "generator_loss")
    LOSS_UNIT = "score"
    RESULT = "final_em_held_out", "score"

    request: WganRequest
    data: Split

    def look(self, trainer: WganTrainer) -> Look:
        """Estimates the distances and draws the gallery."""
        em_train, em_held_out = (trainer.distance(part) for part in (self.data.train, self.data.test))
        done = f"{trainer.iteration:,} generator and {trainer.step:,} critic steps"
        fakes, edge = trainer.samples(GALLERY_EDGE**2), GALLERY_EDGE
        side = fakes.shape[1]
        tiled = fakes.view(edge, edge, side, side, 3).transpose(1, 2).reshape(edge * side, edge * side, 3)
        return Look(
            figures=[Figure("em_train", "score", em_train), Figure("em_held_out", "score", em_held_out)],
            lines=[f"after {done}: distance to training images {em_train:.4g}, held-out images {em_held_out:.4g}"],
            name=f"samples-{trainer.iteration:07d}",
            pixels=tiled.numpy(),
            title=f"Samples of {self.request.recipe.name} at fixed noise",
            caption=f"After {done}; distance to held-out images estimated at {em_held_out:.3g}.",
        )

    def rates(self, window: Window) -> Sequence[Figure]:
        """Returns steps and images per second; each number of critic steps per cycle is a case of its own."""
        of = {"critic_steps_per_cycle": window.pace}
        images = window.steps * self.request.recipe.batch_size
        return (
            Figure("critic_iterations_per_s", "it/s", window.steps / window.seconds, of),
            Figure("generator_iterations_per_s", "it/s", window.count / window.seconds, of),
            Figure("images_per_s", "images/s", images / window.seconds, of),
        )

    def line(self, window: Window) -> str:
        """Returns a line with the critic's rate and the last losses."""
        critic_loss, generator_loss = window.losses[-1]
        return (
            f"critic step {window.ends[-1]:,}: {window.steps / window.seconds:.3g} it/s, critic loss "
            f"{critic_loss:.4g}, generator loss {generator_loss:.4g}"
        )

    def divergence(self, window: Window) -> str:
        """Returns the message on a loss that became NaN or infinite."""
        return f"a loss became {window.losses[-1][0]} by critic step {window.ends[-1]}"

    def results(self, look: Look, steady: Sequence[Window]) -> Sequence[Figure]:
        """Returns the last estimate of the distance to held-out images."""
        return [Figure(*self.RESULT, figure.value) for figure in look.figures[1:]]


TRAINING = Training(
    load=lambda request: load_split(request.data, request.recipe.image_size, only_class=request.only_class),
    check=check_runnable,
    runs={WganRequest: WganRun, WganAblationRequest: AblationRun},
    turns=WganTurns,
    judged=judged,
)
