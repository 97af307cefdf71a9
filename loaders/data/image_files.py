"""Encoded images: how to recognise their files, and Pillow's decoders for each use of them.

Shape legend: N images, S edge of a square, pixels.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from wallclock.loaders.batches import DataError

Pixels = npt.NDArray[np.uint8]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
MOST_PIXELS = 64 << 20  # most pixels of an image that is scaled down; a larger one may be a decompression bomb

# Exceptions that Pillow raises for damaged files; UnidentifiedImageError is an OSError.
_PILLOW_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, struct.error, zlib.error),
    Image.DecompressionBombError,
)


@contextmanager
def _name_damage(message: str) -> Iterator[None]:
    """Turns Pillow's errors within into DataError with `message`, where "{error}" stands for Pillow's own text."""
    try:
        yield
    except DataError:
        raise
    except _PILLOW_ERRORS as error:
        raise DataError(message.replace("{error}", str(error))) from None


def decode(content: bytes, name: str, height: int = 32, width: int = 32) -> Pixels:
    """Decodes a PNG or JPEG of the expected size to uint8 [height, width, 3].

    Raises:
        DataError: if the image cannot be decoded or has another size; the message begins with `name`.
    """
    # Only these two decoders: Pillow would hand some other formats to external programs.
    with (
        _name_damage(f"{name}, cannot be decoded ({{error}}); restore it from its source"),
        Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as opened,
    ):
        if opened.size != (width, height):  # a larger one may be a bomb, and is not decoded
            size = "{}x{}".format(*opened.size)
            raise DataError(f"{name}, is {size}; expected {width}x{height} pixels, scale it first")
        return np.asarray(opened.convert("RGB"))


def decode_middle(content: bytes, name: str, size: int) -> Pixels:
    """Decodes a PNG, JPEG or WebP (LSUN's) and scales its middle square to uint8 [size, size, 3].

    Raises:
        DataError: if the image is damaged or has more than `MOST_PIXELS`; the message begins with `name`.
    """
    with (
        _name_damage(f"{name} cannot be decoded ({{error}}); restore it from its source, or remove it"),
        Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as opened,
    ):
        width, height = opened.size
        if width * height > MOST_PIXELS:
            raise DataError(f"{name} has {width}x{height} pixels; scale it down first")
        opened.draft("RGB", (2 * size, 2 * size))  # JPEG decodes at a fraction of its size, eight times as fast
        image = opened.convert("RGB")
        edge = min(image.size)
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        box = (left, top, left + edge, top + edge)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=None))


def decode_stretched(file: Path, size: int) -> Pixels:
    """Decodes a file of any format that Pillow reads, to RGB pixels uint8 [size, size, 3].

    The aspect ratio is lost, as in CycleGAN's published code; grey, palette and CMYK images become RGB.

    Raises:
        DataError: if the file is damaged or no image; names the file.
    """
    with _name_damage(f"{file} cannot be read as an image ({{error}})"), Image.open(file) as image:
        return np.array(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


class FileImages:
    """Images in files that Pillow reads, decoded on access, indexed like a tensor [N, S, S, 3] with S = `size`."""

    def __init__(self, files: Sequence[Path], size: int) -> None:
        self.files, self.size = tuple(files), size

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the tensor: N, S, S, 3."""
        return len(self.files), self.size, self.size, 3

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Returns one image or a slice of them, uint8; further indices apply to the pixels.

        Raises:
            DataError: if a file cannot be read any more.
        """
        images, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(images, slice):
            pixels = torch.from_numpy(np.stack([decode_stretched(file, self.size) for file in self.files[images]]))
            return pixels[(slice(None), *rest)]
        return torch.from_numpy(decode_stretched(self.files[images], self.size))[tuple(rest)]


def class_folders(path: Path) -> tuple[str, ...]:
    """Returns the names of the class folders in `path`; a leading dot hides one, such as `.ipynb_checkpoints`."""
    return tuple(sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")))


def is_image(file: Path) -> bool:
    """Returns whether a file's name is that of a PNG or JPEG; a leading dot hides a file."""
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")


def data_set_name(kind: str, folder: Path) -> str:
    """Returns the name of a folder's data set in records, such as "folder:my-pets"."""
    return f"{kind}:" + (re.sub(r"[^\w.-]+", "-", folder.resolve().name) or "images")
