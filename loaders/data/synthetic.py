"""An embedded 10-class set of 32x32 images, made from a seed: it can be learnt and needs no download.

Each image shows one shape of random place, size, tilt, colours and contrast over a shaded and cluttered background
with noise. The colours carry no class, so that a linear classifier on the pixels stays far below 60%; a
small convolutional network passes 94%.

Shape legend: N images, H = W = 32.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wallclock.loaders.batches import Dataset, Split

Floats = npt.NDArray[Any]  # float32 throughout


def _largest(u: Floats, v: Floats) -> Floats:
    return np.maximum(np.abs(u), np.abs(v))


def _diagonals(u: Floats, v: Floats) -> npt.NDArray[np.bool_]:
    return (np.abs(u - v) < 0.42) | (np.abs(u + v) < 0.42)


# The classes, and for each a test of which points are inside its shape.
CLASSES: dict[str, Callable[[Floats, Floats], npt.NDArray[np.bool_]]] = {
    "disc": lambda u, v: u * u + v * v < 0.81,
    "ring": lambda u, v: (u * u + v * v < 1.0) & (u * u + v * v > 0.3),
    "square": lambda u, v: _largest(u, v) < 0.8,
    "frame": lambda u, v: (_largest(u, v) < 0.9) & (_largest(u, v) > 0.5),
    "triangle": lambda u, v: (v < 0.75) & (np.abs(u) < (v + 1.0) * 0.6),
    "plus": lambda u, v: (_largest(u, v) < 1.0) & ((np.abs(u) < 0.3) | (np.abs(v) < 0.3)),
    "saltire": lambda u, v: (_largest(u, v) < 0.85) & _diagonals(u, v),
    "bars": lambda u, v: (_largest(u, v) < 0.9) & (np.abs(v) > 0.3),
    "crescent": lambda u, v: (u * u + v * v < 1.0) & ((u - 0.45) ** 2 + v * v > 0.5),
    "diamond": lambda u, v: np.abs(u) + np.abs(v) < 1.05,
}
SIZE = 32
SYNTHETIC = "synthetic"  # name of the embedded sets, in records and for `--data`


def _masks(classes: npt.NDArray[np.int64], u: Floats, v: Floats) -> npt.NDArray[np.bool_]:
    """Returns which points of each image the shape of its class, [N], covers: [N, 32, 32].

    u and v are coordinates in the shape's own frame, [N, 32, 32], -1 to 1 across its size.
    """
    masks = np.empty(u.shape, np.bool_)
    for number, shape in enumerate(CLASSES.values()):
        of_class = classes == number
        masks[of_class] = shape(u[of_class], v[of_class])
    return masks


def _mix(low: Floats, high: Floats, weight: Floats) -> Floats:
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
        x = columns - _mix(margin, SIZE - 1 - margin, uniform(0, 1, 1, 1))
        y = rows - _mix(margin, SIZE - 1 - margin, uniform(0, 1, 1, 1))
        tilt = uniform(-0.12, 0.12, 1, 1)  # tangent of half the angle, at most 14 degrees: no sine needed
        cosine, sine = (1 - tilt * tilt) / (1 + tilt * tilt), 2 * tilt / (1 + tilt * tilt)
        return (x * cosine + y * sine) / half, (y * cosine - x * sine) / half

    # Background: a gradient between two colours, with three small distractors of any class.
    first, second = uniform(30, 225, 1, 1, 3), uniform(30, 225, 1, 1, 3)
    ramp = (rows * uniform(0, 1, 1, 1) + columns * uniform(0, 1, 1, 1)) / np.float32(2 * SIZE)
    image = _mix(first, second, ramp[..., None])
    for _ in range(3):
        u, v = own_coordinates(1.5, 3.5)
        mask = _masks(random.integers(0, len(CLASSES), count), u, v)
        np.copyto(image, uniform(0, 255, 1, 1, 3), where=mask[..., None])
    # The shape: any colour that differs from the mean of the background by a contrast with a lower limit.
    mask = _masks(labels, *own_coordinates(4.5, 9.5))
    sign = np.where(random.random((count, 1, 1, 3)) < 0.5, np.float32(-1), np.float32(1))
    colour = (first + second) / 2 + sign * uniform(12, 90, 1, 1, 3)
    np.copyto(image, colour, where=mask[..., None])
    noise, more = (np.empty_like(image) for _ in range(2))
    random.random(dtype=np.float32, out=noise)
    for _ in range(3):
        noise += random.random(dtype=np.float32, out=more)
    noise -= np.float32(2)
    noise *= uniform(10, 60, 1, 1, 1)
    image += noise
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


def synthetic_split(seed: int = 0, *, train: int = 5000, test: int = 2000) -> Split:
    """Returns the embedded data set of `train` and `test` images, the same on every machine for the same seed.

    Labels run through the classes in turn.
    """
    parts = []
    for index, count in enumerate((train, test)):
        random = np.random.Generator(np.random.PCG64([seed, index]))
        labels = np.arange(count, dtype=np.int64) % len(CLASSES)
        images = _images(labels, random)
        parts.append(Dataset.create(SYNTHETIC, torch.from_numpy(images), torch.from_numpy(labels), tuple(CLASSES)))
    return Split(*parts)
