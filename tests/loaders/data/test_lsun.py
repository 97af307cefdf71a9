"""LSUN's LMDB: converted once, stopped and gone on with, sampled, and refused where it is damaged."""

import io
import json
import pickle

import lmdb
import numpy as np
import pytest
from PIL import Image

from wallclock.loaders.batches import DataError
from wallclock.loaders.data.images import load_images
from wallclock.loaders.data.lsun import DESCRIPTION, PIXELS, LsunImages, chosen_keys, convert, lmdb_keys, load_converted


def encoded(number, form="WEBP", size=(40, 24)):
    """A picture whose middle has a colour of its own."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 0] = number % 256
    pixels[..., 1] = 255 - number % 256
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form, **({"lossless": True} if form == "WEBP" else {"quality": 95}))
    return buffer.getvalue()


@pytest.fixture
def export(tmp_path):
    """An LMDB of 300 pictures under keys like LSUN's, one of which is damaged."""
    path = tmp_path / "bedroom_train_lmdb"
    with lmdb.open(str(path), map_size=16 << 20) as environment, environment.begin(write=True) as transaction:
        for number in range(300):
            content = b"no picture" if number == 7 else encoded(number)
            transaction.put(f"{number:08x}".encode(), content)
    return path


def test_conversion_keeps_order_and_pixels_and_leaves_out_what_is_damaged(export, tmp_path):
    seen = []
    path = convert(export, tmp_path / "to", size=16, progress=lambda done, total: seen.append((done, total)))
    split = load_converted(path)
    images = np.concatenate([split.train.images_NHWC.numpy(), split.test.images_NHWC.numpy()])
    assert images.shape == (299, 16, 16, 3) and images.dtype == np.uint8
    expected = [number for number in range(300) if number != 7]
    assert images[:, 8, 8, 0].tolist() == [number % 256 for number in expected]
    assert (images == images[:, :1, :1]).all()  # the middle, without a border
    assert seen[-1] == (300, 300)
    assert len(split.test) == 2 and split.train.content_hash != split.test.content_hash
    assert load_images(str(path), 16).content_hash == split.content_hash


def test_conversion_goes_on_where_it_was_stopped(export, tmp_path):
    class Stopped(Exception):
        pass

    def stop(done, total):
        raise Stopped

    whole = convert(export, tmp_path / "whole", size=8)
    with pytest.raises(Stopped):
        convert(export, tmp_path / "part", size=8, progress=stop)
    with pytest.raises(DataError, match="converted as far as image 256 of 300; run the conversion again"):
        load_converted(tmp_path / "part")
    with open(tmp_path / "part" / PIXELS, "ab") as file:
        file.write(b"written, but not described")  # as by a process that was killed
    seen = []
    convert(export, tmp_path / "part", size=8, progress=lambda done, total: seen.append(done))
    assert seen == [300]
    assert (tmp_path / "part" / PIXELS).read_bytes() == (whole / PIXELS).read_bytes()
    assert load_converted(tmp_path / "part").content_hash == load_converted(whole).content_hash
    before = (whole / PIXELS).stat().st_mtime_ns
    convert(export, whole, size=8)  # finished: nothing is read again
    assert (whole / PIXELS).stat().st_mtime_ns == before


def test_processes_that_decode_open_the_export_themselves(export, tmp_path):
    images = LsunImages(export, lmdb_keys(export), 8)
    assert images[3][1].shape == (8, 8, 3)
    assert images._environment is not None
    assert pickle.loads(pickle.dumps(images))._environment is None
    del images  # a process may open an environment once
    whole, parallel = convert(export, tmp_path / "one", size=8), convert(export, tmp_path / "two", size=8, workers=2)
    assert (whole / PIXELS).read_bytes() == (parallel / PIXELS).read_bytes()


def test_the_lessons_samples(export, tmp_path):
    keys = [f"{number}".encode() for number in range(10_000)]
    tenth, fifth = chosen_keys(keys, 0.1), chosen_keys(keys, 0.2)
    assert len(tenth) == pytest.approx(1000, abs=100) and len(fifth) == pytest.approx(2000, abs=130)
    assert set(tenth) < set(fifth) and fifth == sorted(fifth, key=keys.index)
    assert chosen_keys(keys, 1) == keys
    split = load_converted(convert(export, tmp_path / "to", size=8, fraction=0.2))
    assert split.train.name == "lsun:0.2" and 30 < len(split.train) < 90
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match="expected above 0 and at most 1"):
            chosen_keys(keys, wrong)


def test_another_conversion_in_the_same_folder_is_refused(export, tmp_path):
    convert(export, tmp_path / "to", size=8)
    with pytest.raises(DataError, match="holds another conversion .300 images of 8"):
        convert(export, tmp_path / "to", size=16)
    with pytest.raises(DataError, match="converted to 8 pixels; use --set image_size=8"):
        load_images(str(tmp_path / "to"), 64)


def test_an_export_is_not_trained_on_directly(export):
    with pytest.raises(DataError, match="convert it once with `wallclock data convert .* --to FOLDER --size 64`"):
        load_images(str(export), 64)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("cut pixels", "expected 57,408"),
        ("no pixels", "has 0 bytes"),
        ("description", "conversion.json is damaged"),
        ("field", "conversion.json is damaged"),
    ],
)
def test_a_damaged_conversion_is_refused(export, tmp_path, damage, says):
    path = convert(export, tmp_path / "to", size=8)
    if damage == "cut pixels":
        (path / PIXELS).write_bytes((path / PIXELS).read_bytes()[:-5])
    elif damage == "no pixels":
        (path / PIXELS).unlink()
    elif damage == "description":
        (path / DESCRIPTION).write_text("{")
    else:
        (path / DESCRIPTION).write_text(json.dumps({"size": 8}))
    with pytest.raises(DataError, match=says):
        load_converted(path)


def test_what_is_no_export_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="has no data.mdb"):
        convert(tmp_path, tmp_path / "to")
    (tmp_path / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(DataError, match="cannot open .*; if it is damaged, fetch it again"):
        convert(tmp_path, tmp_path / "to")
    with lmdb.open(str(tmp_path / "empty"), map_size=1 << 20):
        pass
    with pytest.raises(DataError, match="holds no images"):
        convert(tmp_path / "empty", tmp_path / "to")
    monkeypatch.setattr("wallclock.loaders.data.lsun.find_spec", lambda name: None)
    with pytest.raises(DataError, match="needs the package lmdb; install it"):
        convert(tmp_path / "empty", tmp_path / "to")


def test_nothing_decodable_is_an_error(tmp_path):
    with (
        lmdb.open(str(tmp_path / "bad"), map_size=1 << 20) as environment,
        environment.begin(write=True) as transaction,
    ):
        for number in range(3):
            transaction.put(f"{number}".encode(), b"no picture")
    with pytest.raises(DataError, match="no image of .* can be decoded"):
        convert(tmp_path / "bad", tmp_path / "to", size=8)
