"""Encoded images through every pipeline that reads them, sound and damaged."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wallclock.kernels.augment import Augmentation
from wallclock.loaders.batches import BatchOptions, DataError
from wallclock.loaders.data.shards import write_shards
from wallclock.loaders.data.stored import StoredImages, find_stored, stored_folders, stored_parquet
from wallclock.loaders.pipelines.dali import DaliBatches
from wallclock.loaders.pipelines.dataloader import DataLoaderBatches
from wallclock.loaders.pipelines.device import DeviceBatches

CPU = torch.device("cpu")
READERS = {"dali": DaliBatches, "dataloader": DataLoaderBatches, "device": DeviceBatches}
ENCODED = ["dali", "dataloader"]  # readers of encoded images


def picture(number: int, suffix: str = "jpg") -> bytes:
    """A smooth image of 32x32 pixels, encoded."""
    rows, columns = np.mgrid[0:32, 0:32]
    channels = [128 + 100 * np.sin((rows * (c + 1) + columns * number) / 9.0) for c in range(3)]
    file = io.BytesIO()
    Image.fromarray(np.stack(channels, 2).astype(np.uint8)).save(file, "JPEG" if suffix == "jpg" else "PNG", quality=85)
    return file.getvalue()


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """20 images of two classes, JPEG and PNG."""
    for number in range(20):
        folder = tmp_path / "train" / ("cat" if number < 10 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        suffix = "jpg" if number % 3 else "png"
        (folder / f"{number:02d}.{suffix}").write_bytes(picture(number, suffix))
    return tmp_path / "train"


def batches_of(reader: str, data: Any, batch_size: int = 6, **fields: Any) -> Any:
    fields = {"device": CPU, "seed": 3, "augmentation": Augmentation(), "workers": 0} | fields
    return READERS[reader](data, BatchOptions(batch_size=batch_size, **fields))


def written(path: Path, labels: list[int], images: list[bytes]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.array([{"bytes": image, "path": None} for image in images])
    pq.write_table(pa.table({"img": column, "label": pa.array(labels)}), path)
    return path


@pytest.mark.parametrize("reader", ENCODED)
def test_every_form_gives_the_pixels_of_the_decoded_set(reader: str, folders: Path, tmp_path: Path) -> None:
    stored = stored_folders(folders)
    data = stored.dataset()
    assert data.classes == ("cat", "dog") and data.labels.tolist() == [0] * 10 + [1] * 10
    images = [stored.content(place).tobytes() for place in range(20)]
    forms = [
        stored,
        stored_parquet(written(tmp_path / "train.parquet", stored.labels.tolist(), images)),
        write_shards(stored, tmp_path / "shards", 3).stored(),
    ]
    assert [form.form for form in forms] == ["folders", "parquet", "shards"]
    for form in forms:
        made, expected = batches_of(reader, form), batches_of("device", data)
        for epoch in (0, 1):
            made.set_epoch(epoch)
            expected.set_epoch(epoch)
            for (found, labels), (right, right_labels) in zip(made, expected, strict=True):
                assert torch.equal(labels, right_labels)
                torch.testing.assert_close(found, right, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("reader", ENCODED)
def test_real_images_are_decoded_to_the_same_pixels(reader: str, real_images: Path) -> None:
    stored = stored_parquet(real_images, "test").first(1000)
    data = stored.dataset()
    found, expected = (
        torch.cat([images for images, _ in batches_of(name, images, 250, augmentation=None, shuffle=False)])
        for name, images in ((reader, stored), ("device", data))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def damaged(kind: str) -> bytes:
    sound = picture(7)
    return {
        "truncated": sound[: len(sound) // 2],
        "cut in its header": sound[:30],
        "empty": b"",
        "text": b"this is no image" * 20,
        "truncated png": picture(7, "png")[:-40],
    }[kind]


KINDS = ["truncated", "cut in its header", "empty", "text", "truncated png"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", [*ENCODED, "decoded at once"])
def test_a_damaged_image_in_the_middle_is_named(reader: str, kind: str, folders: Path) -> None:
    victim = folders / "cat" / "07.jpg"
    victim.write_bytes(damaged(kind))
    stored = stored_folders(folders)
    if reader == "decoded at once":
        with pytest.raises(DataError, match="07.jpg, cannot be decoded"):
            stored.dataset()
        return
    with pytest.raises(DataError, match="07.jpg, cannot be decoded"):
        list(batches_of(reader, stored))


@pytest.mark.parametrize("reader", ENCODED)
def test_after_an_error_the_pipeline_can_be_used_again(reader: str, folders: Path) -> None:
    victim = folders / "dog" / "14.jpg"
    sound = victim.read_bytes()
    victim.write_bytes(damaged("truncated"))
    batches = batches_of(reader, stored_folders(folders))
    with pytest.raises(DataError, match="14.jpg"):
        list(batches)
    victim.write_bytes(sound)
    assert sum(len(labels) for _, labels in batches) == 20


@pytest.mark.parametrize("reader", ENCODED)
def test_images_of_another_size_are_refused(reader: str, folders: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (40, 36)).save(file, "PNG")
    (folders / "dog" / "14.jpg").write_bytes(file.getvalue())
    with pytest.raises(DataError, match="14.jpg, is 40x36; expected 32x32 pixels"):
        list(batches_of(reader, stored_folders(folders)))


def test_labels_out_of_range_and_missing_images_are_named(tmp_path: Path) -> None:
    images = [picture(number) for number in range(3)]
    with pytest.raises(DataError, match="labels run from 0 to 11; expected 0 to 9"):
        stored_parquet(written(tmp_path / "train.parquet", [0, 11, 3], images))
    with pytest.raises(DataError, match="image 1 has label 4; expected 0 to 1"):
        StoredImages(
            "x", "folders", torch.tensor([0, 4]), ("a", "b"), lambda place: f"image {place}", lambda place: None
        )
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(DataError, match="holds no images"):
            stored_folders(path)
    with pytest.raises(DataError, match="has no test"):
        stored_parquet(tmp_path, "test")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="is damaged"):
        stored_parquet(tmp_path)


def test_a_file_that_vanishes_is_named(folders: Path) -> None:
    stored = stored_folders(folders)
    (folders / "cat" / "03.png").unlink()
    for reader in ENCODED:
        with pytest.raises(DataError, match="03.png: No such file"):
            list(batches_of(reader, stored))


def test_the_form_is_found_by_the_path(folders: Path, real_images: Path, tmp_path: Path) -> None:
    assert find_stored(folders.parent).form == "folders"
    assert find_stored(real_images).form == find_stored(real_images / "train.parquet").form == "parquet"
    (tmp_path / "other").mkdir()
    assert find_stored(tmp_path / "other") is None
