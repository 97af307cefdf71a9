"""Images that stay in their files, for sets that memory does not hold: each is decoded when it is asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from wallclock.loaders.batches import DataError


def decoded(file: Path, size: int) -> npt.NDArray[np.uint8]:
    """Returns an image as squares of pixels, uint8 [size, size, 3]; grey, palette and CMYK images become RGB.

    Args:
        file: in any format that Pillow reads.
        size: of the result, pixels; the aspect is not kept, as in CycleGAN's published code.

    Raises:
        DataError: if it is damaged or no image; names it.
    """
    try:
        with Image.open(file) as image:
            return np.array(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} cannot be read as an image ({error})") from None


class FileImages:
    """Images of one size, indexed as a uint8 tensor [N, size, size, 3] is; what is not asked for is not decoded.

    Args:
        files: that `decoded` reads.
        size: edge that they are scaled to, pixels.
    """

    def __init__(self, files: Sequence[Path], size: int) -> None:
        self.files, self.size = tuple(files), size

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """That of the tensor that it stands for."""
        return len(self.files), self.size, self.size, 3

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Returns an image, or several of a slice; further indices apply to the pixels.

        Raises:
            DataError: if a file cannot be read any more.
        """
        of_images, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(of_images, slice):
            pixels = torch.from_numpy(np.stack([decoded(file, self.size) for file in self.files[of_images]]))
            return pixels[(slice(None), *rest)]
        return torch.from_numpy(decoded(self.files[of_images], self.size))[tuple(rest)]


DomainImages = torch.Tensor | FileImages
