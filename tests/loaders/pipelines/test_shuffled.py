"""The shuffled pipeline that a generative network reads."""

import pytest
import torch

from wallclock.loaders.batches import DataError, Dataset
from wallclock.loaders.data.synthetic import synthetic_split
from wallclock.loaders.pipelines.shuffled import ShuffledBatches, pixels, unit_range

CPU = torch.device("cpu")


def test_pixels_and_the_networks_range_are_inverse():
    every = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    x = unit_range(every)
    assert (x.min(), x.max()) == (-1, 1) and x.shape == (1, 3, 16, 16)
    assert torch.equal(pixels(x), every)


def test_every_epoch_shows_whole_batches_in_an_order_of_its_own():
    dataset = synthetic_split(train=25, test=5).train
    for resident in (True, False):
        batches = ShuffledBatches(dataset, 8, device=CPU, seed=3, resident=resident)
        assert len(batches) == 3
        shown = []
        for epoch in range(2):
            seen = [batches.images(epoch, index) for index in range(3)]
            assert [len(images) for images in seen] == [8, 8, 8]
            shown.append(torch.cat(seen))
            images_NHWC = pixels(shown[-1])
            places = [(dataset.images_NHWC == image).all(dim=(1, 2, 3)).nonzero().item() for image in images_NHWC]
            assert len(set(places)) == 24
        assert not torch.equal(*shown)
    back = ShuffledBatches(dataset, 8, device=CPU, seed=3)
    assert torch.equal(back.images(1, 2), shown[1][16:]) and torch.equal(back.images(0, 0), shown[0][:8])
    assert not torch.equal(ShuffledBatches(dataset, 8, device=CPU, seed=4).images(0, 0), shown[0][:8])
    last = ShuffledBatches(dataset, 8, device=CPU, channels_last=True).images(0, 0)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_images_that_lie_on_the_device_stay_there():
    """A device by its number is the device: on a GPU `cuda` and `cuda:0` are not equal either."""
    images = torch.zeros(8, 4, 4, 3, dtype=torch.uint8)
    dataset = Dataset("zeros", images, torch.zeros(8, dtype=torch.int64), ("all",), "")
    assert ShuffledBatches(dataset, 8, device=torch.device("cpu", 0)).images(0, 0).shape == (8, 3, 4, 4)


def test_too_few_images_or_no_batch_are_refused():
    dataset = synthetic_split(train=25, test=5).train
    with pytest.raises(DataError, match="25 training images do not fill one batch of 26; use --set batch_size=25"):
        ShuffledBatches(dataset, 26, device=CPU)
    with pytest.raises(ValueError, match="batch_size is 0"):
        ShuffledBatches(dataset, 0, device=CPU)
