"""Encoded images on the disk, read one by one: from folders, hub-style Parquet, or tar shards."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wallclock.loaders.batches import DataError, Dataset
from wallclock.loaders.data.image_files import Pixels, class_folders, data_set_name, decode, is_image
from wallclock.loaders.data.source import CLASSES, UNVERIFIED, check_labels, damage_error

JPEG, JPEG_END = b"\xff\xd8", b"\xff\xd9"
DECODED_TOGETHER = 500


@dataclass(frozen=True)
class StoredImages:
    """Encoded images and their labels; each image is read on access.

    Attributes:
        name: the name under which accuracies are recorded.
        form: form of the set: "folders", "parquet" or "shards".
        labels: labels, int64 [N].
        classes: names of the classes, in label order.
        names: function that returns the name of the image at a place, for messages.
        content: function that returns the encoded bytes of the image at a place, without a copy if they are in memory.
        shape: height and width in pixels that every decoded image must have.
    """

    name: str
    form: str
    labels: torch.Tensor
    classes: tuple[str, ...]
    names: Callable[[int], str] = field(repr=False)
    content: Callable[[int], npt.NDArray[np.uint8]] = field(repr=False)
    shape: tuple[int, int] = (32, 32)

    def __post_init__(self) -> None:
        if not len(self.labels):
            raise DataError(f"{self.name}: no images; name a path that holds some")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            at = int(((self.labels < 0) | (self.labels >= len(self.classes))).nonzero()[0])
            raise DataError(
                f"{self.names(at)} has label {int(self.labels[at])}; expected 0 to {len(self.classes) - 1}, "
                "restore it from its source"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> "StoredImages":
        """Returns the set of the first `count` images."""
        return replace(self, labels=self.labels[:count])

    def decode(self, place: int) -> Pixels:
        """Returns the image at `place` as uint8 [H, W, 3].

        Raises:
            DataError: if the image cannot be decoded or has another size; names the image.
        """
        return decode(self.content(place).tobytes(), self.names(place), *self.shape)

    def dataset(self) -> Dataset:
        """Decodes all images on two threads, which Pillow allows to run at once; errors are those of `decode`."""
        images = np.zeros((len(self), *self.shape, 3), dtype=np.uint8)

        def decode(start: int) -> None:
            for place in range(start, min(start + DECODED_TOGETHER, len(self))):
                images[place] = self.decode(place)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(decode, range(0, len(self), DECODED_TOGETHER)))
        return Dataset.create(self.name, torch.from_numpy(images), self.labels, self.classes)


def is_cut_off(content: npt.NDArray[np.uint8]) -> bool:
    """Returns whether a JPEG lacks its end, which some decoders fill with grey and a warning; a cheap check."""
    return content[:2].tobytes() == JPEG and content[-2:].tobytes() != JPEG_END


def packed_reader(
    buffers: Sequence[npt.NDArray[np.uint8]], at: npt.NDArray[np.int64]
) -> Callable[[int], npt.NDArray[np.uint8]]:
    """Returns a function that reads the encoded image at a place from buffers.

    Args:
        buffers: arrays uint8 [bytes], in memory or mapped.
        at: int64 [N, 3]: for each image the number of its buffer, its first byte there, and its size in bytes.
    """

    def content(place: int) -> npt.NDArray[np.uint8]:
        buffer, start, size = at[place]
        return buffers[buffer][start : start + size]

    return content


def stored_parquet(path: Path, part: str = "train", classes: tuple[str, ...] = CLASSES) -> StoredImages:
    """Returns the encoded images of hub-style Parquet.

    Each file holds an image column of structs with encoded bytes, and a column of labels.

    Args:
        path: folder that holds `<part>*.parquet` at any depth, or one such file.
        part: part of the set, "train" or "test".
        classes: names of the classes if the files' metadata give none.

    Raises:
        DataError: if there are no such files, or one is damaged.
    """
    files = [path] if path.is_file() else sorted(path.rglob(f"{part}*.parquet"))
    if not files:
        raise DataError(f"{path} has no {part}*.parquet; name a folder that holds both train and test")
    buffers, at, labels, of_file = [], [], [], []
    for number, file in enumerate(files):
        column, own, classes = _encoded_column(file, classes)
        _, offsets, data = column.buffers()
        wide = str(column.type).startswith("large")
        ends = np.frombuffer(offsets, dtype=np.int64 if wide else np.int32).astype(np.int64)
        ends = ends[column.offset : column.offset + len(column) + 1]
        buffers.append(np.frombuffer(data or b"", dtype=np.uint8))
        at.append(np.stack([np.full(len(own), number), ends[:-1], np.diff(ends)], axis=1))
        labels.append(own)
        of_file += [(file, index) for index in range(len(own))]
    return StoredImages(
        UNVERIFIED,
        "parquet",
        torch.from_numpy(np.concatenate(labels)),
        classes,
        lambda place: "{}, image {}".format(*of_file[place]),
        packed_reader(buffers, np.concatenate(at)),
    )


def _encoded_column(file: Path, names: tuple[str, ...]) -> tuple[Any, npt.NDArray[np.int64], tuple[str, ...]]:
    """Reads a hub-style Parquet file: a pyarrow array of binaries, labels int64 [N], and the names of the classes.

    The names are those given if the file has none. Raises DataError if it is damaged, or has other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
        table.validate(full=True)
        columns = table.column_names
    except (OSError, ValueError, pa.ArrowException) as error:
        raise damage_error(file, str(error)) from None
    image = next((c for c in ("img", "image") if c in columns), None)
    label = next((c for c in ("label", "labels", "fine_label") if c in columns), None)
    if image is None or label is None:
        raise DataError(f"{file} has columns {', '.join(columns)}; expected img or image, and label")
    column = table[image].combine_chunks()
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = column.field("bytes")
    if len(column) == 0 or not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise damage_error(file, f"{len(column)} images of type {column.type}, expected some, encoded, as binary")
    if not pa.types.is_integer(table[label].type) or table[label].null_count:
        raise damage_error(file, f"labels of type {table[label].type}, {table[label].null_count} of them missing")
    labels, names = table[label].to_numpy().astype("<i8"), _class_names(table.schema.metadata, label) or names
    check_labels(labels.tolist(), file, len(names))
    return column, labels, names


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...] | None:
    """Returns the label names in the hub's metadata, or None if it has none."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def stored_folders(path: Path, classes: tuple[str, ...] | None = None) -> StoredImages:
    """Returns the images in `path/<class>/`, as a set named after the parent of `path`.

    By default the classes are all folders, in alphabetical order.

    Raises:
        DataError: if there are no images.
    """
    if classes is None:
        classes = class_folders(path) if path.is_dir() else ()
    folders = [(label, path / name) for label, name in enumerate(classes) if (path / name).is_dir()]
    files = [(file, label) for label, folder in folders for file in sorted(filter(is_image, folder.iterdir()))]
    if not files:
        raise DataError(f"{path} holds no images; expected {path}/<class>/*.png or *.jpg")

    def content(place: int) -> npt.NDArray[np.uint8]:
        try:
            return np.fromfile(files[place][0], dtype=np.uint8)
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}; restore or remove it") from None

    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    name = data_set_name("folder", path.parent)
    return StoredImages(name, "folders", labels, classes, lambda place: str(files[place][0]), content)


def find_stored(path: Path) -> StoredImages | None:
    """Returns the training images at `path` still encoded, or None if the data set there has no encoded images.

    Raises:
        DataError: if the files are damaged.
    """
    if path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("train*.parquet"))):
        return stored_parquet(path.parent if path.is_file() else path)
    return stored_folders(path / "train") if (path / "train").is_dir() else None
