"""Checkpoints: the whole state of a training as one safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from wallclock.reports.store.layout import StoreError

CHECKPOINT = "checkpoint.safetensors"
Tensors = dict[str, torch.Tensor]  # by name


def save_checkpoint(path: Path, state: Mapping[str, torch.Tensor], position: Mapping[str, Any], recipe: Any) -> None:
    """Writes a checkpoint, which replaces the previous one once it is whole.

    `state` are tensors by name, `position` is the progress of the training as JSON types. The recipe, a `Resolvable`,
    is stored whole so that the weights can be used without the run.

    Raises:
        StoreError: if the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_suffix(".part")
    metadata = {"position": json.dumps(dict(position)), "recipe_hash": recipe.hash()}
    metadata["recipe"] = json.dumps(recipe.resolved())
    try:
        save_file({name: t.detach().contiguous() for name, t in state.items()}, part, metadata=metadata)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error}; make room, then go on with --resume") from None


def read_checkpoint(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Returns the tensors of a checkpoint, on the CPU, and its metadata: position, recipe and the recipe's hash.

    Raises:
        StoreError: if the file is damaged, or no checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            dict(json.loads(metadata["position"]))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}); start a new run") from None


def weights_of(tensors: Mapping[str, torch.Tensor], network: str) -> dict[str, torch.Tensor]:
    """Returns the state dict of one network of a checkpoint, by its name there; empty if it holds none of that name."""
    prefix = f"{network}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_checkpoint(path: Path, state: Tensors, recipe: Any) -> tuple[Tensors, dict[str, Any]]:
    """Returns tensors and position of a training's checkpoint; its recipe and its own tensors by name are given.

    Raises:
        StoreError: if the checkpoint is damaged, belongs to another recipe, or holds tensors of other names or shapes.
    """
    stored, metadata = read_checkpoint(path)
    if metadata.get("recipe_hash") != recipe.hash():
        raise StoreError(f"{path} is of another recipe; start a new run")
    if set(state) != set(stored) or any(state[name].shape != stored[name].shape for name in state):
        raise StoreError(f"{path} holds other tensors than this version's; start a new run")
    return stored, json.loads(metadata["position"])
