"""All that a WGAN's training goes on from, as one safetensors file: weights, buffers, optimisers, noise, position."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from wallclock.bench.engine.checkpoint import load_checkpoint, read_position, save_checkpoint
from wallclock.reports.store.write import StoreError

if TYPE_CHECKING:
    from wallclock.bench.tasks.wgan.trainer import WganTrainer

NOISE = "noise"


def training_state(trainer: "WganTrainer") -> dict[str, torch.Tensor]:
    """Returns the tensors of a checkpoint by name, in the trainer's own memory; of the noise's state, a copy.

    Args:
        trainer: gets the optimiser state that it has after a step, zero so far, where it has none.
    """
    state = {NOISE: trainer.noise.get_state()}
    for name, net, optimizer in (
        ("critic", trainer.critic, trainer.critic_optimizer),
        ("generator", trainer.generator, trainer.generator_optimizer),
    ):
        state |= {f"{name}.{key}": tensor for key, tensor in net.state_dict(keep_vars=True).items()}
        for key, p in net.named_parameters():
            if not optimizer.state[p]:
                optimizer.state[p] = _fresh(optimizer, p, on_device=trainer.recipe.implementations.cuda_graph)
            state |= {f"{name}_optimizer.{key}.{part}": t for part, t in optimizer.state[p].items()}
    return state


def _fresh(optimizer: torch.optim.Optimizer, p: torch.Tensor, *, on_device: bool) -> dict[str, torch.Tensor]:
    if isinstance(optimizer, torch.optim.Adam):
        step = torch.zeros((), dtype=torch.float32, device=p.device if on_device else "cpu")
        return {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return {"square_avg": torch.zeros_like(p)}


def save(trainer: "WganTrainer", path: Path) -> None:
    """Writes a checkpoint of a trainer between two cycles; see `bench.engine.checkpoint.save_checkpoint`."""
    save_checkpoint(path, training_state(trainer), asdict(trainer.position), trainer.recipe)


def load(trainer: "WganTrainer", path: Path) -> None:
    """Takes a trainer of the same recipe to where a checkpoint was written.

    Args:
        trainer: fresh.
        path: of the file.

    Raises:
        StoreError: if it is damaged, or one of another recipe.
    """
    from wallclock.bench.tasks.wgan.trainer import Position

    state = training_state(trainer)
    stored = load_checkpoint(path, state, trainer.recipe)
    try:
        position = Position(**read_position(path))
    except TypeError as error:
        raise StoreError(f"{path} is damaged ({error}); start a new run") from None
    with torch.no_grad():
        for name, tensor in state.items():
            if name == NOISE:
                trainer.noise.set_state(stored[name])
            else:
                tensor.copy_(stored[name])
    trainer.position = position
