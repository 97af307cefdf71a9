"""All that a WGAN's training goes on from, as one safetensors file: weights, buffers, optimisers, noise, position."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from reports.store import StoreError

if TYPE_CHECKING:
    from bench.tasks.wgan_training import WganTrainer

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
    """Writes a checkpoint in one piece: the file that is there is replaced when the new one is whole.

    Args:
        trainer: between two cycles.
        path: of the file.

    Raises:
        StoreError: if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_suffix(".part")
    metadata = {"position": json.dumps(asdict(trainer.position)), "recipe_hash": trainer.recipe.hash()}
    try:
        tensors = {name: tensor.detach().contiguous() for name, tensor in training_state(trainer).items()}
        save_file(tensors, part, metadata=metadata)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error}; make room, then go on with --resume") from None


def load(trainer: "WganTrainer", path: Path) -> None:
    """Takes a trainer of the same recipe to where a checkpoint was written.

    Args:
        trainer: fresh.
        path: of the file.

    Raises:
        StoreError: if it is damaged, or one of another recipe.
    """
    from safetensors import SafetensorError, safe_open

    from bench.tasks.wgan_training import Position

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        position = Position(**json.loads(metadata["position"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}); start a new run") from None
    if metadata.get("recipe_hash") != trainer.recipe.hash():
        raise StoreError(f"{path} is of another recipe; start a new run")
    state = training_state(trainer)
    if set(state) != set(stored) or any(state[name].shape != stored[name].shape for name in state):
        raise StoreError(f"{path} holds other tensors than this version's; start a new run")
    with torch.no_grad():
        for name, tensor in state.items():
            if name == NOISE:
                trainer.noise.set_state(stored[name])
            else:
                tensor.copy_(stored[name])
    trainer.position = position
