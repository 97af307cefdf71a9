"""Pictures on the page: small ones enlarged; compressed, or fewer, if they would make the page too large."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wallclock.reports.store.pictures import Picture

# Most bytes of all pictures together; above it they are compressed, then left out: the page stays under 3 MB.
PICTURE_BYTES, QUALITIES = 400_000, (90, 80, 65)
PICTURE_WIDTH, WIDE_WIDTH = 520, 1060  # most pixels that a small picture is enlarged to: half of a row, or a whole row


def galleries(pictures: "Sequence[Picture]") -> dict[str, list[dict[str, Any]]]:
    """Returns the pictures by title, small ones enlarged by a whole factor so that each pixel is a square."""
    titled: dict[str, list[dict[str, Any]]] = {}
    for picture, (kind, content) in zip(*_fitting(pictures), strict=True):
        wide = picture.width > 1.6 * picture.height
        times = max(1, (WIDE_WIDTH if wide else PICTURE_WIDTH) // max(1, picture.width))
        note = "" if kind == "png" else f" Compressed here; whole in pictures/{picture.name}.png of the run."
        shown = {"caption": picture.caption + note, "width": times * picture.width, "wide": wide}
        shown["source"] = f"data:image/{kind};base64,{base64.b64encode(content).decode()}" if content else ""
        titled.setdefault(picture.title, []).append(shown)
    return titled


def _fitting(pictures: "Sequence[Picture]") -> "tuple[list[Picture], list[tuple[str, bytes]]]":
    """Returns pictures and files that fit the limit: as they are, compressed, or with some of the middle left out.

    Small ones are compressed last, since a checkerboard does not survive compression.
    """
    kept, files = list(pictures), [("png", picture.png) for picture in pictures]

    def size() -> int:
        return sum(len(content) for _, content in files)

    for quality in QUALITIES:
        for place in sorted(range(len(kept)), key=lambda place: -len(kept[place].png)):
            if size() <= PICTURE_BYTES:
                return kept, files
            if kept[place].png:
                files[place] = ("webp", _compressed(kept[place].png, quality))
    while size() > PICTURE_BYTES and len(kept) > 2:
        middle = [place for place in range(1, len(kept) - 1) if place % 2]
        kept, files = ([of[place] for place in range(len(of)) if place not in middle] for of in (kept, files))  # type: ignore[assignment]
    return kept, files


def _compressed(png: bytes, quality: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(out, "WEBP", quality=quality)
    return out.getvalue()
