"""Images of any form at one size."""

import numpy as np
import pytest
from PIL import Image

from wallclock.loaders.batches import DataError
from wallclock.loaders.data.images import load_images, rescale
from wallclock.loaders.data.synthetic import synthetic_split


@pytest.fixture
def folder(tmp_path):
    """Twenty pictures in two classes, of several sizes and forms; the middle square of each has one colour."""
    for number in range(20):
        place = tmp_path / ("cats" if number % 2 else "dogs") / f"{number:02d}{'.png' if number % 3 else '.jpg'}"
        place.parent.mkdir(exist_ok=True)
        width, height = (60, 20) if number % 5 else (20, 50)
        canvas = np.zeros((height, width, 3), np.uint8)
        edge, left, top = min(width, height), (width - min(width, height)) // 2, (height - min(width, height)) // 2
        canvas[top : top + edge, left : left + edge] = 10 * number
        Image.fromarray(canvas).save(place, quality=100, subsampling=0)
    return tmp_path


def test_a_folder_is_cropped_scaled_and_split(folder):
    split = load_images(str(folder), 16)
    assert split.train.images_NHWC.shape == (18, 16, 16, 3) and len(split.test) == 2
    assert split.train.classes == ("cats", "dogs") and split.train.name.startswith("folder:")
    middles = split.train.images_NHWC[:, 4:12, 4:12].float().mean((1, 2, 3))
    numbers = [n for n in [*range(1, 20, 2), *range(0, 20, 2)] if n not in (19, 18)]  # the tenth of each order
    assert middles.tolist() == pytest.approx([10 * n for n in numbers], abs=4)
    only = load_images(str(folder), 16, only_class="dogs")
    assert len(only.train) == 9 and only.content_hash != split.content_hash


def test_images_without_folders_are_one_class(folder, tmp_path):
    split = load_images(str(folder / "cats"), 8)
    assert split.train.classes == ("images",) and (len(split.train), len(split.test)) == (9, 1)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"text"])
def test_a_damaged_image_is_named(folder, content):
    (folder / "cats" / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match="bad.png cannot be decoded .*; restore it from its source, or remove it"):
        load_images(str(folder), 16)


def test_what_holds_no_images_is_refused(tmp_path):
    for data, says in ((tmp_path, "holds 0 images"), (tmp_path / "none", "no such path")):
        with pytest.raises(DataError, match=says):
            load_images(str(data), 16)


@pytest.mark.slow
def test_the_embedded_set_is_enlarged():
    small, large = synthetic_split(), load_images("synthetic", 64)
    assert large.train.images_NHWC.shape == (5000, 64, 64, 3)
    assert large.content_hash not in (small.content_hash, load_images("synthetic", 40).content_hash)
    assert load_images("synthetic", 32).content_hash == small.content_hash
    shrunk = rescale(large.train.images_NHWC[:50], 32).float()
    assert (shrunk - small.train.images_NHWC[:50].float()).abs().mean() < 12  # it is noise that is lost


@pytest.mark.slow
def test_cifar10_is_enlarged_and_chosen_from(real_images):
    split = load_images(str(real_images), 64, only_class="ship")
    assert split.train.images_NHWC.shape == (5000, 64, 64, 3) and len(split.test) == 1000
