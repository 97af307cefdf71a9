"""Images as they lie on the disk, encoded, read one by one: from folders, hub-style Parquet, or tar shards."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from wallclock.kernels.augment import Augmentation
from wallclock.loaders.batches import DataError, Dataset, check_padding
from wallclock.loaders.data.encoded_images import decoded, encoded_column, folders_in, images_in
from wallclock.loaders.data.source import CLASSES, UNVERIFIED, Pixels

Damaged = Literal["raise", "skip"]
JPEG, JPEG_END = b"\xff\xd8", b"\xff\xd9"


@dataclass(frozen=True)
class StoredImages:
    """Encoded images and their labels; each is read when it is asked for.

    Attributes:
        name: what an accuracy on it may be called.
        form: "folders", "parquet" or "shards".
        labels: int64 [N].
        classes: in label order.
        names: of each image, for messages.
        content: returns the encoded bytes of the image at a place, without a copy where they lie in memory.
        shape: height and width of every image, as its decoder demands.
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
        """Returns the first `count` images."""
        return replace(self, labels=self.labels[:count])

    def decode(self, place: int) -> Pixels:
        """Returns the image at `place` as uint8 [H, W, 3].

        Raises:
            DataError: if it cannot be decoded or has another size; names it.
        """
        return decoded((self.names(place), self.content(place).tobytes()), *self.shape)

    def checked_shape(self, augmentation: Augmentation, size: int | None) -> tuple[int, int]:
        """Returns height and width, after checking that the padding fits and that no other size is wanted.

        Raises:
            DataError: if not.
        """
        if size is not None:
            raise DataError(f"encoded images are not scaled to {size} pixels; decode them first: StoredImages.dataset")
        check_padding(augmentation, self.shape)
        return self.shape

    def trouble(self, place: int) -> str:
        """Returns why the image at `place` cannot be used; empty if it can."""
        try:
            self.decode(place)
        except DataError as error:
            return str(error)
        return ""

    def dataset(self, damaged: Damaged = "raise") -> tuple[Dataset, list[str]]:
        """Decodes all images, on two threads.

        Args:
            damaged: what happens to images that cannot be decoded.

        Returns:
            The data set, and why each image was left out.

        Raises:
            DataError: if one cannot be decoded and `damaged` is "raise", or none can.
        """
        check_policy(damaged)
        images = np.zeros((len(self), *self.shape, 3), dtype=np.uint8)
        left_out: dict[int, str] = {}

        def decode(places: range) -> None:
            for place in places:
                try:
                    images[place] = self.decode(place)
                except DataError as error:
                    if damaged == "raise":
                        raise
                    left_out[place] = str(error)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(decode, [range(start, min(start + 500, len(self))) for start in range(0, len(self), 500)]))
        kept = [place for place in range(len(self)) if place not in left_out]
        if not kept:
            raise DataError(f"{self.name}: none of {len(self)} images can be decoded; {left_out[0]}")
        pixels, labels = torch.from_numpy(images), self.labels
        if left_out:
            pixels, labels = pixels[kept], labels[kept]
        return Dataset.create(self.name, pixels, labels, self.classes), [left_out[place] for place in sorted(left_out)]


def check_policy(damaged: str) -> None:
    """Refuses a policy for damaged images that there is not.

    Raises:
        ValueError: names those that there are.
    """
    if damaged not in get_args(Damaged):
        raise ValueError(f"damaged is '{damaged}'; expected one of {', '.join(get_args(Damaged))}")


def cut_off(content: npt.NDArray[np.uint8]) -> bool:
    """Says whether a JPEG lacks its end, which some decoders fill with grey and a warning; cheap enough for each."""
    return content[:2].tobytes() == JPEG and content[-2:].tobytes() != JPEG_END


def packed(
    buffers: Sequence[npt.NDArray[np.uint8]], at: npt.NDArray[np.int64]
) -> Callable[[int], npt.NDArray[np.uint8]]:
    """Returns a reader of images that lie in buffers.

    Args:
        buffers: each uint8 [bytes], in memory or mapped.
        at: int64 [N, 3]: of each image its buffer, its first byte there, and its size in bytes.
    """

    def content(place: int) -> npt.NDArray[np.uint8]:
        buffer, start, size = at[place]
        return buffers[buffer][start : start + size]

    return content


def stored_parquet(path: Path, part: str = "train") -> StoredImages:
    """Returns the images of hub-style Parquet as they lie there; see `loaders.data.encoded_images.from_parquet`.

    Args:
        path: a folder that holds `<part>*.parquet` somewhere, or one such file.
        part: "train" or "test".

    Raises:
        DataError: if there are none, or a file is damaged.
    """
    files = [path] if path.is_file() else sorted(path.rglob(f"{part}*.parquet"))
    if not files:
        raise DataError(f"{path} has no {part}*.parquet; name a folder that holds some")
    buffers, at, labels, of_file = [], [], [], []
    classes: tuple[str, ...] | None = None
    for number, file in enumerate(files):
        column, own, classes = encoded_column(file, classes)
        _, offsets, data = column.buffers()
        wide = str(column.type).startswith("large")
        ends = np.frombuffer(offsets, dtype=np.int64 if wide else np.int32).astype(np.int64)
        ends = ends[column.offset : column.offset + len(column) + 1]
        buffers.append(np.frombuffer(data, dtype=np.uint8))
        at.append(np.stack([np.full(len(own), number), ends[:-1], np.diff(ends)], axis=1))
        labels.append(own)
        of_file += [(file, index) for index in range(len(own))]
    return StoredImages(
        UNVERIFIED,
        "parquet",
        torch.from_numpy(np.concatenate(labels)),
        classes or CLASSES,
        lambda place: "{}, image {}".format(*of_file[place]),
        packed(buffers, np.concatenate(at)),
    )


def stored_folders(path: Path) -> StoredImages:
    """Returns the images in `path/<class>/`, the classes in alphabetical order.

    Raises:
        DataError: if there are none.
    """
    classes = folders_in(path) if path.is_dir() else ()
    files = [(file, label) for label, name in enumerate(classes) for file in images_in(path / name)]
    if not files:
        raise DataError(f"{path} holds no images; expected {path}/<class>/*.png or *.jpg")

    def content(place: int) -> npt.NDArray[np.uint8]:
        try:
            return np.fromfile(files[place][0], dtype=np.uint8)
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}; restore or remove it") from None

    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    name = f"folder:{path.parent.resolve().name}"
    return StoredImages(name, "folders", labels, classes, lambda place: str(files[place][0]), content)


def find_stored(path: Path) -> StoredImages | None:
    """Returns the training images at `path` as they lie there, or None where they are not encoded one by one.

    Raises:
        DataError: if they are damaged.
    """
    if path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("train*.parquet"))):
        return stored_parquet(path.parent if path.is_file() else path)
    return stored_folders(path / "train") if (path / "train").is_dir() else None
