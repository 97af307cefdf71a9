"""A trainer whose whole state has names, so that one code saves it, resumes it and captures it in CUDA graphs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wallclock.bench.engine.checkpoint import load_checkpoint, save_checkpoint
from wallclock.bench.engine.compile import compile_network
from wallclock.bench.engine.cuda_graphs import Inputs, StepGraphs
from wallclock.kernels.spec import available
from wallclock.models.layers import choose
from wallclock.reports.store.layout import StoreError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Step:
    """One optimiser step of a kind such as "critic", or one iteration, that was queued on the device.

    Its losses, a scalar or several, lie on the device.
    """

    kind: str
    losses: torch.Tensor


def check_device(recipe: Any, device: torch.device) -> None:
    """Refuses a recipe whose implementations cannot run on a device.

    Raises:
        ValueError: if they cannot; names the fields to set.
    """
    chosen = recipe.implementations
    if device.type == "cpu" and chosen.cuda_graph:
        raise ValueError("CUDA graphs need a GPU; use --set implementations.cuda_graph=false")
    if why_not := available("triton", device) if chosen.triton else "":
        switches = " ".join(f"--set implementations.{name}=eager" for name in chosen.triton)
        raise ValueError(f"{why_not}; or use {switches}")


def set_lr(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    """Sets a learning rate; a rate that is a tensor is overwritten in place."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr


class StatefulTrainer:
    """A recipe's networks and optimisers for one seed, on one device; each task derives its trainer from it.

    A task's `train` takes one step after the other from `position` to the end of the recipe's budget; a checkpoint may
    be written whenever an iteration has ended.

    Args:
        networks: fresh networks by the names that they have in a checkpoint.
        position: a dataclass of numbers with the progress of the training; a checkpoint keeps it.
        seed: seed of the batch order and of the noise.

    Attributes:
        compute: the networks as steps call them, compiled where the recipe asks for it.
        optimizers: the optimisers by the names that they have in a checkpoint.
        generators: the training's own sources of random numbers, by name.
        buffers: all other tensors that a step changes, by name.
        batches: the training images; its length is the number of batches in an epoch.
    """

    batches: Any

    def __init__(
        self, recipe: Any, networks: Mapping[str, nn.Module], position: Any, *, device: torch.device, seed: int
    ) -> None:
        chosen = recipe.implementations
        self.recipe, self.networks, self.position, self.device, self.seed = recipe, networks, position, device, seed
        self.memory_format = torch.channels_last if chosen.channels_last else torch.contiguous_format
        for net in networks.values():
            net.to(memory_format=self.memory_format)
            choose(net, chosen)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.generators: dict[str, torch.Generator] = {}
        self.buffers: dict[str, torch.Tensor] = {}
        self.compute: Mapping[str, Any] = networks
        if chosen.compile:
            self.compute = {name: compile_network(net) for name, net in networks.items()}
        self.graphs = StepGraphs(device, self.tensors) if chosen.cuda_graph else None

    @property
    def delivery(self) -> dict[str, Any]:
        """How batches are to arrive, as arguments of `loaders.pipelines.shuffled` and `loaders.pipelines.unpaired`."""
        chosen = self.recipe.implementations
        same = {"channels_last": chosen.channels_last, "resident": chosen.resident}
        return {"device": self.device, "seed": self.seed, **same}

    @property
    def finished(self) -> bool:
        """Whether the recipe's budget is spent."""
        raise NotImplementedError

    @property
    def iteration(self) -> int:
        """The number of iterations done, as limits and looks count them."""
        return self.position.iteration

    @property
    def step(self) -> int:
        """The number of steps done, as records number them."""
        return self.iteration

    @property
    def pace(self) -> int:
        """The cost of the next iteration, such as its critic steps; rates of different paces are kept apart."""
        return 0

    def train(self) -> Iterator[Step]:
        """Trains from the present position to the end of the budget; yields after each step."""
        raise NotImplementedError

    def iterations(self) -> Iterator[torch.Tensor]:
        """Trains as `train`; yields the losses of each iteration, [K], when it has ended."""
        return (step.losses for step in self.train())

    def lr(self, lr: float) -> float | torch.Tensor:
        """Returns a learning rate for an optimiser; for CUDA graphs a tensor, which replays read anew."""
        return torch.tensor(lr, device=self.device) if self.graphs else lr

    def adam(self, nets: Iterable[nn.Module], rule: Any, lr: float, **more: Any) -> torch.optim.Adam:
        """Returns Adam for all parameters of some networks, with the settings `beta1`, `beta2` and `eps` of a rule."""
        return torch.optim.Adam(
            [p for net in nets for p in net.parameters()],
            lr=self.lr(lr),
            betas=(rule.beta1, rule.beta2),
            eps=rule.eps,
            capturable=self.graphs is not None,
            **more,
        )

    def autocast(self) -> torch.autocast:
        """Returns the autocast context of the recipe's precision, in which the networks are computed."""
        dtype = DTYPES[self.recipe.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def clear_gradients(self, name: str) -> None:
        """Clears the gradients of an optimiser; CUDA graphs keep their memory."""
        self.optimizers[name].zero_grad(set_to_none=self.graphs is None)

    def take(self, name: str, step: Callable[[Inputs], torch.Tensor], inputs: Inputs) -> torch.Tensor:
        """Takes a step on its inputs, as a replay of its CUDA graph if there are graphs; see `StepGraphs.replay`."""
        return step(inputs) if self.graphs is None else self.graphs.replay(name, step, inputs)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns all tensors that a step changes, by name, in their own memory.

        An optimiser that has not taken a step gets the state that it has after one, filled with zeros.
        """
        state = {f"{name}.{key}": t for name, net in self.networks.items() for key, t in net.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            numbered = enumerate((group, p) for group in optimizer.param_groups for p in group["params"])
            for number, (group, p) in numbered:
                if not optimizer.state[p]:
                    optimizer.state[p] = _fresh_state(optimizer, group, p)
                state |= {f"{name}.{number}.{part}": t for part, t in optimizer.state[p].items()}
        return state | self.buffers

    def state(self) -> dict[str, torch.Tensor]:
        """Returns the tensors of a checkpoint by name: `tensors`, and a copy of each generator's state."""
        return self.tensors() | {name: generator.get_state() for name, generator in self.generators.items()}

    def save(self, path: Path) -> None:
        """Writes a checkpoint; see `bench.engine.checkpoint.save_checkpoint`."""
        save_checkpoint(path, self.state(), asdict(self.position), self.recipe)

    def load(self, path: Path) -> None:
        """Restores the state of a checkpoint into this trainer, which must be fresh and of the same recipe.

        Raises:
            StoreError: if the checkpoint is damaged, or of another recipe.
        """
        state = self.state()
        stored, numbers = load_checkpoint(path, state, self.recipe)
        try:
            position = type(self.position)(**numbers)
        except TypeError as error:
            raise StoreError(f"{path} is damaged ({error}); start a new run") from None
        with torch.no_grad():
            for name, tensor in state.items():
                if name in self.generators:
                    self.generators[name].set_state(stored[name])
                else:
                    tensor.copy_(stored[name])
        self.position = position


def _fresh_state(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], p: torch.Tensor
) -> dict[str, torch.Tensor]:
    if not isinstance(optimizer, torch.optim.Adam):
        return {"square_avg": torch.zeros_like(p)}
    on_device = group["capturable"] or group["fused"]
    step = torch.zeros((), dtype=torch.float32, device=p.device if on_device else "cpu")
    return {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
