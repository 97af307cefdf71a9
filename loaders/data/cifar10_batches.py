"""CIFAR-10's python and binary batches, in a folder or in the published archive."""

import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from wallclock.loaders.batches import DataError
from wallclock.loaders.data.safe_pickle import load_pickle
from wallclock.loaders.data.source import CLASSES, UNVERIFIED, Labelled, Pixels, Source, check_labels, damaged, joined

ROW_BYTES = 1 + 3 * 32 * 32
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


def _from_planes(rows: Pixels) -> Pixels:
    """Turns rows of red, green and blue planes, uint8 [N, 3072], into images [N, 32, 32, 3]."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _python_batch(content: bytes, path: Path) -> Labelled:
    batch = load_pickle(content, path)
    data, labels = batch.get("data"), batch.get("labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != ROW_BYTES - 1:
        raise damaged(path, "no uint8 array [N, 3072] under 'data'")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(isinstance(v, int) for v in labels):
        raise damaged(path, f"not {len(data)} whole numbers under 'labels'")
    check_labels(labels, path)
    return _from_planes(data), np.array(labels, dtype=np.int64)


def _binary_batch(content: bytes, path: Path) -> Labelled:
    if not content or len(content) % ROW_BYTES:
        whole = max(BATCH_IMAGES * ROW_BYTES, -(-len(content) // ROW_BYTES) * ROW_BYTES)
        raise damaged(path, f"{len(content):,} bytes; expected rows of {ROW_BYTES:,}, {whole:,} in all")
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, ROW_BYTES)
    check_labels(rows[:, 0].tolist(), path)
    return _from_planes(rows[:, 1:]), rows[:, 0].astype(np.int64)


def _from_batches(read: Callable[[str], bytes], names: Iterable[str], where: Path, suffix: str) -> Source:
    """Reads the six batches through `read`, which maps a file's name to its content."""
    missing = [name + suffix for name in BATCHES if name + suffix not in set(names)]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}; fetch the whole set: wallclock data fetch")
    parse = _binary_batch if suffix else _python_batch
    canonical, parts = not suffix, []
    for name in BATCHES:
        content = read(name + suffix)
        genuine = hashlib.md5(content, usedforsecurity=False).hexdigest() == MD5[name]
        canonical &= genuine
        images, labels = parse(content, where / (name + suffix))
        # Files of the canonical size that are not the canonical ones were damaged on their way.
        if not suffix and not genuine and len(images) == BATCH_IMAGES:
            raise damaged(where / name, "its checksum is not the published one")
        parts.append((images, labels))
    kind = "binary batches" if suffix else "python batches"
    source = Source(UNVERIFIED, kind, CLASSES, joined(parts[:-1]), parts[-1])
    return Source("cifar10", kind, CLASSES, source.train, source.test) if canonical else source


def from_directory(path: Path, suffix: str) -> Source:
    """Reads the six batches that lie in a folder.

    Args:
        path: of the folder.
        suffix: of their names: ".bin" for the binary version, else empty.

    Raises:
        DataError: if one is missing or damaged.
    """

    def read(name: str) -> bytes:
        try:
            return (path / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"cannot read {path / name}: {error.strerror}; check its permissions and the disk"
            ) from None

    return _from_batches(read, [p.name for p in path.iterdir()], path, suffix)


def from_archive(path: Path) -> Source:
    """Reads the batches out of the published archive in memory; nothing is written to the disk.

    Raises:
        DataError: if a batch is missing or damaged, or a member has no place in such an archive.
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
        raise damaged(path, str(error)) from None
    suffix = ".bin" if any(name.endswith(".bin") for name in contents) else ""
    return _from_batches(contents.__getitem__, contents, path, suffix)
