"""The turns of a WGAN's ablation; see `bench.ablation.turns`."""

from wallclock.bench.ablation.turns import Cycle, Figures, Taken, Turns
from wallclock.bench.engine.trainer import StatefulTrainer
from wallclock.bench.tasks.wgan.baseline import plain_loop
from wallclock.bench.tasks.wgan.trainer import WganTrainer
from wallclock.loaders.batches import Split
from wallclock.models.recipes.wgan import WganRecipe

IMAGES = 4096  # images that a turn's batches are drawn from


class WganTurns(Turns):
    """Turns of generator steps, with the usual critic steps before each."""

    TRAINER, PLAIN_LOOP = WganTrainer, plain_loop
    STEP_METRIC = "critic_step_s"
    OPTIMIZER = "optimizer"

    def part(self, data: Split) -> Split:
        """Returns as many images as fill whole cycles, so that no epoch ends within a cycle."""
        usual, batch_size = self.request.recipe.critic_steps.usual, self.request.recipe.batch_size
        available = min(IMAGES, len(data.train))
        count = available // (usual * batch_size) * usual * batch_size
        if not count:
            raise ValueError(
                f"{available} images do not fill the {usual} batches of {batch_size} of one cycle; use "
                "--set batch_size=64 or less, or more data"
            )
        return Split(data.train.subset(slice(0, count)), data.test.subset(slice(0, 1)))

    def cycle(self, recipe: WganRecipe) -> Cycle:
        """Returns the steps of one generator iteration."""
        return (("critic", recipe.critic_steps.usual), ("generator", 1))

    def update(self, trainer: StatefulTrainer) -> None:
        """Takes the optimisers' steps of one generator iteration."""
        for _ in range(trainer.recipe.critic_steps.usual):
            trainer.optimizers["critic_optimizer"].step()
        trainer.optimizers["generator_optimizer"].step()

    def figures(self, recipe: WganRecipe, taken: Taken) -> Figures:
        """Returns the rates, and the time of a step of each network."""
        count, cycles = taken.counts["critic"], taken.counts["generator"]
        return (
            ("critic_iterations_per_s", "it/s", count / taken.total_s),
            ("images_per_s", "images/s", count * recipe.batch_size / taken.total_s),
            ("critic_step_s", "s", taken.seconds["critic"] / count),
            ("generator_step_s", "s", taken.seconds["generator"] / cycles),
            ("cycle_cpu_s", "s", taken.cpu_s / cycles),
        )
