"""An embedded 10-class set of 32x32 images, made from a seed: a real learning problem that needs no download.

Each image shows one shape, of random place, size, tilt, colours and contrast, over a shaded and cluttered background
with noise. The colours say nothing about the class, so that a linear classifier on the pixels stays far below 60%; a
small convolutional network passes 94%.

Shape legend: N images, H = W = 32.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loaders.batches import Dataset, Split

CLASSES = ("disc", "ring", "square", "frame", "triangle", "plus", "saltire", "bars", "crescent", "diamond")
SIZE = 32
Floats = npt.NDArray[Any]  # float32 throughout


def _shapes(u: Floats, v: Floats) -> list[npt.NDArray[np.bool_]]:
    """Says for every class which points of the shape's own coordinates, -1 to 1 across its size, are inside it."""
    au, av = np.abs(u), np.abs(v)
    radius2, largest = u * u + v * v, np.maximum(au, av)
    cut = (u - 0.45) ** 2 + v * v
    slope, other = np.abs(u - v), np.abs(u + v)
    return [
        radius2 < 0.81,
        (radius2 < 1.0) & (radius2 > 0.3),
        largest < 0.8,
        (largest < 0.9) & (largest > 0.5),
        (v < 0.75) & (au < (v + 1.0) * 0.6),
        (largest < 1.0) & ((au < 0.3) | (av < 0.3)),
        (largest < 0.85) & ((slope < 0.42) | (other < 0.42)),
        (largest < 0.9) & (av > 0.3),
        (radius2 < 1.0) & (cut > 0.5),
        au + av < 1.05,
    ]


def _mixed(low: Floats, high: Floats, weight: Floats) -> Floats:
    return low + (high - low) * weight


def _images(labels: npt.NDArray[np.int64], random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draws one image per label, uint8 [N, 32, 32, 3].

    Only additions, products, quotients and comparisons are used: they are exact by IEEE 754, so that every machine
    makes the same pixels.
    """
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Floats:
        return random.random((count, *shape), dtype=np.float32) * np.float32(high - low) + np.float32(low)

    rows, columns = np.meshgrid(*(np.arange(SIZE, dtype=np.float32),) * 2, indexing="ij")

    def own_coordinates(scale_low: float, scale_high: float) -> tuple[Floats, Floats]:
        half = uniform(scale_low, scale_high, 1, 1)
        margin = half * np.float32(0.8)
        x = columns - _mixed(margin, SIZE - 1 - margin, uniform(0, 1, 1, 1))
        y = rows - _mixed(margin, SIZE - 1 - margin, uniform(0, 1, 1, 1))
        tilt = uniform(-0.12, 0.12, 1, 1)  # tangent of half the angle, at most 14 degrees: no sine needed
        cosine, sine = (1 - tilt * tilt) / (1 + tilt * tilt), 2 * tilt / (1 + tilt * tilt)
        return (x * cosine + y * sine) / half, (y * cosine - x * sine) / half

    # Background: a gradient between two colours, with three small distractors of any class.
    first, second = uniform(30, 225, 1, 1, 3), uniform(30, 225, 1, 1, 3)
    ramp = (rows * uniform(0, 1, 1, 1) + columns * uniform(0, 1, 1, 1)) / np.float32(2 * SIZE)
    image = _mixed(first, second, ramp[..., None])
    for _ in range(3):
        masks = _shapes(*own_coordinates(1.5, 3.5))
        chosen = random.integers(0, len(CLASSES), count)
        mask = np.select([(chosen == c)[:, None, None] for c in range(len(CLASSES))], masks)
        image = np.where(mask[..., None] != 0, uniform(0, 255, 1, 1, 3), image)
    # The shape: any colour that differs from the mean of the background by a contrast with a lower limit.
    masks = _shapes(*own_coordinates(4.5, 9.5))
    mask = np.select([(labels == c)[:, None, None] for c in range(len(CLASSES))], masks)
    sign = np.where(random.random((count, 1, 1, 3)) < 0.5, np.float32(-1), np.float32(1))
    colour = (first + second) / 2 + sign * uniform(12, 90, 1, 1, 3)
    image = np.where(mask[..., None] != 0, colour, image)
    noise = random.random((4, count, SIZE, SIZE, 3), dtype=np.float32).sum(axis=0) - np.float32(2)
    image = image + noise * uniform(10, 60, 1, 1, 1)
    return np.clip(image, 0, 255).astype(np.uint8)


def synthetic_split(seed: int = 0, *, train: int = 5000, test: int = 2000) -> Split:
    """Returns the embedded data set, the same on every machine.

    Args:
        seed: of all that is random in it.
        train: training images; classes take turns.
        test: test images.
    """
    parts = []
    for index, count in enumerate((train, test)):
        random = np.random.Generator(np.random.PCG64([seed, index]))
        labels = np.arange(count, dtype=np.int64) % len(CLASSES)
        images = _images(labels, random)
        parts.append(Dataset.create("synthetic", torch.from_numpy(images), torch.from_numpy(labels), CLASSES))
    return Split(*parts)
