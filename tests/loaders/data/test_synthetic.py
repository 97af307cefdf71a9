"""The embedded set: the same on every machine, balanced, fast to make, and no toy for a linear classifier."""

import numpy as np
import pytest
import torch

from wallclock.bench.measure.timing import now_s
from wallclock.loaders.batches import Split
from wallclock.loaders.data.synthetic import CLASSES, synthetic_split

# Made with numpy 2.4; a change means that no accuracy on the set can be compared with an earlier one.
TRAIN_HASH = "89054aa04531d5534121fa66aa53804731b0913f74d32f7592a372949d9c1412"
TEST_HASH = "1674a5918cbdef9840cedee1c5d7a11c3d383c7d61b7ed204a03f68fca8f2b12"


@pytest.fixture(scope="module")
def made() -> Split:
    return synthetic_split()


def test_it_is_the_pinned_one(made: Split) -> None:
    assert (made.train.content_hash, made.test.content_hash) == (TRAIN_HASH, TEST_HASH)
    assert (len(made.train), len(made.test)) == (5000, 2000) and made.train.images_NHWC.shape[1:] == (32, 32, 3)


@pytest.mark.slow
@pytest.mark.timed
def test_it_is_quickly_made(slowness: float) -> None:
    start = now_s()
    synthetic_split()
    assert now_s() - start < 5 * slowness


def test_classes_are_balanced_and_pixels_use_their_range(made: Split) -> None:
    for part in (made.train, made.test):
        assert part.labels.bincount(minlength=10).tolist() == [len(part) // 10] * 10
        assert part.classes == tuple(CLASSES) and part.name == "synthetic"
        pixels = part.images_NHWC.float()
        assert 100 < float(pixels.mean()) < 155 and 40 < float(pixels.std()) < 90
        assert (pixels[:, :, :, 0] != pixels[:, :, :, 1]).float().mean() > 0.9, "colour images"


def test_a_seed_makes_the_same_images_and_another_seed_others() -> None:
    sizes = {"train": 30, "test": 20}
    first, again, other = (synthetic_split(seed, **sizes) for seed in (3, 3, 4))
    assert first.train.content_hash == again.train.content_hash and first.test.content_hash == again.test.content_hash
    assert first.train.content_hash != other.train.content_hash
    assert not torch.equal(first.train.images_NHWC[:20], first.test.images_NHWC), "the parts differ"


def test_no_image_occurs_twice(made: Split) -> None:
    images = torch.cat([made.train.images_NHWC, made.test.images_NHWC]).flatten(1).numpy()
    assert len({image.tobytes() for image in images}) == 7000


@pytest.mark.parametrize("ridge", [pytest.param(30.0, marks=pytest.mark.slow), 3000.0])
def test_a_linear_classifier_stays_below_60_percent(made: Split, ridge: float) -> None:
    train, test = (part.images_NHWC.flatten(1).float() / 255 for part in (made.train, made.test))
    mean = train.mean(0)
    x, targets = train - mean, torch.eye(10)[made.train.labels]
    weights = torch.linalg.solve(x.T @ x + ridge * torch.eye(3072), x.T @ targets)
    fitted = (x @ weights).argmax(1).eq(made.train.labels).float().mean()
    accuracy = ((test - mean) @ weights).argmax(1).eq(made.test.labels).float().mean()
    assert fitted > 0.15, "the classifier learned what it could"
    assert float(accuracy) < 0.6


def test_a_mirrored_shape_is_still_of_its_class() -> None:
    grid = (np.arange(64, dtype=np.float32) - 31.5) / 28
    v, u = np.meshgrid(grid, grid, indexing="ij")
    shapes = np.stack([inside(u, v) for inside in CLASSES.values()])
    for label, shape in enumerate(shapes):
        mirrored = shape[:, ::-1]
        overlap = (shapes & mirrored).sum((1, 2)) / (shapes | mirrored).sum((1, 2))
        others = np.delete(overlap, label)
        # Nine are symmetric; the crescent opens to the other side, and looks like nothing else.
        name = list(CLASSES)[label]
        assert others.max() < 0.85 and (overlap[label] == 1 or name == "crescent"), name
    assert shapes.sum((1, 2)).min() > 500, "no shape vanishes"
