"""What a data set guarantees, and how it is split for tuning."""

import pytest
import torch

from wallclock.kernels.augment import Augmentation
from wallclock.loaders.batches import DataError, Dataset, Split

CLASSES = ("cat", "dog", "ship")


def made(count: int = 40, seed: int = 0) -> Dataset:
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 5, 7, 3), dtype=torch.uint8, generator=random)
    return Dataset.create("any", images, torch.arange(count) % 3, CLASSES)


IMAGES, LABELS = torch.zeros(4, 5, 7, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.float(), LABELS, "images are torch.float32"),
        (IMAGES[0], LABELS, r"images are torch.uint8 \[5, 7, 3\]; expected uint8 \[N, H, W, 3\]"),
        (IMAGES.permute(0, 3, 1, 2), LABELS, r"\[4, 3, 5, 7\]; expected uint8 \[N, H, W, 3\]"),
        (IMAGES, LABELS.int(), "labels are torch.int32"),
        (IMAGES, LABELS[:3], r"labels are torch.int64 \[3\]; expected int64 \[4\]"),
        (IMAGES, LABELS[:, None], r"labels are torch.int64 \[4, 1\]"),
        (IMAGES, LABELS - 1, "labels run from -1 to -1; expected 0 to 2"),
        (IMAGES, LABELS + torch.tensor([0, 1, 2, 3]), "labels run from 0 to 3; expected 0 to 2"),
        (IMAGES[:0], LABELS[:0], "no images; point --data"),
    ],
)
def test_a_data_set_refuses_what_it_cannot_be(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset.create("mine", images, labels, CLASSES)


def test_the_hash_is_that_of_shape_images_and_labels() -> None:
    data = made()
    again = Dataset.create("another name", data.images_NHWC.clone(), data.labels.clone(), CLASSES)
    assert again.content_hash == data.content_hash and len(data.content_hash) == 64
    pixel, label = data.images_NHWC.clone(), data.labels.clone()
    pixel[39, 4, 6, 2] ^= 1
    label[0] = 1
    changed = [(pixel, data.labels), (data.images_NHWC, label), (data.images_NHWC.view(40, 7, 5, 3), data.labels)]
    hashes = {Dataset.create("any", images, labels, CLASSES).content_hash for images, labels in changed}
    assert len(hashes | {data.content_hash}) == 4


def test_the_hash_does_not_depend_on_the_layout_in_memory() -> None:
    data = made()
    strided = data.images_NHWC.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not strided.is_contiguous()
    assert Dataset.create("any", strided, data.labels, CLASSES).content_hash == data.content_hash


def test_a_subset_holds_its_images_under_a_hash_of_its_own() -> None:
    data = made()
    chosen = torch.tensor([5, 0, 39])
    part = data.subset(chosen)
    assert torch.equal(part.images_NHWC, data.images_NHWC[chosen]) and part.labels.tolist() == [2, 0, 0]
    assert len(data.subset(slice(0, 7))) == 7
    assert data.subset(slice(0, 3)).content_hash == data.subset(torch.arange(3)).content_hash
    assert len({data.content_hash, part.content_hash, data.subset(chosen.flip(0)).content_hash}) == 3


def test_tuning_splits_the_training_set_alone() -> None:
    split = Split(made(100), made(9, seed=1))
    tuned = split.tune()
    assert (len(tuned.train), len(tuned.test)) == (90, 10)
    whole = {image.numpy().tobytes() for image in split.train.images_NHWC}
    train, held_out = ({i.numpy().tobytes() for i in part.images_NHWC} for part in (tuned.train, tuned.test))
    assert train | held_out == whole and not train & held_out and len(whole) == 100
    assert not torch.equal(tuned.test.images_NHWC, split.train.images_NHWC[:10]), "not the first ones"
    again = split.tune()
    assert again.train.content_hash == tuned.train.content_hash and again.test.content_hash == tuned.test.content_hash
    assert torch.equal(again.test.images_NHWC, tuned.test.images_NHWC)
    assert len(split.tune(33).test) == 33


@pytest.mark.parametrize("held_out", [0, -1, 100, 101])
def test_tuning_leaves_images_on_both_sides(held_out: int) -> None:
    with pytest.raises(DataError, match=rf"cannot hold out {held_out} of 100 training images; use --split test"):
        Split(made(100), made(9)).tune(held_out)


@pytest.mark.parametrize(("field", "value"), [("pad", -1), ("cutout", -4), ("flip", "sideways")])
def test_augmentation_that_cannot_be_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} .*{value}.*expected"):
        Augmentation(**{field: value})  # type: ignore[arg-type]
