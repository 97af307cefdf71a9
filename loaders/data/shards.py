"""Tar shards in the WebDataset convention: a writer from any data set, and an index for random access.

A shard holds `<place>.png` (or `.jpg`) and `<place>.cls` for each sample, where the place is its number in the data
set; `shards.json` beside the shards lists them, their sample counts, the class names and the content hash.
"""

import io
import json
import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wallclock.loaders.batches import DataError, Dataset
from wallclock.loaders.data.stored import StoredImages, packed_reader

MANIFEST = "shards.json"
SHARDS = 48  # default number of shards: 1, 2, 3, 4, 6, 8, 12, 16, 24 ranks or workers share them out evenly


@dataclass(frozen=True)
class Shards:
    """A folder of tar shards.

    Attributes:
        folder: folder of the tar files.
        name: the name under which accuracies are recorded.
        classes: names of the classes, in label order.
        content_hash: hash of the data set that the shards were written from.
        files: names of the tar files.
        samples: number of samples in each tar file.
        shape: height and width of the images in pixels.
    """

    folder: Path
    name: str
    classes: tuple[str, ...]
    content_hash: str
    files: tuple[str, ...]
    samples: tuple[int, ...]
    shape: tuple[int, int]

    def __len__(self) -> int:
        return sum(self.samples)

    @classmethod
    def open(cls, folder: Path) -> "Shards":
        """Returns the shards in a folder, after checking that every file is there.

        Raises:
            DataError: if the manifest is missing or damaged, or a shard is missing or empty.
        """
        try:
            found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            names, samples = zip(*((s["file"], int(s["samples"])) for s in found["shards"]), strict=True)
            shape = int(found["height"]), int(found["width"])
            shards = cls(folder, found["name"], tuple(found["classes"]), found["content_hash"], names, samples, shape)
        except OSError as error:
            raise DataError(f"cannot read {folder / MANIFEST}: {error.strerror}; write_shards makes it") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / MANIFEST} is damaged ({error}); write the shards again") from None
        for name, count in zip(names, samples, strict=True):
            file = folder / name
            if not file.is_file():
                raise DataError(f"{file} is missing; write the shards again")
            if count < 1 or file.stat().st_size <= 2 * tarfile.BLOCKSIZE:  # nothing but the marks of a tar's end
                raise DataError(f"{file} is an empty shard; remove it from {MANIFEST}, or write the shards again")
        return shards

    def stored(self) -> StoredImages:
        """Returns the images of the shards for random access, through an index of the tar files.

        Raises:
            DataError: if a shard is damaged.
        """
        count = len(self)
        at = np.full((count, 3), -1, dtype=np.int64)
        labels, keys = np.full(count, -1, dtype=np.int64), [""] * count
        buffers = [np.memmap(self.folder / name, dtype=np.uint8, mode="r") for name in self.files]
        seen = 0
        for number, name in enumerate(self.files):
            try:
                with tarfile.open(self.folder / name) as archive:
                    for member in archive:
                        place, suffix = _place(member.name, count, self.folder / name)
                        if suffix == "cls":
                            start = member.offset_data
                            labels[place] = label_of(
                                buffers[number][start : start + member.size].tobytes(), member.name
                            )
                        else:
                            at[place], keys[place] = (number, member.offset_data, member.size), member.name
                            seen += 1
            except (tarfile.TarError, OSError) as error:
                raise DataError(f"{self.folder / name} is damaged ({error}); write the shards again") from None
        if seen != count or (at[:, 0] < 0).any():
            raise DataError(f"{self.folder} holds {seen} images; {MANIFEST} names {count}, write the shards again")

        def named(place: int) -> str:
            return f"{self.folder / self.files[at[place, 0]]}, {keys[place]}"

        read = packed_reader(buffers, at)
        return StoredImages(self.name, "shards", torch.from_numpy(labels), self.classes, named, read, self.shape)


def _place(member: str, count: int, file: Path) -> tuple[int, str]:
    stem, _, suffix = member.partition(".")
    if not stem.isdecimal() or int(stem) >= count:
        raise DataError(f"{file} has a member '{member}'; expected <place>.png and .cls, with places below {count}")
    return int(stem), suffix


def label_of(content: bytes, name: str) -> int:
    """Returns the label that a `.cls` member holds.

    Raises:
        DataError: if the member holds no label; names the member.
    """
    text = content.strip()
    if not text.lstrip(b"-").isdigit():
        raise DataError(f"{name} holds {content[:20]!r}; expected a label, write the shards again")
    return int(text)


def write_shards(data: Dataset | StoredImages, folder: Path, shards: int = SHARDS) -> Shards:
    """Writes a data set as tar shards whose sizes differ by at most one sample, with pixels as PNG.

    Encoded images are written as they are. The folder appears whole or not at all. Samples are dealt out at random,
    once for all, so that no shard holds a single class, however the set is sorted.

    Args:
        data: images in memory, or encoded ones.
        folder: path of the new folder; its parent is made too.
        shards: number of tar files; ranks and their workers read whole files.

    Raises:
        DataError: if `folder` exists, or there are fewer samples than shards.
        ValueError: if `shards` is not above 0.
    """
    from webdataset import TarWriter

    if shards < 1:
        raise ValueError(f"shards is {shards}; expected a number above 0")
    if len(data) < shards:
        raise DataError(f"{data.name}: {len(data)} samples do not fill {shards} shards; write fewer")
    if folder.exists():
        raise DataError(f"{folder} exists; name a new folder, or remove it")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        dealt = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        listed = []
        for number, places in enumerate(torch.tensor_split(dealt, shards)):
            name = f"{number:05d}.tar"
            with TarWriter(str(draft / name), encoder=False, mtime=0.0) as writer:
                for place in places.tolist():
                    suffix, content = _encoded(data, place)
                    label = str(int(data.labels[place])).encode()
                    writer.write({"__key__": f"{place:08d}", suffix: content, "cls": label})
            listed.append({"file": name, "samples": len(places)})
        height, width = data.shape
        whole = data.content_hash if isinstance(data, Dataset) else ""
        manifest: dict[str, Any] = {"name": data.name, "classes": list(data.classes), "content_hash": whole}
        manifest |= {"height": height, "width": width, "shards": listed}
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        draft.rename(folder)
    except OSError as error:
        if not folder.exists():  # else another process has written the same folder meanwhile
            raise DataError(f"cannot write {folder}: {error.strerror}; check the disk") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Shards.open(folder)


def _encoded(data: Dataset | StoredImages, place: int) -> tuple[str, bytes]:
    if isinstance(data, StoredImages):
        content = data.content(place).tobytes()
        return ("png" if content.startswith(b"\x89PNG") else "jpg"), content
    file = io.BytesIO()
    # Level 1 makes a CIFAR image of 2.4 KB in 60 us; level 6 one of 2.3 KB in 150.
    Image.fromarray(data.images_NHWC[place].cpu().numpy()).save(file, "PNG", compress_level=1)
    return "png", file.getvalue()
