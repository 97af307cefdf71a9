"""The middle square of an encoded image, at the size a network wants."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from wallclock.loaders.batches import DataError
from wallclock.loaders.data.source import Pixels

MOST_PIXELS = 64 << 20  # of an encoded image; a larger one may be a bomb

# What Pillow raises for damaged files.
_PILLOW_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, struct.error, zlib.error),
    Image.DecompressionBombError,
)


def cropped(content: bytes, name: str, size: int) -> Pixels:
    """Returns an encoded image's middle square at `size` pixels, uint8 [size, size, 3].

    Args:
        content: PNG, JPEG or WebP (LSUN's).
        name: what to call it in a message.
        size: pixels.

    Raises:
        DataError: if it is damaged, or has more than `MOST_PIXELS`.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as opened:
            width, height = opened.size
            if width * height > MOST_PIXELS:
                raise DataError(f"{name} has {width}x{height} pixels; scale it down first")
            opened.draft("RGB", (2 * size, 2 * size))  # JPEG decodes at a fraction of its size, eight times as fast
            image = opened.convert("RGB")
            edge = min(image.size)
            left, top = (image.width - edge) // 2, (image.height - edge) // 2
            box = (left, top, left + edge, top + edge)
            return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=None))
    except _PILLOW_ERRORS as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} cannot be decoded ({error}); restore it from its source, or remove it") from None
