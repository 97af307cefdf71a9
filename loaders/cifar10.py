"""CIFAR-10 from whatever form it lies in: python batches, binary batches, Parquet, or folders of images."""

import hashlib
import lzma
import re
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import torch

from loaders.batches import DataError, Dataset, Split
from loaders.safe_pickle import damaged, load_pickle

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ROW_BYTES = 1 + 3 * 32 * 32
BATCH_IMAGES = 10_000
TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

# md5 of the canonical python batches, as torchvision also pins them; https://www.cs.toronto.edu/~kriz/cifar.html
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}

Pixels = npt.NDArray[np.uint8]
Labelled = tuple[Pixels, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Source:
    """A data set as found on disk.

    Attributes:
        name: what an accuracy on it may be called.
        format: "python batches", "binary batches", "parquet" or "image folders".
        classes: in label order.
        train: images uint8 [N, 32, 32, 3] and labels int64 [N].
        test: the same.
    """

    name: str
    format: str
    classes: tuple[str, ...]
    train: Labelled
    test: Labelled


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
    _check_labels(labels, path)
    return _from_planes(data), np.array(labels, dtype=np.int64)


def _check_labels(labels: list[int], path: Path, classes: int = len(CLASSES)) -> None:
    """Refuses labels that name no class here, where the file at fault is known."""
    low, high = min(labels, default=0), max(labels, default=0)
    if low < 0 or high >= classes:
        raise damaged(path, f"labels run from {low:.6g} to {high:.6g}; expected 0 to {classes - 1}")


def _binary_batch(content: bytes, path: Path) -> Labelled:
    if not content or len(content) % ROW_BYTES:
        whole = max(BATCH_IMAGES * ROW_BYTES, -(-len(content) // ROW_BYTES) * ROW_BYTES)
        raise damaged(path, f"{len(content):,} bytes; expected rows of {ROW_BYTES:,}, {whole:,} in all")
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, ROW_BYTES)
    _check_labels(rows[:, 0].tolist(), path)
    return _from_planes(rows[:, 1:]), rows[:, 0].astype(np.int64)


def _joined(parts: list[Labelled]) -> Labelled:
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def _from_batches(read: Callable[[str], bytes], names: Iterable[str], where: Path, suffix: str) -> Source:
    """Reads the six batches through `read`, which maps a file's name to its content."""
    missing = [name + suffix for name in (*TRAIN_BATCHES, "test_batch") if name + suffix not in set(names)]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}; fetch the whole set: wallclock data fetch")
    parse = _binary_batch if suffix else _python_batch
    canonical, parts = not suffix, []
    for name in (*TRAIN_BATCHES, "test_batch"):
        content = read(name + suffix)
        genuine = hashlib.md5(content, usedforsecurity=False).hexdigest() == MD5[name]
        canonical &= genuine
        images, labels = parse(content, where / (name + suffix))
        # Files of the canonical size that are not the canonical ones were damaged on their way.
        if not suffix and not genuine and len(images) == BATCH_IMAGES:
            raise damaged(where / name, "its checksum is not the published one")
        parts.append((images, labels))
    kind = "binary batches" if suffix else "python batches"
    source = Source("cifar10-unverified", kind, CLASSES, _joined(parts[:5]), parts[5])
    return Source("cifar10", kind, CLASSES, source.train, source.test) if canonical else source


def _from_directory(path: Path, suffix: str) -> Source:
    def read(name: str) -> bytes:
        try:
            return (path / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"cannot read {path / name}: {error.strerror}; check its permissions and the disk"
            ) from None

    return _from_batches(read, [p.name for p in path.iterdir()], path, suffix)


def _from_archive(path: Path) -> Source:
    """Reads the batches out of the published archive in memory; nothing is written to the disk."""
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
                if member.isfile() and member.size < 64 << 20:
                    file = archive.extractfile(member)
                    contents[place.name] = file.read() if file else b""
    except DataError:
        raise
    # Damage shows in the compression, in the members' headers, or in the text of an extended header.
    except (tarfile.TarError, EOFError, OSError, ValueError, KeyError, zlib.error, lzma.LZMAError) as error:
        raise damaged(path, str(error)) from None
    suffix = ".bin" if any(name.endswith(".bin") for name in contents) else ""
    return _from_batches(contents.__getitem__, contents, path, suffix)


def _decoded(encoded: Iterable[bytes], where: str) -> Pixels:
    """Decodes PNG or JPEG images of 32x32 pixels, on two threads: Pillow lets the lock go while it decodes."""
    import io

    from PIL import Image

    # What Pillow raises for damaged files, UnidentifiedImageError being an OSError.
    errors = (OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, struct.error, zlib.error)

    def decode(item: tuple[int, bytes]) -> Pixels:
        index, content = item
        try:
            # Only these two decoders: Pillow would hand some other formats to programs outside.
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
                width, height = image.size
                if (width, height) == (32, 32):  # a larger one may be a bomb, and is not decoded
                    return np.asarray(image.convert("RGB"))
        except (*errors, Image.DecompressionBombError) as error:
            raise DataError(
                f"{where}, image {index}, cannot be decoded ({error}); restore it from its source"
            ) from None
        raise DataError(f"{where}, image {index}, is {width}x{height}; expected 32x32 pixels, scale it first")

    with ThreadPoolExecutor(2) as pool:
        return np.stack(list(pool.map(decode, enumerate(encoded), chunksize=500)))


def _parquet_part(files: list[Path], names: tuple[str, ...] | None = None) -> tuple[Labelled, tuple[str, ...] | None]:
    """Reads hub-style Parquet: an image column of structs with encoded bytes, and a column of labels.

    The class names are those of the files' metadata, `names` where it has none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = []
    for file in files:
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
        labels, names = table[label].to_numpy().astype(np.int64), _class_names(table.schema.metadata, label) or names
        _check_labels(labels.tolist(), file, len(names or CLASSES))
        pixels = _decoded((value.as_py() or b"" for value in column), str(file))
        parts.append((pixels, labels))
    return _joined(parts), names


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...] | None:
    """Returns the names that the hub's metadata gives the labels, if it does."""
    import json

    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _from_parquet(path: Path) -> Source:
    files = {part: sorted(path.rglob(f"{part}*.parquet")) for part in ("train", "test")}
    for part, found in files.items():
        if not found:
            raise DataError(f"{path} has no {part}*.parquet; name a folder that holds both train and test")
    train, names = _parquet_part(files["train"])
    test, test_names = _parquet_part(files["test"], names)
    if test_names != names:
        raise DataError(f"{files['train'][0]} names other classes than {files['test'][0].name}; take both from one set")
    name = "cifar10-jpeg" if path.name == "cifar10-jpeg" or _is_jpeg(files["train"][0]) else "cifar10-unverified"
    return Source(name, "parquet", names or CLASSES, train, test)


def _is_jpeg(file: Path) -> bool:
    import pyarrow.parquet as pq

    row = next(pq.ParquetFile(file).iter_batches(batch_size=1)).to_pylist()[0]
    value = row.get("img") or row.get("image")
    content = value.get("bytes") if isinstance(value, dict) else value
    return isinstance(content, bytes) and content.startswith(b"\xff\xd8")


def _folder_part(path: Path, classes: tuple[str, ...]) -> Labelled:
    files = [(file, label) for label, name in enumerate(classes) for file in _images_in(path / name)]
    if not files:
        raise DataError(f"{path} holds no images; expected {path}/<class>/*.png or *.jpg")
    try:
        pixels = [_decoded((file.read_bytes(),), str(file)) for file, _ in files]
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}; restore or remove it") from None
    return np.concatenate(pixels), np.array([label for _, label in files], dtype=np.int64)


def _images_in(path: Path) -> list[Path]:
    return sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES) if path.is_dir() else []


def _from_folders(path: Path) -> Source:
    test = next((path / part for part in ("test", "val", "valid") if (path / part).is_dir()), None)
    if test is None:
        raise DataError(f"{path} has train/ but no test/; put images to score on in {path}/test/<class>/")
    classes = tuple(sorted(p.name for p in (path / "train").iterdir() if p.is_dir()))
    if not classes:
        raise DataError(f"{path / 'train'} holds no images; expected {path / 'train'}/<class>/*.png or *.jpg")
    strange = sorted(p.name for p in test.iterdir() if p.is_dir() and p.name not in classes)
    if strange:
        raise DataError(f"{test} has classes that train/ lacks: {', '.join(strange)}")
    name = "folder:" + (re.sub(r"[^\w.-]+", "-", path.resolve().name) or "images")
    return Source(name, "image folders", classes, _folder_part(path / "train", classes), _folder_part(test, classes))


def find_source(path: Path) -> Source:
    """Reads a data set in whatever form it lies at `path`.

    Args:
        path: a folder in one of the formats (or the one above `cifar-10-batches-py` or `-bin`), or the archive.

    Raises:
        DataError: if there is none, or it is damaged; names the file and the next step.
    """
    if not path.exists():
        raise DataError(f"no such path: {path}; get CIFAR-10 with `wallclock data fetch`, or correct --data")
    if path.is_file():
        if path.name.endswith((".tar.gz", ".tgz", ".tar")):
            return _from_archive(path)
        if path.suffix == ".parquet":
            return _from_parquet(path.parent)
        raise DataError(f"{path} is a file; expected a folder of CIFAR-10, or its .tar.gz")
    for inner in ("cifar-10-batches-py", "cifar-10-batches-bin"):
        if (path / inner).is_dir():
            path = path / inner
    names = {p.name for p in path.iterdir()}
    if names & {*TRAIN_BATCHES, "test_batch"}:
        return _from_directory(path, "")
    if names & {f"{batch}.bin" for batch in (*TRAIN_BATCHES, "test_batch")}:
        return _from_directory(path, ".bin")
    if any(path.rglob("*.parquet")):
        return _from_parquet(path)
    if (path / "train").is_dir():
        return _from_folders(path)
    archive = next((p for p in sorted(path.glob("cifar-10-*.tar.gz"))), None)
    if archive is not None:
        return _from_archive(archive)
    raise DataError(
        f"{path} holds no data set; expected CIFAR-10's python or binary batches, train*.parquet and test*.parquet, or "
        "train/<class>/ and test/<class>/ with images"
    )


def load_cifar10(path: Path) -> Split:
    """Returns the data set at `path`; see `find_source` for the formats.

    Raises:
        DataError: if it is missing or damaged.
    """
    return as_split(find_source(Path(path)))


def as_split(source: Source) -> Split:
    """Returns what was found on disk as data sets."""
    parts = [
        Dataset.create(source.name, torch.from_numpy(images), torch.from_numpy(labels), source.classes)
        for images, labels in (source.train, source.test)
    ]
    return Split(*parts)


def describe(path: Path) -> dict[str, str | int | list[str]]:
    """Returns what lies at `path`, read whole: name, format, counts, content hashes, classes.

    Raises:
        DataError: if it is missing or damaged.
    """
    source = find_source(Path(path))
    split = as_split(source)
    return {
        "name": source.name,
        "format": source.format,
        "train_images": len(split.train),
        "test_images": len(split.test),
        "train_hash": split.train.content_hash,
        "test_hash": split.test.content_hash,
        "classes": list(source.classes),
    }
