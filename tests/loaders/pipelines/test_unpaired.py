"""What a batch of unpaired domains holds, from memory or from files."""

import numpy as np
import pytest
import torch

from wallclock.loaders.batches import DataError
from wallclock.loaders.data import unpaired
from wallclock.loaders.data.image_files import FileImages
from wallclock.loaders.data.unpaired import load_unpaired
from wallclock.loaders.pipelines.shuffled import pixels
from wallclock.loaders.pipelines.unpaired import AHEAD, UnpairedBatches

CPU = torch.device("cpu")


def test_one_image_is_a_domain(domains):
    (domains / "trainA" / "1.png").unlink()
    data = load_unpaired(str(domains), 24, 16)
    batches = UnpairedBatches(data.train, 1, image_size=16, device=CPU)
    assert len(batches) == 2  # as long as the longer domain
    assert all(a.shape == b.shape == (1, 3, 16, 16) for a, b in batches.epoch(0))


def numbered(count, edge):
    """Images whose pixels tell number, row and column."""
    row, column = np.mgrid[0:edge, 0:edge]
    return torch.from_numpy(
        np.stack([np.stack([np.full((edge, edge), n), row, column], -1) for n in range(count)]).astype(np.uint8)
    )


def shown(batches, epoch):
    """(number, first row, first column, flipped) of each image of an epoch, by domain."""
    found = ([], [])
    for pair in batches.epoch(epoch):
        for of_domain, images in zip(found, pair, strict=True):
            for image in pixels(images):
                number, row, left = (int(v) for v in image[0, 0])
                flipped = left > int(image[0, -1, 2])
                assert (image[..., 0] == number).all()
                of_domain.append((number, row, int(image[0, -1, 2]) if flipped else left, flipped))
    return found


def test_a_comes_in_order_b_at_random_and_crops_and_flips_differ():
    pair = numbered(8, 12), numbered(20, 12)
    batches = UnpairedBatches(pair, 4, image_size=8, device=CPU, seed=3)
    assert len(batches) == 5
    first, second = shown(batches, 0), shown(batches, 1)
    assert first != second and shown(batches, 0) == first
    counts = np.bincount([n for n, *_ in first[0]], minlength=8)
    assert set(counts) == {2, 3}  # twenty draws go round eight images
    assert len({n for n, *_ in first[1]}) < 20  # with replacement
    assert shown(UnpairedBatches(pair, 4, image_size=8, device=CPU, seed=4), 0) != first
    crops = [crop for epoch in range(40) for crop in shown(batches, epoch)[1]]
    places = np.zeros((5, 5))
    for _, row, column, _ in crops:
        places[row, column] += 1
    expected = len(crops) / 25
    assert ((places - expected) ** 2 / expected).sum() < 52  # chi-square with 24 degrees of freedom, p = 0.001
    assert abs(np.mean([flipped for *_, flipped in crops]) - 0.5) < 0.06
    a, b = UnpairedBatches(pair, 4, image_size=8, device=CPU, channels_last=True).images(0, 0)
    assert a.is_contiguous(memory_format=torch.channels_last) and b.dtype == torch.float32


def test_too_few_images_for_a_batch_are_refused():
    with pytest.raises(DataError, match="--set batch_size=3 or more data"):
        UnpairedBatches((numbered(3, 8), numbered(2, 8)), 4, image_size=8, device=CPU)


def test_what_memory_does_not_hold_stays_in_its_files_and_makes_the_same_batches(domains, monkeypatch):
    held = load_unpaired(str(domains), 24, 16)
    monkeypatch.setattr(unpaired, "HELD_SHARE", 0.0)
    (domains / "trainB" / "words.jpg").write_text("not an image")
    streamed = load_unpaired(str(domains), 24, 16)
    assert isinstance(streamed.train[0], FileImages) and streamed.train[0].shape == held.train[0].shape
    assert streamed.content_hash == held.content_hash and len(streamed.skipped) == 1
    assert torch.equal(streamed.test[1][:2, 4:, 3], held.test[1][:2, 4:, 3])
    of_held, of_streamed = (
        UnpairedBatches(data.train, 1, image_size=16, device=CPU, seed=3) for data in (held, streamed)
    )
    for epoch, index in ((0, 0), (0, 1), (1, 0), (0, 1), (5, 1)):
        for one, other in zip(of_held.images(epoch, index), of_streamed.images(epoch, index), strict=True):
            assert torch.equal(one, other)
    assert len(of_streamed._ahead) <= AHEAD


def test_a_file_that_goes_away_meanwhile_is_named(domains, monkeypatch):
    monkeypatch.setattr(unpaired, "HELD_SHARE", 0.0)
    data = load_unpaired(str(domains), 24, 16)
    for file in (domains / "trainA").iterdir():
        file.unlink()
    batches = UnpairedBatches(data.train, 1, image_size=16, device=CPU)
    with pytest.raises(DataError, match=r"trainA/.*cannot be read"):
        batches.images(0, 0)
