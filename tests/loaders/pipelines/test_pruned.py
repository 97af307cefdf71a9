import pytest
import torch

from wallclock.kernels.augment import Augmentation
from wallclock.loaders.batches import BatchOptions, Dataset
from wallclock.loaders.pipelines.device import DeviceBatches
from wallclock.loaders.pipelines.pruned import EasySamples


def easy_samples(count=100, easy=0.5, rate=0.4, seed=0, device="cpu"):
    samples = EasySamples(count, easy=easy, rate=rate, seed=seed, device=torch.device(device))
    losses = torch.arange(float(count), device=device)
    samples.weighted(losses, torch.arange(count, device=device))
    return samples


def test_a_share_of_the_easy_is_left_out_and_the_order_of_the_rest_stays(device):
    samples = easy_samples(device=device)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1)).to(device)
    kept = samples.kept(order, 3)
    left_out = set(range(100)) - set(kept.tolist())
    assert len(left_out) == samples.left_out_count == 20 and max(left_out) < 50
    assert kept.tolist() == [index for index in order.tolist() if index not in left_out]
    assert torch.equal(samples.kept(order, 3), kept) and not torch.equal(samples.kept(order, 4), kept)
    other = easy_samples(seed=1, device=device)
    assert not torch.equal(other.kept(order, 3), kept)


def test_the_gradient_is_on_average_that_of_all_samples(device):
    """Over many epochs each easy sample is shown 30 times of 50 with weight 50 / 30, so that it counts once."""
    samples, order = easy_samples(device=device), torch.arange(100, device=device)
    total = torch.zeros(100, device=device)
    for epoch in range(2000):
        kept = samples.kept(order, epoch)
        ones = torch.ones(len(kept), device=device)
        remembered = samples.losses.clone()
        total.index_add_(0, kept, samples.weighted(ones, kept))
        samples.losses.copy_(remembered)
    mean = total / 2000
    assert torch.equal(mean[50:], torch.ones(50, device=device))
    assert mean[:50].mean().item() == pytest.approx(1, abs=1e-4)
    assert (mean[:50] - 1).abs().max() < 5 * (0.4 / 0.6 / 2000) ** 0.5


def test_a_whole_epoch_counts_every_sample_once(device):
    samples, order = easy_samples(device=device), torch.arange(100, device=device)
    samples.kept(order, 1)
    assert samples.all(order) is order
    losses = torch.full((100,), 2.0, device=device, requires_grad=True)
    weighted = samples.weighted(losses, order)
    assert torch.equal(weighted, losses) and weighted.requires_grad
    assert torch.equal(samples.losses, torch.full((100,), 2.0, device=device)) and not samples.losses.requires_grad


def test_all_of_the_easy_can_be_left_out_and_nothing_counts_for_them(device):
    samples = easy_samples(easy=0.3, rate=1.0, device=device)
    kept = samples.kept(torch.randperm(100, generator=torch.Generator().manual_seed(1)).to(device), 1)
    assert sorted(kept.tolist()) == list(range(30, 100))
    ones = torch.ones(len(kept), device=device)
    assert torch.equal(samples.weighted(ones, kept), ones)


def test_what_was_never_seen_is_not_easy(device):
    samples = EasySamples(10, easy=0.5, rate=0.9, seed=0, device=torch.device(device))
    seen = torch.tensor([1, 3, 5, 7, 9], device=device)
    samples.weighted(torch.full((5,), 8.0, device=device), seen)
    kept = samples.kept(torch.arange(10, device=device), 1)
    assert set(range(0, 10, 2)) <= set(kept.tolist()) and len(kept) == 6


def test_chosen_samples_meet_what_they_meet_in_the_whole_epoch():
    images = torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8)
    dataset = Dataset("random", images, torch.arange(40) % 10, tuple("abcdefghij"), "")
    augmentation = Augmentation(pad=4, flip="random")
    options = BatchOptions(batch_size=8, device=torch.device("cpu"), seed=3, augmentation=augmentation)
    batches = DeviceBatches(dataset, options)
    batches.set_epoch(2)
    whole = {}
    order = batches.epochs.order_within(2)
    for place, (images, _) in enumerate(batches):
        whole |= dict(zip(order[8 * place : 8 * place + 8].tolist(), images, strict=True))
    chosen = torch.tensor([5, 17, 39])
    ((images, labels, indices),) = batches.of([chosen])
    assert torch.equal(indices, chosen) and labels.tolist() == [5, 7, 9]
    for index, image in zip(chosen.tolist(), images, strict=True):
        assert torch.equal(image, whole[index])
