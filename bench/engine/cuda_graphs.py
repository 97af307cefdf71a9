"""Training steps as CUDA graphs: one launch per step, with the losses of eager steps."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

WARMUP_STEPS = 3  # these choose and compile kernels, and allocate gradients and the optimisers' state

Inputs = dict[str, torch.Tensor]
State = Callable[[], Mapping[str, torch.Tensor]]
Captive = tuple[Callable[[], object], torch.Tensor]


@contextmanager
def restoring(state: State) -> Iterator[None]:
    """Restores the tensors that a step changes in place, at the end of the context, to their values at its start.

    `state` returns them by name, in their own memory.
    """
    before = {name: tensor.detach().clone() for name, tensor in state().items()}
    yield
    now = state()
    with torch.no_grad():
        for name, tensor in before.items():
            now[name].copy_(tensor)


class StepGraphs:
    """Replays a trainer's steps; captures each at its first call.

    Random draws and loaded data are made outside and copied into the graph's inputs, so that the state of random
    generators moves as without graphs. Warm-up and capture change weights, buffers and optimisers, which are restored.

    Args:
        device: a CUDA device.
        state: see `restoring`. It leaves out gradients: their memory is kept, and each step clears them first.
    """

    def __init__(self, device: torch.device, state: State) -> None:
        self.device, self.state = device, state
        self._steps: dict[str, tuple[Captive, Inputs]] = {}
        self._pool: Any = None

    def replay(self, name: str, step: Callable[[Inputs], torch.Tensor], inputs: Inputs) -> torch.Tensor:
        """Takes a step, and captures it at the first call of its name.

        Args:
            name: names the step and all that a graph fixes: shapes, and which parameters are trained.
            step: computes on its inputs alone, without random draws.
            inputs: tensors of this step, which have one shape and memory format under one name.

        Returns:
            A copy of what the step returns: the next replay overwrites the original.
        """
        if name not in self._steps:
            static = {key: tensor.clone() for key, tensor in inputs.items()}
            with restoring(self.state):
                self._steps[name] = self._capture(lambda: step(static)), static
        (replay, loss), static = self._steps[name]
        for key, tensor in inputs.items():
            static[key].copy_(tensor)
        replay()
        return loss.clone()

    def _capture(self, step: Callable[[], torch.Tensor]) -> Captive:
        """Returns the function that replays a step, and the tensor of its result."""
        side = torch.cuda.Stream(self.device)  # capture asks for steps on a stream other than the default one
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARMUP_STEPS):
                step()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Pipelines gather into pinned memory in threads of their own, which a "global" capture would not survive.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            loss = step()
        self._pool = graph.pool()  # the graphs never run at once, and share their memory
        return graph.replay, loss
