"""CIFAR-10's python and binary batches, in a folder or in the published archive."""

import hashlib
import io
import lzma
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wallclock.loaders.batches import DataError, Dataset, Split
from wallclock.loaders.data.source import CLASSES, UNVERIFIED, check_labels, damage_error

IMAGE_BYTES = 3 * 32 * 32
ROW_BYTES = 1 + IMAGE_BYTES
BATCH_IMAGES = 10_000

# md5 of the canonical python batches, as torchvision also pins them; https://www.cs.toronto.edu/~kriz/cifar.html
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
BATCHES = tuple(MD5)  # the last one is the test set

# Globals that a python batch names to rebuild its array: Python 2 wrote them, and numpy has renamed its module since.
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
# Exceptions that the unpickler raises for a damaged stream.
_STREAM_ERRORS = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(OverflowError, MemoryError),
)

Rows = npt.NDArray[np.uint8]


class _StandIn:
    """Stand-in for a pickle's classes: keeps the arguments and state from which an array or a dtype would be built.

    Numpy's own classes trust a file: one flipped bit in the flags of a dtype makes them follow bytes as
    pointers.
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Reader of the pickles in python batches, which never looks up or calls a name from the file."""

    def __init__(self, content: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in for a global, and raises DataError for one that no batch needs."""
        if (module, name) not in _ADMITTED:
            raise DataError(
                f"{self._path} asks for {module}.{name}, which no CIFAR-10 batch holds; nothing was executed. "
                "Delete the file and get the set from its source: wallclock data fetch"
            )
        return _StandIn


def _python_batch(content: bytes, path: Path) -> tuple[Rows, list[int]]:
    try:
        fields = _Unpickler(content, path).load()
        fields = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in fields.items()}
        labels, (_, shape, dtype, fortran, pixels) = fields["labels"], fields["data"].state
        if dtype.arguments[0] not in ("u1", "uint8") or fortran or tuple(shape[1:]) != (IMAGE_BYTES,):
            raise ValueError("an array of another shape or type")
        pixels = pixels.encode("latin1") if isinstance(pixels, str) else pixels
        rows = np.frombuffer(pixels, np.uint8).reshape(-1, IMAGE_BYTES)
    except DataError:
        raise
    except _STREAM_ERRORS as error:
        raise damage_error(path, f"no pickle of 'labels' and of uint8 'data' [N, {IMAGE_BYTES}] ({error})") from None
    if not isinstance(labels, list) or len(labels) != len(rows) or not all(isinstance(v, int) for v in labels):
        raise damage_error(path, f"not {len(rows)} whole numbers under 'labels'")
    return rows, labels


def _binary_batch(content: bytes, path: Path) -> tuple[Rows, list[int]]:
    if not content or len(content) % ROW_BYTES:
        whole = max(BATCH_IMAGES * ROW_BYTES, -(-len(content) // ROW_BYTES) * ROW_BYTES)
        raise damage_error(path, f"{len(content):,} bytes; expected rows of {ROW_BYTES:,}, {whole:,} in all")
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, ROW_BYTES)
    return rows[:, 1:], rows[:, 0].tolist()


def _from_batches(read: Callable[[str], bytes], names: Iterable[str], where: Path, suffix: str) -> tuple[str, Split]:
    """Reads the six batches through `read`, which maps a file's name to its content."""
    missing = [name + suffix for name in BATCHES if name + suffix not in set(names)]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}; fetch the whole set: wallclock data fetch")
    canonical, parts = not suffix, []
    for name in BATCHES:
        content, path = read(name + suffix), where / (name + suffix)
        genuine = hashlib.md5(content, usedforsecurity=False).hexdigest() == MD5[name]
        canonical &= genuine
        rows, labels = (_binary_batch if suffix else _python_batch)(content, path)
        check_labels(labels, path)
        # Files of the canonical size that are not the canonical ones were damaged on their way.
        if not suffix and not genuine and len(rows) == BATCH_IMAGES:
            raise damage_error(path, "its checksum is not the published one")
        parts.append((rows, labels))
    name = "cifar10" if canonical else UNVERIFIED
    split = Split(_as_dataset(name, parts[:-1]), _as_dataset(name, parts[-1:]))
    return "binary batches" if suffix else "python batches", split


def _as_dataset(name: str, parts: list[tuple[Rows, list[int]]]) -> Dataset:
    """Joins batches whose rows each hold an image's red, green and blue plane."""
    planes = np.concatenate([rows for rows, _ in parts]).reshape(-1, 3, 32, 32)
    images_NHWC = torch.from_numpy(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)))
    labels = torch.tensor([label for _, of_batch in parts for label in of_batch], dtype=torch.int64)
    return Dataset.create(name, images_NHWC, labels, CLASSES)


def from_directory(path: Path, suffix: str) -> tuple[str, Split]:
    """Reads the six batches in a folder, files that end in ".bin" for the binary version, else without a suffix.

    Returns:
        The format's name for messages, and the data set.

    Raises:
        DataError: if a batch is missing or damaged.
    """

    def read(name: str) -> bytes:
        try:
            return (path / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"cannot read {path / name}: {error.strerror}; check its permissions and the disk"
            ) from None

    return _from_batches(read, [p.name for p in path.iterdir()], path, suffix)


def from_archive(path: Path) -> tuple[str, Split]:
    """Reads the batches out of the published archive in memory; nothing is written to the disk.

    Returns:
        The format's name for messages, and the data set.

    Raises:
        DataError: if a batch is missing or damaged, or the archive has a member that does not belong there.
    """
    wanted = {*BATCHES, *(f"{name}.bin" for name in BATCHES)}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                place = PurePosixPath(member.name)
                if place.is_absolute() or ".." in place.parts or not (member.isfile() or member.isdir()):
                    raise DataError(
                        f"{path} has a member '{member.name}' that no CIFAR-10 archive holds; nothing was extracted. "
                        "Delete it and fetch the set from its source: wallclock data fetch"
                    )
                if member.isfile() and place.name in wanted and member.size < 64 << 20:
                    file = archive.extractfile(member)
                    contents[place.name] = file.read() if file else b""
    except DataError:
        raise
    # Damage shows in the compression, in the members' headers, or in the text of an extended header.
    except (tarfile.TarError, EOFError, OSError, ValueError, KeyError, zlib.error, lzma.LZMAError) as error:
        raise damage_error(path, str(error)) from None
    suffix = ".bin" if any(name.endswith(".bin") for name in contents) else ""
    return _from_batches(contents.__getitem__, contents, path, suffix)
