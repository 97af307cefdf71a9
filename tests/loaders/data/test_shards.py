"""Tar shards: what is written, what is read again, and what becomes of damage."""

import io
import json
import multiprocessing
import os
import shutil
import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from wallclock.kernels.augment import Augmentation
from wallclock.loaders.batches import BatchOptions, DataError, Dataset
from wallclock.loaders.data.shards import MANIFEST, Shards, write_shards
from wallclock.loaders.data.stored import stored_folders
from wallclock.loaders.pipelines.choose import make_batches, shards_of
from wallclock.loaders.pipelines.webdataset import ShardBatches

CPU = torch.device("cpu")
COUNT = 46


def made(count: int = COUNT) -> Dataset:
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=random)
    return Dataset.create("any", images, torch.arange(count) % 7, tuple("abcdefg"))


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return write_shards(made(), tmp_path / "shards", 6)


def batches_of(shards: Shards, batch_size: int = 4, **fields) -> ShardBatches:
    fields = {"device": CPU, "seed": 2, "augmentation": Augmentation(), "workers": 0} | fields
    return ShardBatches(shards, BatchOptions(batch_size=batch_size, **fields))


def rewritten(file: Path, change) -> None:
    """Writes a tar file anew, each member's content as `change(name, content)` gives it; None leaves it out."""
    with tarfile.open(file) as archive:
        members = [(m.name, archive.extractfile(m).read()) for m in archive if m.isfile()]
    file.chmod(0o644)
    with tarfile.open(file, "w") as archive:
        for name, content in ((name, change(name, content)) for name, content in members):
            if content is not None:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def test_shards_hold_every_image_exactly_and_mix_the_classes(shards: Shards) -> None:
    data = made()
    assert len(shards) == COUNT and max(shards.samples) - min(shards.samples) <= 1 and len(shards.files) == 6
    decoded = shards.stored().dataset()
    assert decoded.content_hash == data.content_hash == shards.content_hash
    assert Shards.open(shards.folder) == shards
    with tarfile.open(shards.folder / shards.files[0]) as archive:
        stems = {Path(name).stem for name in archive.getnames()}
        assert len(archive.getnames()) == 2 * shards.samples[0] and len(stems) == shards.samples[0]
        assert stems != {f"{place:08d}" for place in range(shards.samples[0])}, "not as the set is sorted"


def test_encoded_images_are_written_as_they_are(tmp_path: Path) -> None:
    from PIL import Image

    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(made().images_NHWC[3 * label + number].numpy()).save(
                tmp_path / "train" / name / f"{number}.jpg", quality=80
            )
    stored = stored_folders(tmp_path / "train")
    again = write_shards(stored, tmp_path / "shards", 2).stored()
    for place in range(6):
        assert again.content(place).tobytes() == stored.content(place).tobytes()
    assert again.labels.tolist() == [0, 0, 0, 1, 1, 1] and again.classes == ("cat", "dog")


@pytest.mark.parametrize("workers", [0, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_workers_share_the_shards(shards: Shards, workers: int) -> None:
    batches = batches_of(shards, workers=workers)
    assert batches.workers == workers
    batches.set_epoch(1)
    whole = list(batches)
    order = batches.order(1)
    assert len(whole) == len(batches) == len(order)
    assert sorted(torch.cat(order).tolist()) == list(range(COUNT))
    for (_, labels), places in zip(whole, order, strict=True):
        assert torch.equal(labels, places % 7)


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 0), (2, 3), (3, 2), (6, 1)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_take_equal_steps_over_disjoint_samples(
    shards: Shards, world: int, workers: int, drop_last: bool
) -> None:
    for epoch in (0, 1):
        ranks = [
            batches_of(shards, rank=rank, world=world, workers=workers, drop_last=drop_last) for rank in range(world)
        ]
        orders = [batches.order(epoch) for batches in ranks]
        assert len({len(batches) for batches in ranks} | {len(order) for order in orders}) == 1
        places = torch.cat([batch for order in orders for batch in order]).tolist()
        assert len(set(places)) == len(places), "disjoint"
        assert drop_last or len(places) == COUNT, "complete"
        assert not drop_last or all(len(batch) == 4 for order in orders for batch in order)


def test_each_epoch_deals_the_shards_anew(shards: Shards) -> None:
    first, second = (
        [set(torch.cat(batches_of(shards, rank=rank, world=2).order(epoch)).tolist()) for rank in (0, 1)]
        for epoch in (0, 1)
    )
    assert first[0] | first[1] == set(range(COUNT)) and first[0] != second[0]


def test_shards_that_do_not_go_evenly_are_refused(shards: Shards) -> None:
    with pytest.raises(DataError, match="6 shards do not go evenly to 4 ranks; write a multiple of 4"):
        batches_of(shards, rank=0, world=4)
    assert batches_of(shards, workers=5).workers == 3, "as many workers as share them evenly"
    with pytest.raises(DataError, match="choose a smaller batch_size"):
        batches_of(shards, 47, drop_last=True)
    assert batches_of(shards, 20, workers=3, drop_last=True).workers == 2, "each fills a batch"


def test_what_cannot_be_written_is_refused(tmp_path: Path, shards: Shards) -> None:
    with pytest.raises(DataError, match="exists; name a new folder"):
        write_shards(made(), shards.folder, 6)
    with pytest.raises(DataError, match="46 samples do not fill 47 shards"):
        write_shards(made(), tmp_path / "other", 47)
    with pytest.raises(ValueError, match="shards is 0"):
        write_shards(made(), tmp_path / "other", 0)
    (tmp_path / "file").write_text("")
    with pytest.raises((DataError, OSError)):
        write_shards(made(), tmp_path / "file" / "below", 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "shards"], "no half of a folder is left"


def test_damaged_folders_are_named(shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read .*shards.json"):
        Shards.open(tmp_path)
    manifest = shards.folder / MANIFEST
    whole = json.loads(manifest.read_text())
    for text in ("{", "[]", json.dumps(whole | {"shards": [{"file": "0"}]}), json.dumps(whole | {"shards": []})):
        manifest.write_text(text)
        with pytest.raises(DataError, match="shards.json is damaged"):
            Shards.open(shards.folder)
    manifest.write_text(json.dumps(whole))
    first = shards.folder / shards.files[0]
    content = first.read_bytes()
    first.unlink()
    with pytest.raises(DataError, match="00000.tar is missing"):
        Shards.open(shards.folder)
    for empty in (b"", bytes(1024), bytes(10_240)):
        first.write_bytes(empty)
        if len(empty) <= 1024:
            with pytest.raises(DataError, match="00000.tar is an empty shard"):
                Shards.open(shards.folder)
    for opened in (Shards.open(shards.folder), shards):  # a tar of nothing but padding
        with pytest.raises(DataError, match="hold fewer samples than shards.json says"):
            list(batches_of(opened))
        with pytest.raises(DataError, match="holds 38 images; shards.json names 46"):
            opened.stored()
    first.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="write the shards .*again"):
        list(batches_of(shards))
    with pytest.raises(DataError, match="00000.tar is damaged|holds .* images"):
        shards.stored()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_label_out_of_range_is_named(shards: Shards, workers: int) -> None:
    file = shards.folder / shards.files[3]
    with tarfile.open(file) as archive:
        victim = next(name for name in archive.getnames() if name.endswith(".cls"))
    for wrong, message in (
        (b"7", "has label 7; expected 0 to 6"),
        (b"-1", "has label -1"),
        (b"cat", "expected a label"),
    ):
        rewritten(file, lambda name, content, wrong=wrong: wrong if name == victim else content)
        with pytest.raises(DataError, match=message) as raised:
            list(batches_of(shards, workers=workers))
        assert Path(victim).stem in str(raised.value)
        with pytest.raises(DataError, match=message):
            shards.stored()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_truncated_image_is_named(shards: Shards, workers: int) -> None:
    file = shards.folder / shards.files[2]
    with tarfile.open(file) as archive:
        victim = sorted(name for name in archive.getnames() if name.endswith(".png"))[3]
    rewritten(file, lambda name, content: content[: len(content) // 2] if name == victim else content)
    with pytest.raises(DataError, match="cannot be decoded") as raised:
        list(batches_of(shards, workers=workers))
    assert victim in str(raised.value) and file.name in str(raised.value)


def lose_a_worker(data: Any, pipeline: str, said: Path) -> None:
    """Kills one of a pipeline's workers, and writes down what its user is told."""
    options = BatchOptions(batch_size=2, device=CPU, augmentation=Augmentation(), workers=2)
    batches: Any = make_batches(pipeline, data, options)
    stream = iter(batches)
    next(stream)
    os.kill(batches._loader._iterator._workers[1].pid, signal.SIGKILL)
    try:
        for _ in range(100):
            list(stream)
            stream = iter(batches)
    except RuntimeError as error:
        said.write_text(f"{type(error).__name__}: {error}")
        os._exit(1)


@pytest.mark.parametrize("pipeline", ["webdataset", "dataloader"])
def test_a_killed_worker_ends_the_epoch_with_a_message(shards: Shards, pipeline: str, tmp_path: Path) -> None:
    """In a process of its own: torch raises from a signal handler, wherever that process happens to be."""
    data = shards if pipeline == "webdataset" else shards.stored()
    process = multiprocessing.get_context("fork").Process(
        target=lose_a_worker, args=(data, pipeline, tmp_path / "said")
    )
    process.start()
    process.join(60)
    assert process.exitcode == 1
    said = (tmp_path / "said").read_text()
    assert "is killed by signal: Killed" in said or "exited unexpectedly" in said
    assert said.startswith((f"WorkerDied: the pipeline '{pipeline}' lost a worker", "RuntimeError: DataLoader worker"))


def test_shards_are_written_once_to_the_user_s_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = made(50)
    first = shards_of(data)
    stamp = first.folder.stat().st_mtime_ns
    assert shards_of(data) == first and first.folder.stat().st_mtime_ns == stamp
    assert tmp_path in first.folder.parents and first.content_hash == data.content_hash
    shutil.rmtree(first.folder)
    assert shards_of(data) == first
    with pytest.raises(DataError, match="46 images do not fill 48 shards; use another pipeline"):
        shards_of(made())
