"""PNG or JPEG images of 32x32 pixels: in hub-style Parquet, or in folders named after their classes."""

import hashlib
import io
import itertools
import json
import re
import struct
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from wallclock.loaders.batches import DataError
from wallclock.loaders.data.source import CLASSES, UNVERIFIED, Labelled, Pixels, Source, check_labels, damaged, joined

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
DECODED_TOGETHER = 500

# sha256 of the encoded images of train and test in order, then their labels as little-endian int64: what the files
# hold, whatever a decoder makes of it.
KNOWN = {
    (
        "54e95e027d3628aa2e32def8c00b576c396fc95fc081611b0c8db63c448becbf",
        "add1966be195eec38dac08a05a9d78c879c377837b9ec79b8482c5b2b3a70013",
    ): "cifar10-jpeg",
}

# What Pillow raises for damaged files, UnidentifiedImageError being an OSError.
_PILLOW_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, struct.error, zlib.error),
    Image.DecompressionBombError,
)

Encoded = tuple[str, bytes]  # what to call an image in a message, and its content


def decoded(image: Encoded, height: int = 32, width: int = 32) -> Pixels:
    """Decodes one image of the size expected to uint8 [height, width, 3].

    Raises:
        DataError: if it cannot be, or has another size; names it.
    """
    name, content = image
    try:
        # Only these two decoders: Pillow would hand some other formats to programs outside.
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as opened:
            size = opened.size
            if size == (width, height):  # a larger one may be a bomb, and is not decoded
                return np.asarray(opened.convert("RGB"))
    except _PILLOW_ERRORS as error:
        raise DataError(f"{name}, cannot be decoded ({error}); restore it from its source") from None
    raise DataError(f"{name}, is {size[0]}x{size[1]}; expected {width}x{height} pixels, scale it first")


def _all_decoded(images: Iterable[Encoded]) -> Pixels:
    """Decodes to uint8 [N, 32, 32, 3], on two threads: Pillow lets the lock go while it decodes."""
    images = iter(images)
    chunks = iter(lambda: list(itertools.islice(images, DECODED_TOGETHER)), [])
    with ThreadPoolExecutor(2) as pool:
        return np.concatenate(list(pool.map(lambda chunk: np.stack([decoded(image) for image in chunk]), chunks)))


def from_parquet(path: Path) -> Source:
    """Reads hub-style Parquet: `train*.parquet` and `test*.parquet` somewhere under a folder.

    Each holds an image column of structs with encoded bytes, and a column of labels; class names come from the files'
    metadata, CIFAR-10's where they have none.

    Raises:
        DataError: if a part is missing or damaged, or the two do not belong together.
    """
    files = {part: sorted(path.rglob(f"{part}*.parquet")) for part in ("train", "test")}
    for part, found in files.items():
        if not found:
            raise DataError(f"{path} has no {part}*.parquet; name a folder that holds both train and test")
    train, train_hash, names = _parquet_part(files["train"])
    test, test_hash, test_names = _parquet_part(files["test"], names)
    if test_names != names:
        raise DataError(f"{files['train'][0]} names other classes than {files['test'][0].name}; take both from one set")
    return Source(KNOWN.get((train_hash, test_hash), UNVERIFIED), "parquet", names or CLASSES, train, test)


def _parquet_part(
    files: list[Path], names: tuple[str, ...] | None = None
) -> tuple[Labelled, str, tuple[str, ...] | None]:
    """Returns images and labels, their hash (see `KNOWN`), and the class names, `names` where the files give none."""
    parts, digest = [], hashlib.sha256()
    for file in files:
        column, labels, names = encoded_column(file, names)
        contents = [content or b"" for content in column.to_pylist()]
        for content in contents:
            digest.update(content)
        parts.append((_all_decoded((f"{file}, image {i}", c) for i, c in enumerate(contents)), labels))
    images, labels = joined(parts)
    digest.update(labels.tobytes())
    return (images, labels), digest.hexdigest(), names


def encoded_column(
    file: Path, names: tuple[str, ...] | None = None
) -> tuple[Any, npt.NDArray[np.int64], tuple[str, ...] | None]:
    """Reads one file of hub-style Parquet.

    Args:
        file: to read.
        names: of the classes, where the file gives none.

    Returns:
        The encoded images as a pyarrow array of binaries, their labels int64 [N], and the class names.

    Raises:
        DataError: if it is damaged, or has other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
        table.validate(full=True)
        columns = table.column_names
    except (OSError, ValueError, pa.ArrowException) as error:
        raise damaged(file, str(error)) from None
    image = next((c for c in ("img", "image") if c in columns), None)
    label = next((c for c in ("label", "labels", "fine_label") if c in columns), None)
    if image is None or label is None:
        raise DataError(f"{file} has columns {', '.join(columns)}; expected img or image, and label")
    column = table[image].combine_chunks()
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = column.field("bytes")
    if len(column) == 0 or not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise damaged(file, f"{len(column)} images of type {column.type}, expected some, encoded, as binary")
    if not pa.types.is_integer(table[label].type) or table[label].null_count:
        raise damaged(file, f"labels of type {table[label].type}, {table[label].null_count} of them missing")
    labels, names = table[label].to_numpy().astype("<i8"), _class_names(table.schema.metadata, label) or names
    check_labels(labels.tolist(), file, len(names or CLASSES))
    return column, labels, names


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...] | None:
    """Returns the names that the hub's metadata gives the labels, if it does."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def from_folders(path: Path) -> Source:
    """Reads `train/<class>/*.png|jpg`, and `test`, `val` or `valid` beside it; the classes in alphabetical order.

    Raises:
        DataError: if a part or a class has no images, or one cannot be read.
    """
    test = next((path / part for part in ("test", "val", "valid") if (path / part).is_dir()), None)
    if test is None:
        raise DataError(f"{path} has train/ but no test/; put images to score on in {path}/test/<class>/")
    train = path / "train"
    classes = folders_in(train)
    strange = sorted(set(folders_in(test)) - set(classes))
    if strange and classes:
        raise DataError(f"{test} has classes that train/ lacks: {', '.join(strange)}")
    parts = [_folder_part(part, classes) for part in (train, test)]
    untaught = [name for label, name in enumerate(classes) if label not in parts[0][1]]
    if untaught:
        raise DataError(f"{train / untaught[0]} holds no images; put some there, or remove the folder")
    name = "folder:" + (re.sub(r"[^\w.-]+", "-", path.resolve().name) or "images")
    return Source(name, "image folders", classes, *parts)


def folders_in(path: Path) -> tuple[str, ...]:
    """Returns the names of the folders that are classes; a dot hides one, such as `.ipynb_checkpoints`."""
    return tuple(sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")))


def _folder_part(path: Path, classes: tuple[str, ...]) -> Labelled:
    files = [(file, label) for label, name in enumerate(classes) for file in images_in(path / name)]
    if not files:
        raise DataError(f"{path} holds no images; expected {path}/<class>/*.png or *.jpg")
    try:
        pixels = _all_decoded((str(file), file.read_bytes()) for file, _ in files)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}; restore or remove it") from None
    return pixels, np.array([label for _, label in files], dtype=np.int64)


def images_in(path: Path) -> list[Path]:
    """Returns the images in a folder, by name; none where there is no folder."""
    if not path.is_dir():
        return []
    return sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith("."))
