"""The translation of a folder of images by a trained generator, for `wallclock translate`."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from wallclock.bench.engine.checkpoint import CHECKPOINT, read_checkpoint
from wallclock.bench.tasks.registry import TASKS
from wallclock.loaders.batches import DataError
from wallclock.loaders.data.image_files import decode_stretched
from wallclock.loaders.pipelines.shuffled import pixels, unit_range
from wallclock.reports.store.layout import StoreError


def load_generator(checkpoint: Path, direction: str) -> tuple[nn.Module, Any]:
    """Returns a trained generator, and its recipe, from a run's checkpoint or directory and a direction ("a-to-b").

    Raises:
        StoreError: if the checkpoint is missing, damaged, or not of a network that translates images.
        ValueError: if there is no such direction.
    """
    able = [task for task in TASKS.values() if task.training().translator]
    runs = " or ".join(f"`wallclock run {task.name}`" for task in able)
    path = checkpoint / CHECKPOINT if checkpoint.is_dir() else checkpoint
    if not path.exists():
        raise StoreError(f"no checkpoint at {path}; give a run of {runs}, or its {CHECKPOINT}")
    tensors, metadata = read_checkpoint(path)
    resolved = json.loads(metadata.get("recipe", "{}"))
    for task in able:
        if resolved.keys() == {field.name for field in fields(task.recipe)}:
            recipe = task.recipe.from_resolved(resolved)
            return task.training().translator(recipe, tensors, direction), recipe
    raise StoreError(f"{path} is no checkpoint of a network that translates images; give one of {runs}")


@torch.inference_mode()
def translate(
    generator: nn.Module, source: Path, target: Path, size: int, *, device: torch.device, observe: Callable[[str], None]
) -> tuple[int, int]:
    """Writes the translation of an image, or of every one in a folder, as PNG under the same relative path in `target`.

    Images are scaled to an edge of `size` pixels; `observe` is called with a line for each file that is skipped.

    Returns:
        The number of images that were translated, and of files that could not be read.

    Raises:
        DataError: if `source` does not exist, or holds no image that can be read.
    """
    if not source.exists():
        raise DataError(f"no such path: {source}; give a folder of images")
    files = [source] if source.is_file() else sorted(f for f in source.rglob("*") if f.is_file())
    generator = generator.to(device)
    done, skipped = 0, 0
    for file in files:
        try:
            image_NHWC = torch.from_numpy(decode_stretched(file, size))[None]
        except DataError as error:
            skipped += 1
            observe(f"skipped: {error}")
            continue
        made = pixels(generator(unit_range(image_NHWC.to(device))))[0].cpu().numpy()
        place = target / (file.relative_to(source) if source.is_dir() else Path(file.name)).with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(made)).save(place)
        done += 1
    if not done:
        raise DataError(f"{source} holds no image that can be read; give a folder of images")
    return done, skipped
