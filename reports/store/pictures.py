"""Pictures beside the records of a run: small PNG files in `pictures/` of its directory, with captions inside."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wallclock.reports.store.layout import PICTURES, OnDamage, Paths, StoreError, run_directories

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

UNREADABLE = "Pictures that could not be read"


@dataclass(frozen=True)
class Picture:
    """One picture of a run, `width` x `height` pixels.

    Attributes:
        name: file name without its ending, by which pictures are ordered.
        title: heading under which the page groups pictures.
        png: bytes of the file; empty if it is damaged.
    """

    run_id: str
    name: str
    title: str
    caption: str
    png: bytes
    width: int
    height: int


def write_picture(run: Path, name: str, pixels: "npt.NDArray[np.uint8]", *, title: str, caption: str) -> Path:
    """Writes a picture, uint8 [H, W] or [H, W, 3], into a run's directory and returns its path; see `Picture`.

    The file is replaced in one step: a process that is killed leaves the whole picture or none.

    Raises:
        StoreError: if the picture cannot be written.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    words = PngInfo()
    words.add_itxt("Title", title)
    words.add_itxt("Description", caption)
    path = run / PICTURES / f"{name}.png"
    part = path.with_name(f".{name}.part")
    try:
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(part, format="PNG", pnginfo=words, optimize=True)
        os.replace(part, path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; make room, then go on with --resume") from None
    return path


def load_pictures(paths: Paths, *, on_damage: OnDamage = "raise") -> list[Picture]:
    """Returns the pictures of all runs, in the order of runs and names; those of a copied run once.

    Args:
        paths: run directories, or folders that hold some at any depth.
        on_damage: "skip" returns a damaged picture without its bytes, with the damage in its caption.

    Raises:
        StoreError: if there is no run, or a picture is damaged.
    """
    found: dict[tuple[str, str], Picture] = {}
    for directory in run_directories(paths):
        for path in sorted((directory / PICTURES).glob("*.png")):
            try:
                found.setdefault((directory.name, path.stem), _read(directory.name, path))
            except StoreError as error:
                if on_damage == "raise":
                    raise
                told = Picture(directory.name, path.stem, UNREADABLE, str(error), b"", 0, 0)
                found.setdefault((directory.name, path.stem), told)
    return list(found.values())


def _read(run_id: str, path: Path) -> Picture:
    from PIL import Image

    try:
        png = path.read_bytes()
        with Image.open(path) as image:
            image.load()
            words = image.info
            return Picture(
                run_id, path.stem, words.get("Title", ""), words.get("Description", ""), png, image.width, image.height
            )
    except (OSError, SyntaxError, ValueError):  # raised by Pillow for files that are no PNG, or cut off
        raise StoreError(f"{path} is damaged; restore it from a copy, or remove it") from None
