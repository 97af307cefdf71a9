"""One augmentation, many engines: every pipeline against the reference, image by image, and against the others."""

import itertools
import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from wallclock.kernels.augment import MEAN, STD, Augmentation, augment_ref, draw
from wallclock.loaders.batches import BatchOptions, DataError, Dataset
from wallclock.loaders.data.shards import Shards, write_shards
from wallclock.loaders.pipelines.base import Batches
from wallclock.loaders.pipelines.choose import PIPELINES, make_batches
from wallclock.loaders.pipelines.dali import DaliBatches
from wallclock.loaders.pipelines.dataloader import DataLoaderBatches
from wallclock.loaders.pipelines.device import DeviceBatches
from wallclock.loaders.pipelines.webdataset import ShardBatches

CPU = torch.device("cpu")
EDGE = 16


def coloured(count: int, height: int = 9, width: int = 8) -> Dataset:
    """Images of noise, each its own class."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=random)
    return Dataset.create("any", images, torch.arange(count), tuple(map(str, range(count))))


def gradients(count: int) -> Dataset:
    """Images in which each pixel tells its place, so that crop and flip can be read off a result."""
    image = torch.arange(EDGE * EDGE, dtype=torch.uint8).view(1, EDGE, EDGE, 1).expand(count, EDGE, EDGE, 3)
    return Dataset.create("any", image.contiguous(), torch.arange(count), tuple(map(str, range(count))))


def pixels_of(images: torch.Tensor) -> torch.Tensor:
    """The uint8 pixels [N, H, W, 3] that normalised images were made of."""
    exact = (images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255
    assert (exact - exact.round()).abs().max() < 1e-3, "whole numbers once"
    return exact.round().to(torch.uint8).permute(0, 2, 3, 1)


def read_off(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Offsets [N, 2] and flips [N] of `gradients` that were cropped and flipped."""
    middle = EDGE // 2
    values = pixels_of(images)[..., 0].long()
    flips = values[:, middle, middle + 1] < values[:, middle, middle]
    columns = torch.where(flips, EDGE - 1 - middle, middle)
    found = values[:, middle, middle]
    offsets = torch.stack([found // EDGE - middle, found % EDGE - columns], 1)
    return offsets.numpy(), flips.numpy()


CLASSES = {"device": DeviceBatches, "dataloader": DataLoaderBatches, "dali": DaliBatches}
# Every engine over a set in memory: its pipeline, and the options that make it.
ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "device": ("device", {}),
    "fused": ("device", {"implementation": "triton"}),
    "dataloader": ("dataloader", {"workers": 0}),
    "dataloader with a worker": ("dataloader", {"workers": 1}),
    "dali": ("dali", {}),
}


def options(batch_size: int, **fields: Any) -> BatchOptions:
    return BatchOptions(**{"batch_size": batch_size, "device": CPU, "augmentation": None} | fields)


def opened(engine: str, data: Dataset, shards: Shards | None, batch_size: int, **fields: Any) -> Batches:
    """An engine over a data set; "webdataset" takes the same set as shards."""
    fields = {"seed": 5, "augmentation": Augmentation()} | fields
    if engine == "webdataset":
        assert shards is not None
        return ShardBatches(shards, options(batch_size, **{"workers": 0} | fields), shuffle_buffer=10)
    pipeline, own = ENGINES[engine]
    return CLASSES[pipeline](data, options(batch_size, **own | fields))


def epoch_of(batches: Batches, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All images and labels of an epoch, in order."""
    batches.set_epoch(epoch)
    parts = list(batches)
    assert len(parts) == len(batches)
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


ALL = [*ENGINES, "webdataset"]
FAST = [name for name in ALL if name != "fused"]  # the interpreter takes 5 ms an image
IN_PROCESS = [name for name in FAST if name != "dataloader with a worker"]
EVERYTHING = Augmentation(pad=2, flip="random", cutout=3, brightness=0.3, contrast=0.4)
AUGMENTATIONS = [
    None,
    Augmentation(),
    Augmentation(pad=3, flip="random"),
    Augmentation(pad=3, flip="random", padding="zero"),
    Augmentation(pad=0, flip="random", cutout=4),
    EVERYTHING,
]
# What takes longest, once in the default set: the interpreter, and processes.
CASES = [
    pytest.param(
        engine,
        augmentation,
        marks=[pytest.mark.slow] if engine not in IN_PROCESS and augmentation != EVERYTHING else [],
        id=f"{engine}-{augmentation}",
    )
    for engine in ALL
    for augmentation in AUGMENTATIONS
]


@pytest.fixture(scope="session")
def coloured_shards(tmp_path_factory) -> Shards:
    return write_shards(coloured(50), tmp_path_factory.mktemp("coloured") / "shards", 4)


@pytest.fixture(scope="session")
def gradient_shards(tmp_path_factory) -> Shards:
    return write_shards(gradients(2000), tmp_path_factory.mktemp("gradients") / "shards", 4)


@pytest.mark.parametrize(("engine", "augmentation"), CASES)
def test_every_image_is_the_reference_s(engine: str, augmentation: Augmentation | None, coloured_shards) -> None:
    data = coloured(10 if engine == "fused" else 50)
    batches = opened(engine, data, coloured_shards, 7, augmentation=augmentation)
    for epoch in (0, 1):
        images, labels = epoch_of(batches, epoch)
        places = torch.cat(batches.order(epoch))
        assert torch.equal(labels, data.labels[places])
        drawn = draw(augmentation or Augmentation(pad=0, flip="none"), 5, epoch, places, 9, 8)
        for number, place in enumerate(places.tolist()):
            at = {name: values[number] for name, values in drawn.items()}
            row, column = at["offsets"].tolist() if "offsets" in at else (0, 0)
            edge = augmentation.cutout if augmentation else 0
            expected = augment_ref(
                data.images_NHWC[place],
                (row, column),
                bool(at.get("flips", False)),
                (*at["cutout_centres"].tolist(), edge) if edge else None,
                float(at.get("brightness", 1.0)),
                float(at.get("contrast", 1.0)),
                augmentation.padding if augmentation else "reflect",
            )
            # Contrast subtracts a mean of all pixels, whose order of summation is each engine's own.
            tolerance = 2e-6 if augmentation == EVERYTHING else 1e-6
            torch.testing.assert_close(images[number], expected, rtol=0, atol=tolerance)
            if not edge:
                assert torch.equal(pixels_of(images[number][None]), pixels_of(expected[None]))


@pytest.mark.slow
@pytest.mark.parametrize("engine", [name for name in FAST if name != "device"])  # see test_device
def test_crops_and_flips_are_uniform_and_each_sample_s_own(engine: str, gradient_shards) -> None:
    batches = opened(engine, gradients(2000), gradient_shards, 500, augmentation=Augmentation(pad=2, flip="random"))
    seen = []
    for epoch in (0, 1):
        images, labels = epoch_of(batches, epoch)
        offsets, flips = read_off(images)
        assert np.abs(offsets).max() == 2
        kinds = (offsets[:, 0] + 2) * 10 + (offsets[:, 1] + 2) * 2 + flips
        assert chisquare(np.bincount(kinds, minlength=50)).pvalue > 0.001
        assert len(set(kinds[:100])) > 25, "not one draw for a whole batch"
        order = np.argsort(labels.numpy())
        seen.append(kinds[order])
    agreeing = int((seen[0] == seen[1]).sum())
    assert 10 < agreeing < 80, "of 2,000 samples 40 meet the same twice, when epochs are independent"


@pytest.mark.slow
@pytest.mark.parametrize("engine", [name for name in FAST if name != "device"])
def test_alternating_flip_shows_both_ways_within_two_epochs(engine: str, gradient_shards) -> None:
    batches = opened(engine, gradients(2000), gradient_shards, 500, augmentation=Augmentation(pad=2))
    ways = []
    for epoch in (0, 1, 2):
        images, labels = epoch_of(batches, epoch)
        ways.append(read_off(images)[1][np.argsort(labels.numpy())])
    assert (ways[0] != ways[1]).all() and (ways[0] == ways[2]).all()
    assert 900 < ways[0].sum() < 1100


@pytest.mark.parametrize("engine", FAST)
def test_an_epoch_is_reproduced_and_no_two_are_alike(engine: str, coloured_shards) -> None:
    data = coloured(50)
    first = opened(engine, data, coloured_shards, 7)
    epochs = [epoch_of(first, epoch) for epoch in range(3)]
    for images, labels in epochs:
        assert sorted(labels.tolist()) == list(range(50)), "each sample once"
        assert images.shape == (50, 3, 9, 8)
    again = opened(engine, data, coloured_shards, 7)
    for epoch in (2, 0, 1, 0):  # in any order
        images, labels = epoch_of(again, epoch)
        assert torch.equal(images, epochs[epoch][0]) and torch.equal(labels, epochs[epoch][1])
    for one, two in itertools.combinations(epochs, 2):
        assert not torch.equal(one[1], two[1])
    other = epoch_of(opened(engine, data, coloured_shards, 7, seed=6), 0)
    assert not torch.equal(other[1], epochs[0][1])
    kept = [epoch_of(opened(engine, data, coloured_shards, 7, shuffle=False), epoch)[1] for epoch in (0, 1)]
    assert torch.equal(*kept)


@pytest.mark.parametrize("engine", ["dataloader", "dali", pytest.param("fused", marks=pytest.mark.slow)])
def test_engines_over_one_set_make_one_epoch(engine: str) -> None:
    data = coloured(50)
    for epoch in (0, 3):
        images, labels = epoch_of(opened("device", data, None, 7), epoch)
        others, other_labels = epoch_of(opened(engine, data, None, 7), epoch)
        assert torch.equal(labels, other_labels)
        torch.testing.assert_close(others, images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("engine", IN_PROCESS)
@pytest.mark.parametrize(("batch_size", "drop_last", "sizes"), [
    (7, False, [7] * 7 + [1]), (7, True, [7] * 7), (25, False, [25] * 2), (25, True, [25] * 2), (60, False, [50]),
])  # fmt: skip
def test_the_last_batch(engine: str, batch_size: int, drop_last: bool, sizes: list[int], coloured_shards) -> None:
    batches = opened(engine, coloured(50), coloured_shards, batch_size, drop_last=drop_last)
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        parts = list(batches)
        assert [len(labels) for _, labels in parts] == [len(images) for images, _ in parts] == sizes
        assert len(batches) == len(sizes)
        labels = torch.cat([labels for _, labels in parts]).tolist()
        assert len(set(labels)) == len(labels), "no sample twice, none to fill a batch up"


@pytest.mark.parametrize("engine", FAST)
def test_an_epoch_that_is_left_in_the_middle_changes_nothing(engine: str, coloured_shards) -> None:
    batches = opened(engine, coloured(50), coloured_shards, 7)
    whole = {epoch: epoch_of(batches, epoch) for epoch in (0, 1)}
    for left_after in (1, 3, 7):
        batches.set_epoch(0)
        list(itertools.islice(batches, left_after))
        images, labels = epoch_of(batches, 1)
        assert torch.equal(images, whole[1][0]) and torch.equal(labels, whole[1][1])


@pytest.mark.parametrize("engine", IN_PROCESS)
def test_batches_are_their_holder_s_to_keep(engine: str, coloured_shards) -> None:
    """DALI's memory, pinned buffers and workers' queues go on being used while a batch is held."""
    batches = opened(engine, coloured(50), coloured_shards, 7)
    held, copies = [], []
    for epoch in range(3):
        batches.set_epoch(epoch)
        for images, labels in batches:
            held.append((images, labels))
            copies.append((images.clone(), labels.clone()))
    for (images, labels), (images_then, labels_then) in zip(held, copies, strict=True):
        assert torch.equal(images, images_then) and torch.equal(labels, labels_then)


@pytest.mark.parametrize("engine", IN_PROCESS)
def test_memory_and_type(engine: str, coloured_shards) -> None:
    exact, _ = epoch_of(opened(engine, coloured(50), coloured_shards, 7), 0)
    batches = opened(engine, coloured(50), coloured_shards, 7, dtype=torch.bfloat16)
    for images, labels in batches:
        assert images.dtype == torch.bfloat16 and images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64
    assert torch.equal(epoch_of(batches, 0)[0], exact.bfloat16())


@pytest.mark.parametrize("engine", IN_PROCESS)
def test_what_cannot_be_batched_is_refused(engine: str, coloured_shards) -> None:
    data = coloured(50)
    with pytest.raises(ValueError, match="batch_size is 0"):
        opened(engine, data, coloured_shards, 0)
    with pytest.raises(DataError, match="do not fill"):
        opened(engine, data, coloured_shards, 51, drop_last=True)
    with pytest.raises(DataError, match="cannot reflect 8 pixels of an image of 8"):
        opened(engine, data, coloured_shards, 7, augmentation=Augmentation(pad=8))
    with pytest.raises(ValueError, match="rank is 2 of 2"):
        opened(engine, data, coloured_shards, 7, rank=2, world=2)


@pytest.mark.parametrize("name", ["dataloader", "dali"])
def test_smaller_images_are_scaled_once_for_every_pipeline(name: str) -> None:
    data = coloured(30, 32, 32)
    made = {
        pipeline: make_batches(pipeline, data, options(8, augmentation=Augmentation(pad=4), size=16, workers=0))
        for pipeline in ("device", name)
    }
    (images, labels), (others, other_labels) = (epoch_of(batches, 1) for batches in (made["device"], made[name]))
    assert images.shape == (30, 3, 16, 16) and torch.equal(labels, other_labels)
    torch.testing.assert_close(others, images, rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="cannot train on 33-pixel images: they are stored with 32"):
        make_batches(name, data, options(8, size=33))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("size", 0, "above 0"),
        ("batch_size", -1, "above 0"),
        ("workers", -1, "0 or more"),
    ],
)
def test_options_that_cannot_be_are_refused(field: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is '?{value}'?; expected .*{expected}"):
        options(**{"batch_size": 8} | {field: value})


def test_an_unknown_pipeline_is_refused_and_shards_are_asked_for() -> None:
    with pytest.raises(ValueError, match=f"no pipeline 'torchdata'; expected one of {', '.join(PIPELINES)}"):
        make_batches("torchdata", coloured(9), options(3))
    with pytest.raises(ValueError, match="reads shards, not Dataset"):
        make_batches("webdataset", coloured(9), options(3))


def test_without_dali_its_pipeline_says_what_to_install_and_the_others_work(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ValueError, match="DALI is not installed .*uv sync --extra dali"):
        make_batches("dali", coloured(9), options(3))
    for name in ("device", "dataloader"):
        assert len(list(make_batches(name, coloured(9), options(3, workers=0)))) == 3
