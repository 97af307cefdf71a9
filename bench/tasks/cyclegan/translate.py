"""The translation of a folder of images by a trained generator, for `wallclock translate`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from wallclock.bench.engine.checkpoint import CHECKPOINT, read_checkpoint
from wallclock.loaders.batches import DataError
from wallclock.loaders.data.image_files import decode_stretched
from wallclock.loaders.pipelines.shuffled import pixels, unit_range
from wallclock.models.networks.cyclegan import ResnetGenerator
from wallclock.models.recipes.cyclegan import CycleGanRecipe
from wallclock.reports.store.layout import StoreError

DIRECTIONS = {"a-to-b": "g_a", "b-to-a": "g_b"}


def load_generator(checkpoint: Path, direction: str) -> tuple[ResnetGenerator, CycleGanRecipe]:
    """Returns a trained generator, and the recipe that it was trained with.

    Args:
        checkpoint: a run's checkpoint, or the run's directory.
        direction: a key of `DIRECTIONS`.

    Raises:
        StoreError: if the checkpoint is missing, damaged, or not of a CycleGAN.
        ValueError: if `direction` is not a key of `DIRECTIONS`.
    """
    import json

    if direction not in DIRECTIONS:
        raise ValueError(f"no direction '{direction}'; directions: {', '.join(DIRECTIONS)}")
    path = checkpoint / CHECKPOINT if checkpoint.is_dir() else checkpoint
    if not path.exists():
        raise StoreError(f"no checkpoint at {path}; give a run of `wallclock run cyclegan`, or its {CHECKPOINT}")
    stored, metadata = read_checkpoint(path)
    prefix = f"{DIRECTIONS[direction]}."
    weights = {name.removeprefix(prefix): t for name, t in stored.items() if name.startswith(prefix)}
    if not weights or "recipe" not in metadata:
        raise StoreError(f"{path} is no checkpoint of a CycleGAN; give one of `wallclock run cyclegan`")
    recipe = CycleGanRecipe.from_resolved(json.loads(metadata["recipe"]))
    generator = ResnetGenerator(blocks=recipe.blocks, channels=recipe.channels)
    generator.load_state_dict(weights)
    return generator.eval(), recipe


@torch.inference_mode()
def translate(
    generator: ResnetGenerator,
    source: Path,
    target: Path,
    size: int,
    *,
    device: torch.device,
    observe: Callable[[str], None],
) -> tuple[int, int]:
    """Writes the translation of every image in a folder as PNG, under the same relative path.

    Args:
        generator: the generator, from `load_generator`.
        source: a folder of images, or one image.
        target: folder to write to; made if missing.
        size: edge in pixels that images are scaled to.
        device: device to compute on.
        observe: called with a line for each file that is skipped.

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
