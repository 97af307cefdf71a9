"""The steps of a WGAN as CUDA graphs: one launch a step, and the same losses as without."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from bench.tasks.wgan_checkpoint import NOISE, training_state

if TYPE_CHECKING:
    from bench.tasks.wgan_training import WganTrainer

WARMUP_STEPS = 3  # kernels are chosen and compiled, and the optimisers' state and gradients get their memory

Inputs = dict[str, torch.Tensor]
Captive = tuple[Callable[[], object], torch.Tensor]


class Captured:
    """Replays a trainer's steps; captures each when it is first wanted.

    Images, noise and mix are drawn outside and copied into the graphs' inputs, so that the generators' state goes on as
    without graphs. Warm-up and capture move weights, batch norms' buffers and optimisers; they are put back.

    Args:
        trainer: on a CUDA device, its gradients kept in place.
    """

    def __init__(self, trainer: "WganTrainer") -> None:
        self.trainer = trainer
        self._steps: dict[str, tuple[Captive, Inputs]] = {}
        self._pool: Any = None

    def critic_step(
        self, real: torch.Tensor, noise: torch.Tensor, mix: torch.Tensor | None, *, clamp: bool
    ) -> torch.Tensor:
        """As `WganTrainer.update_critic`."""
        inputs = {"real": real, "noise": noise} | ({} if mix is None else {"mix": mix})

        def step(static: Inputs) -> torch.Tensor:
            return self.trainer.update_critic(static["real"], static["noise"], static.get("mix"), clamp=clamp)

        return self._replayed(f"critic, clamp {clamp}", step, inputs)

    def generator_step(self, noise: torch.Tensor) -> torch.Tensor:
        """As `WganTrainer.update_generator`."""
        return self._replayed(
            "generator", lambda static: self.trainer.update_generator(static["noise"]), {"noise": noise}
        )

    def _replayed(self, name: str, step: Callable[[Inputs], torch.Tensor], inputs: Inputs) -> torch.Tensor:
        if name not in self._steps:
            static = {key: tensor.clone() for key, tensor in inputs.items()}
            with self._put_back():
                self._steps[name] = self._capture(lambda: step(static)), static
        (replay, loss), static = self._steps[name]
        for key, tensor in inputs.items():
            static[key].copy_(tensor)
        replay()
        return loss.clone()  # the next replay overwrites it

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        state = {name: tensor for name, tensor in training_state(self.trainer).items() if name != NOISE}
        before = {name: tensor.detach().clone() for name, tensor in state.items()}
        yield
        with torch.no_grad():
            for name, tensor in before.items():
                state[name].copy_(tensor)

    def _capture(self, step: Callable[[], torch.Tensor]) -> Captive:
        """What replays a step, and where its loss lies."""
        device = self.trainer.device
        side = torch.cuda.Stream(device)  # capture asks for steps on a stream other than the default one
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARMUP_STEPS):
                step()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            loss = step()
        self._pool = graph.pool()  # the graphs never run at once, and share their memory
        return graph.replay, loss
