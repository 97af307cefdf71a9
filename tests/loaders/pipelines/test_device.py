"""The pipeline's order and augmentation: reproducible from seed and epoch, fair, and complete."""

import itertools
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from wallclock.kernels.augment import Augmentation, augment, augment_ref
from wallclock.loaders.batches import BatchOptions, DataError, Dataset
from wallclock.loaders.data.images import rescale
from wallclock.loaders.pipelines.device import DeviceBatches

CPU = torch.device("cpu")
PLAIN = Augmentation(pad=0, flip="none")


def made(count: int = 24, height: int = 8, width: int = 8) -> Dataset:
    """Images of which every one is its own: label and pixels are drawn from its index."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=random)
    return Dataset.create("any", images, torch.arange(count), tuple(map(str, range(count))))


def batches_of(data: Dataset, batch_size: int, **fields: Any) -> DeviceBatches:
    return DeviceBatches(data, BatchOptions(**{"batch_size": batch_size, "device": CPU, "augmentation": None} | fields))


def epoch_of(batches: DeviceBatches, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    batches.set_epoch(epoch)
    parts = list(batches)
    assert len(parts) == len(batches)
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


AUGMENTATIONS = [None, PLAIN, Augmentation(), Augmentation(pad=3, flip="random", cutout=4)]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=["none", "plain", "default", "random and cutout"])
def test_an_epoch_depends_on_seed_and_epoch_alone(augmentation: Augmentation | None) -> None:
    def batches(size: int, seed: int = 5) -> DeviceBatches:
        return batches_of(made(), size, seed=seed, augmentation=augmentation)

    first = batches(24)
    expected = [epoch_of(first, epoch) for epoch in range(4)]
    for size in (1, 5, 7, 100):
        other = batches(size)
        for epoch in (3, 1, 0, 2, 1):  # any order of epochs
            images, labels = epoch_of(other, epoch)
            assert torch.equal(labels, expected[epoch][1]) and torch.equal(images, expected[epoch][0])
    for one, two in itertools.combinations([labels for _, labels in expected], 2):
        assert not torch.equal(one, two), "each epoch has its own order"
    assert not torch.equal(epoch_of(batches(24, seed=6), 0)[1], expected[0][1])


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=["none", "plain", "default", "random and cutout"])
def test_one_kernel_makes_the_same_epoch(augmentation: Augmentation | None, device: torch.device) -> None:
    data = made().to(device)
    for epoch in range(2):
        (images, labels), (expected, order) = (
            epoch_of(batches_of(data, 7, device=device, seed=5, augmentation=augmentation, implementation=way), epoch)
            for way in ("triton", "eager")
        )
        assert torch.equal(labels, order)
        torch.testing.assert_close(images, expected, rtol=0, atol=2e-6)


def test_every_image_comes_once_an_epoch_with_its_label() -> None:
    data = made()
    for epoch in range(3):
        images, labels = epoch_of(batches_of(data, 7, seed=1), epoch)
        assert sorted(labels.tolist()) == list(range(24))
        assert torch.equal(images, augment(data.images_NHWC, labels))


@pytest.mark.parametrize(("batch_size", "drop_last", "sizes"), [
    (7, False, [7, 7, 7, 3]), (7, True, [7, 7, 7]), (8, False, [8] * 3), (8, True, [8] * 3), (25, False, [24]),
])  # fmt: skip
def test_the_last_batch(batch_size: int, drop_last: bool, sizes: list[int]) -> None:
    batches = batches_of(made(), batch_size, augmentation=Augmentation(), drop_last=drop_last)
    parts = list(batches)
    assert [len(labels) for _, labels in parts] == [len(images) for images, _ in parts] == sizes
    assert len(batches) == len(sizes)
    labels = [label for _, part in parts for label in part.tolist()]
    assert len(set(labels)) == sum(sizes), "no image twice"


def test_sizes_that_give_no_batch_are_refused() -> None:
    with pytest.raises(DataError, match="24 images do not fill one batch of 25"):
        batches_of(made(), 25, drop_last=True)
    for batch_size, size in ((0, None), (-1, None), (8, 0)):
        with pytest.raises(ValueError, match="expected a number above 0"):
            batches_of(made(), batch_size, size=size)


def test_without_shuffling_the_order_is_kept() -> None:
    batches = batches_of(made(), 7, augmentation=Augmentation(), shuffle=False)
    for epoch in (0, 1):
        assert epoch_of(batches, epoch)[1].tolist() == list(range(24))


def test_batches_are_channels_last_of_the_dtype_asked_for() -> None:
    for images, labels in batches_of(made(), 7, dtype=torch.bfloat16, augmentation=Augmentation()):
        assert images.dtype == torch.bfloat16 and images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64


def flipped_of(batches: DeviceBatches, data: Dataset, epoch: int) -> torch.Tensor:
    """Which images of the set came mirrored; each came one way or the other."""
    images, labels = epoch_of(batches, epoch)
    straight, mirrored = augment(data.images_NHWC, labels), augment(data.images_NHWC, labels).flip(3)
    as_is, flipped = ((images == way).flatten(1).all(1) for way in (straight, mirrored))
    assert bool((as_is ^ flipped).all())
    result = torch.empty(len(data), dtype=torch.bool)
    result[labels] = flipped
    return result


def test_alternating_flip_shows_every_image_both_ways_in_two_epochs() -> None:
    data = made(2000)
    batches = batches_of(data, 300, seed=3, augmentation=Augmentation(pad=0, flip="alternating"))
    first, second, third = (flipped_of(batches, data, epoch) for epoch in (0, 1, 2))
    assert torch.equal(second, ~first) and torch.equal(third, first)
    assert 900 < int(first.sum()) < 1100  # 4.5 standard deviations
    other = batches_of(data, 300, seed=4, augmentation=Augmentation(pad=0, flip="alternating"))
    assert not torch.equal(flipped_of(other, data, 0), first)


def test_random_flip_tosses_a_coin_each_epoch() -> None:
    data = made(2000)
    batches = batches_of(data, 300, seed=3, augmentation=Augmentation(pad=0, flip="random"))
    first, second = (flipped_of(batches, data, epoch) for epoch in (0, 1))
    assert 900 < int(first.sum()) < 1100 and 900 < int(second.sum()) < 1100
    assert 900 < int((first ^ second).sum()) < 1100, "independent of the epoch before"


def offsets_of(batches: DeviceBatches, data: Dataset, pad: int, epoch: int) -> list[tuple[int, int]]:
    """Finds the crop of every image by comparing it with all there are."""
    images, labels = epoch_of(batches, epoch)
    found: list[tuple[int, int] | None] = [None] * len(images)
    for corner in itertools.product(range(-pad, pad + 1), repeat=2):
        offsets = torch.tensor(corner).expand(len(images), 2)
        for index in (augment(data.images_NHWC, labels, offsets=offsets) == images).flatten(1).all(1).nonzero():
            assert found[index] is None
            found[index] = corner
    assert None not in found
    return [corner for corner in found if corner is not None]


def test_crops_are_uniform_over_all_offsets() -> None:
    data = made(2500)
    batches = batches_of(data, 500, seed=0, augmentation=Augmentation(pad=2, flip="none"))
    first, second = (offsets_of(batches, data, 2, epoch) for epoch in (0, 1))
    for corners in (first, second):
        counts = [corners.count(corner) for corner in itertools.product(range(-2, 3), repeat=2)]
        assert chisquare(counts).pvalue > 0.001
    # Rows and columns of one epoch, and the rows of two epochs, are independent.
    assert abs(torch.corrcoef(torch.tensor(first).T.float())[0, 1]) < 0.06
    assert first != second


def test_cutout_lies_anywhere_and_is_of_the_mean_colour() -> None:
    data = Dataset.create(
        "white", torch.full((4000, 8, 8, 3), 255, dtype=torch.uint8), torch.zeros(4000).long(), ("a",)
    )
    augmentation = Augmentation(pad=0, flip="none", cutout=3)
    images, _ = epoch_of(batches_of(data, 1000, augmentation=augmentation), 0)
    cut = (images == 0).all(1)
    allowed = {augment_ref(data.images_NHWC[0], cutout=(r, c, 3)).numpy().tobytes() for r in range(8) for c in range(8)}
    reference = {image.contiguous().numpy().tobytes() for image in images}
    assert len(allowed) == len(reference) == 64
    assert set(cut.sum((1, 2)).tolist()) == {4, 6, 9}, "whole inside, clipped at an edge or a corner"


def test_cutout_reaches_every_column_of_a_wide_image() -> None:
    data = Dataset.create("w", torch.full((500, 4, 12, 3), 255, dtype=torch.uint8), torch.zeros(500).long(), ("a",))
    augmentation = Augmentation(pad=0, flip="none", cutout=1)
    images, _ = epoch_of(batches_of(data, 500, augmentation=augmentation), 0)
    assert bool((images == 0).all(1).any(0).all())


def test_scaling_keeps_labels_and_scales_the_padding() -> None:
    data = made(48, 32, 32)
    small = batches_of(data, 10, augmentation=Augmentation(pad=4, flip="none"), size=16)
    assert small.augmentation.pad == 2 and small.data.shape == (16, 16) and small.data.images_NHWC.dtype == torch.uint8
    images, labels = epoch_of(small, 0)
    assert images.shape == (48, 3, 16, 16) and sorted(labels.tolist()) == list(range(48))
    shrunk = Dataset.create("small", rescale(data.images_NHWC, 16), data.labels, data.classes)
    found = offsets_of(small, shrunk, 2, 0)  # each is a crop of the image of its label, by at most 2 pixels
    assert max(max(map(abs, corner)) for corner in found) == 2
    assert batches_of(data, 10, augmentation=Augmentation(pad=1), size=8).augmentation.pad == 1, "never to nothing"
    assert batches_of(data, 10, augmentation=PLAIN, size=8).augmentation.pad == 0


def test_scaling_averages_and_rounds() -> None:
    flat = torch.arange(0, 250, 5, dtype=torch.uint8).view(50, 1, 1, 1).expand(50, 12, 12, 3).contiguous()
    assert torch.equal(rescale(flat, 5), flat[:, :5, :5])
    images = made(3, 32, 32).images_NHWC
    assert torch.equal(rescale(images, 32), images)
    assert (rescale(images, 8).float().mean((1, 2)) - images.float().mean((1, 2))).abs().max() < 6


def test_what_cannot_be_scaled_or_padded_is_refused() -> None:
    with pytest.raises(DataError, match="cannot train on 16-pixel images: they are stored with 8"):
        batches_of(made(), 4, size=16)
    for height, width in ((8, 8), (8, 9), (18, 8)):
        with pytest.raises(DataError, match="cannot reflect 8 pixels of an image of 8"):
            batches_of(made(4, height, width), 4, augmentation=Augmentation(pad=8))
