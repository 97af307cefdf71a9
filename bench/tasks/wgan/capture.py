"""The steps of a WGAN as CUDA graphs."""

from typing import TYPE_CHECKING

import torch

from wallclock.bench.engine.cuda_graphs import Inputs, StepGraphs
from wallclock.bench.tasks.wgan.checkpoint import NOISE, training_state

if TYPE_CHECKING:
    from wallclock.bench.tasks.wgan.trainer import WganTrainer


class Captured:
    """Replays a trainer's steps; see `bench.engine.cuda_graphs`. Images, noise and mix are drawn outside.

    Args:
        trainer: on a CUDA device, its gradients kept in place.
    """

    def __init__(self, trainer: "WganTrainer") -> None:
        self.trainer = trainer
        self._graphs = StepGraphs(trainer.device, self._state)

    def _state(self) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in training_state(self.trainer).items() if name != NOISE}

    def critic_step(
        self, real: torch.Tensor, noise: torch.Tensor, mix: torch.Tensor | None, *, clamp: bool
    ) -> torch.Tensor:
        """As `WganTrainer.update_critic`."""
        inputs = {"real": real, "noise": noise} | ({} if mix is None else {"mix": mix})

        def step(static: Inputs) -> torch.Tensor:
            return self.trainer.update_critic(static["real"], static["noise"], static.get("mix"), clamp=clamp)

        return self._graphs.replay(f"critic, clamp {clamp}", step, inputs)

    def generator_step(self, noise: torch.Tensor) -> torch.Tensor:
        """As `WganTrainer.update_generator`."""
        return self._graphs.replay(
            "generator", lambda static: self.trainer.update_generator(static["noise"]), {"noise": noise}
        )
