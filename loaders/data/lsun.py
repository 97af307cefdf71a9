"""LSUN's LMDB export, converted once to a file of uint8 images that is mapped into memory.

Shape legend: N images, S edge in pixels.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import data

from wallclock.loaders.batches import DataError, Dataset, Split
from wallclock.loaders.data.image_files import decode_middle

PIXELS, DESCRIPTION = "images_NHWC.u8", "conversion.json"
HELD_OUT = 0.01  # share of the images, at most 3,000 of them: enough for an estimate
TOGETHER = 256  # images written between two updates of the description


def is_lmdb(path: Path) -> bool:
    """Returns whether a folder is an LMDB environment."""
    return (path / "data.mdb").is_file()


def is_converted(path: Path) -> bool:
    """Returns whether a folder holds a conversion, finished or not."""
    return (path / DESCRIPTION).is_file()


class LsunImages(data.Dataset[tuple[int, Any]]):
    """The images of these keys in an LMDB, scaled to S = `size`; each process opens the LMDB on its first read."""

    def __init__(self, path: Path, keys: list[bytes], size: int) -> None:
        self.path, self.keys, self.size = path, keys, size
        self._environment: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Drops the handle from the pickled state: a process may not use a handle that another has opened."""
        return self.__dict__ | {"_environment": None}

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        """Returns the index and the image, uint8 [S, S, 3], or None for an image that cannot be decoded."""
        if self._environment is None:
            self._environment = _open(self.path)
        with self._environment.begin(buffers=True) as transaction:
            content = transaction.get(self.keys[index])
            try:
                return index, decode_middle(bytes(content or b""), f"{self.path}, image {index}", self.size)
            except DataError:
                return index, None


def _open(path: Path) -> Any:
    if find_spec("lmdb") is None:
        raise DataError("reading LSUN needs the package lmdb; install it with `uv sync --extra lmdb`")
    import lmdb

    try:
        # Without the lock file, a folder that may only be read will do; without read-ahead, random reads stay small.
        return lmdb.open(str(path), readonly=True, lock=False, readahead=False, max_readers=1)
    except lmdb.Error as error:
        raise DataError(f"cannot open {path}: {error}; if it is damaged, fetch it again") from None


def lmdb_keys(path: Path) -> list[bytes]:
    """Returns all keys of an LMDB in its order.

    Raises:
        DataError: if the LMDB cannot be read, or is empty.
    """
    environment = _open(path)
    try:
        with environment.begin() as transaction:
            keys = list(transaction.cursor().iternext(values=False))
    finally:
        environment.close()
    if not keys:
        raise DataError(f"{path} holds no images; fetch it again")
    return keys


def chosen_keys(keys: list[bytes], fraction: float) -> list[bytes]:
    """Returns the lesson's sample of all keys: each drawn with the same chance, from a fixed seed.

    The fraction is 0.1 or 0.2 in the lesson's samples; 1 keeps all.

    Raises:
        ValueError: if `fraction` is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction:g}; expected above 0 and at most 1, such as 0.2")
    drawn = np.random.Generator(np.random.PCG64(0)).random(len(keys))
    return [key for key, number in zip(keys, drawn, strict=True) if number < fraction]


def convert(
    source: Path,
    to: Path,
    *,
    size: int = 64,
    fraction: float = 1.0,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Converts an LMDB's images to one file of uint8 [N, S, S, 3]; resumes where an earlier call was stopped.

    Images that cannot be decoded are left out and counted. The middle square of each is scaled, as the lesson does.

    Args:
        source: folder that holds `data.mdb`.
        to: folder to write; made if missing.
        size: S in pixels.
        fraction: share of the images; see `chosen_keys`.
        workers: number of processes that decode; 0 decodes in this one.
        progress: function called with the number of images done and the total number.

    Returns:
        The folder `to`.

    Raises:
        DataError: if the source cannot be read, or `to` holds another conversion.
        ValueError: if `fraction` or `size` is out of range.
    """
    if size < 1:
        raise ValueError(f"size is {size}; expected a number of pixels")
    if not is_lmdb(source):
        raise DataError(f"{source} has no data.mdb; name the folder of an LMDB, as LSUN's export unpacks to")
    keys = chosen_keys(lmdb_keys(source), fraction)
    if not keys:
        raise DataError(f"a fraction of {fraction:g} keeps no image of {source}; choose a larger one")
    of: dict[str, Any] = {"size": size, "fraction": fraction, "images": len(keys)}
    of["keys"] = hashlib.sha256(b"".join(keys)).hexdigest()
    found = _description(to) if is_converted(to) else {**of, "read": 0, "written": 0, "content_hash": ""}
    if any(found[name] != value for name, value in of.items()):
        raise DataError(
            f"{to} holds another conversion ({found['images']:,} images of {found['size']}); choose another"
        )
    if found["content_hash"]:
        progress(len(keys), len(keys))
        return to
    image_bytes = 3 * size * size
    try:
        to.mkdir(parents=True, exist_ok=True)
        with open(to / PIXELS, "ab") as file:
            file.truncate(found["written"] * image_bytes)  # cuts off what was written after the last description
            for read, images in _read_in_parts(LsunImages(source, keys, size), found["read"], workers):
                for image in images:
                    file.write(image.tobytes())
                file.flush()
                found |= {"read": read, "written": found["written"] + len(images)}
                _describe(to, found)
                progress(read, len(keys))
        if not found["written"]:
            raise DataError(f"no image of {source} can be decoded; fetch it again")
        with open(to / PIXELS, "rb") as whole:
            _describe(to, found | {"content_hash": hashlib.file_digest(whole, "sha256").hexdigest()})
    except OSError as error:
        raise DataError(
            f"cannot write {error.filename or to}: {error.strerror}; make room, then run it again"
        ) from None
    return to


def _read_in_parts(images: LsunImages, first: int, workers: int) -> Iterator[tuple[int, list[Any]]]:
    """Yields the number of images read so far and the newly decoded images, `TOGETHER` at a time."""
    rest = data.Subset(images, range(first, len(images)))
    batches = data.DataLoader(rest, batch_size=TOGETHER, num_workers=workers, collate_fn=list)
    for batch in batches:
        yield batch[-1][0] + 1, [image for _, image in batch if image is not None]


def _description(path: Path) -> dict[str, Any]:
    try:
        found = json.loads((path / DESCRIPTION).read_text())
        for name in ("size", "fraction", "images", "keys", "read", "written", "content_hash"):
            found[name]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path / DESCRIPTION} is damaged; remove {path} and convert again") from None
    return found


def _describe(path: Path, found: dict[str, Any]) -> None:
    part = path / f"{DESCRIPTION}.part"
    part.write_text(json.dumps(found, indent=1))
    part.replace(path / DESCRIPTION)


def load_converted(path: Path) -> Split:
    """Returns what `convert` wrote, mapped into memory; its last hundredth, at most 3,000 images, is held out.

    Raises:
        DataError: if the conversion is not finished, or is damaged.
    """
    found = _description(path)
    shape = (found["written"], found["size"], found["size"], 3)
    if not found["content_hash"]:
        raise DataError(
            f"{path} is converted as far as image {found['read']:,} of {found['images']:,}; run the conversion again, "
            "it goes on from there"
        )
    whole_bytes = int(np.prod(shape))
    size_bytes = (path / PIXELS).stat().st_size if (path / PIXELS).exists() else 0
    if size_bytes != whole_bytes or found["written"] < 2:
        raise DataError(
            f"{path / PIXELS} has {size_bytes:,} bytes; expected {whole_bytes:,}. Remove {path} and convert again"
        )
    # Mapped privately: torch wants memory that could be written, and no write reaches the file.
    images = torch.from_numpy(np.memmap(path / PIXELS, np.uint8, "c", shape=shape))
    held_out = max(1, min(3000, int(HELD_OUT * len(images))))
    parts = []
    for role, part in (("train", images[:-held_out]), ("held out", images[-held_out:])):
        digest = hashlib.sha256(f"{found['content_hash']} {role} {held_out}".encode()).hexdigest()
        labels = torch.zeros(len(part), dtype=torch.int64)
        parts.append(Dataset(f"lsun:{found['fraction']:g}", part, labels, ("lsun",), digest))
    return Split(*parts)
