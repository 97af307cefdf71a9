"""Data shared out among real processes: disjoint, complete, in step; and one that dies does not leave the others."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wallclock.loaders.batches import BatchOptions, DataError
from wallclock.loaders.pipelines.epochs import Epochs

COUNT = 50


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(1, 60), batch_size=st.integers(1, 9), world=st.integers(1, 5),
    drop_last=st.booleans(), shuffle=st.booleans(), epoch=st.integers(0, 3),
)  # fmt: skip
def test_ranks_get_disjoint_samples_in_equal_steps(count, batch_size, world, drop_last, shuffle, epoch) -> None:
    fields = {"batch_size": batch_size, "drop_last": drop_last, "shuffle": shuffle, "world": world}
    fields |= {"device": None, "augmentation": None}
    try:
        ranks = [Epochs(count, BatchOptions(rank=rank, **fields)) for rank in range(world)]
    except DataError:
        needed = world * batch_size if drop_last else world
        assert count < needed or (batch_size == 1 and count % world)
        return
    sizes = [rank.sizes() for rank in ranks]
    assert len({len(own) for own in sizes}) == 1
    assert all(0 < size <= batch_size for own in sizes for size in own)
    for orders in (
        [rank.order(epoch) for rank in ranks],
        [r.order_within(epoch) * world + r.options.rank for r in ranks],
    ):
        places = [
            place
            for rank, order in zip(ranks, orders, strict=True)
            for batch in rank.cut(order)
            for place in batch.tolist()
        ]
        assert len(set(places)) == len(places)
        if drop_last:
            assert len(places) == world * batch_size * (count // world // batch_size)
        else:
            assert sorted(places) == list(range(count))


READ = """
import json, sys, torch
import torch.distributed as dist
from pathlib import Path
from wallclock.kernels.augment import Augmentation
from wallclock.loaders.batches import BatchOptions, Dataset
from wallclock.loaders.pipelines.choose import make_batches
from wallclock.loaders.data.shards import Shards

folder, out = map(Path, sys.argv[1:])
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
shards = Shards.open(folder)
data = shards.stored().dataset()
data = Dataset.create("any", data.images_NHWC, torch.arange(len(data)), tuple(map(str, range(len(data)))))
fields = dict(device=torch.device("cpu"), seed=4, augmentation=Augmentation(), rank=rank, world=world, workers=1)
options = BatchOptions(batch_size=4, **fields)
made = {name: make_batches(name, data, options) for name in ("device", "dataloader", "dali")}
made["webdataset"] = make_batches("webdataset", shards, options)
found = {}
for name, batches in made.items():
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        steps, labels = 0, []
        for images, own in batches:
            dist.all_reduce(torch.ones(1))  # as a training step does: out of step, it hangs
            steps += 1
            labels += own.tolist()
        if name == "webdataset":
            labels = torch.cat(batches.order(epoch)).tolist()
        everyone = [None] * world
        dist.all_gather_object(everyone, (steps, labels))
        found[f"{name} {epoch}"] = everyone
if rank == 0:
    out.write_text(json.dumps(found))
dist.destroy_process_group()
"""

DIE = """
import os, signal, sys, torch
import torch.distributed as dist
from pathlib import Path
from wallclock.kernels.augment import Augmentation
from wallclock.loaders.batches import BatchOptions
from wallclock.loaders.pipelines.choose import make_batches
from wallclock.loaders.data.shards import Shards

folder, how = Path(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
shards = Shards.open(folder)
fields = dict(device=torch.device("cpu"), augmentation=Augmentation(), rank=rank, world=world, workers=1)
batches = make_batches("webdataset", shards, BatchOptions(batch_size=4, **fields))
for step, _ in enumerate(batches):
    if rank == 1 and step == 1 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1))
"""


def launched(script: str, world: int, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(script))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", str(file)]
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=120, check=False, env=environment, cwd=root
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import torch

    from wallclock.loaders.batches import Dataset
    from wallclock.loaders.data.shards import write_shards

    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (COUNT, 32, 32, 3), dtype=torch.uint8, generator=random)
    write_shards(Dataset.create("any", images, torch.arange(COUNT) % 7, tuple("abcdefg")), tmp_path / "shards", 6)
    return tmp_path / "shards"


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_every_pipeline_in_real_processes(world: int, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    done = launched(READ, world, tmp_path, str(folder), str(out))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert len(found) == 8
    for name, ranks in found.items():
        steps = {steps for steps, _ in ranks}
        labels = [label for _, labels in ranks for label in labels]
        assert len(ranks) == world and len(steps) == 1, name
        assert len(labels) == COUNT and sorted(labels) == list(range(COUNT)), name
        assert max(len(labels) for _, labels in ranks) - min(len(labels) for _, labels in ranks) <= 6 // world, name
    for name in ("dataloader", "dali"):
        assert found[f"{name} 0"] == found["dataloader 0"], "one shuffle of all, whichever pipeline"
        assert {*found[f"{name} 0"][0][1]} != {*found[f"{name} 1"][0][1]}, "anew in each epoch"
    assert {*found["device 0"][0][1]} == {*found["device 1"][0][1]}, "a rank keeps what lies in its memory"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "damaged"])
def test_a_rank_that_dies_stops_the_others(how: str, folder: Path, tmp_path: Path) -> None:
    if how == "damaged":
        for file in sorted(folder.glob("*.tar")):  # some rank meets an image without its end
            content = bytearray(file.read_bytes())
            at = content.rfind(b"IDAT")
            content[at + 4 : at + 200] = bytes(196)
            file.chmod(0o644)
            file.write_bytes(content)
            break
    done = launched(DIE, 3, tmp_path, str(folder), how)  # within its time limit: gloo would wait for half an hour
    assert done.returncode != 0
    if how == "killed":
        assert "Signal 9 (SIGKILL)" in done.stderr and "rank      : 1" in done.stderr
    else:
        assert "cannot be decoded" in done.stderr and "00000.tar" in done.stderr
