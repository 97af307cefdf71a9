"""Training on a part of the real images, through the command's own path."""

from dataclasses import replace

import pytest

from wallclock import reports
from wallclock.bench.tasks.cifar.requests import CifarRequest
from wallclock.bench.tasks.cifar.run import CifarRun
from wallclock.bench.tasks.cifar.task import TASK
from wallclock.loaders.batches import Split
from wallclock.loaders.data.cifar10 import load_cifar10
from wallclock.models.recipes import get_recipe
from wallclock.reports.store.schema import Run
from wallclock.reports.store.write import RunWriter


@pytest.fixture(scope="module")
def part(real_images) -> Split:
    """The first 6,000 training and 1,000 test images."""
    whole = load_cifar10(real_images)
    return Split(whole.train.subset(slice(0, 6000)), whole.test.subset(slice(0, 1000)))


@pytest.mark.slow
def test_sprint_learns_real_images_far_above_chance(part, real_images, tmp_path, precision):
    recipe = replace(get_recipe("sprint", "cpu"), batch_size=250, epochs=3, resolutions=(), precision=precision)
    asked = CifarRequest(recipe=recipe, data=str(real_images), target=0.45, seeds=1, device="cpu", phases=0)
    writer = RunWriter.create(tmp_path, Run(run_id="part", started_utc="2026-01-01T00:00:00Z", command="test"))
    assert CifarRun(TASK, asked, part, writer).execute(lambda seen: None) == "done"
    frame = reports.load(writer.path)
    accuracies = frame[frame["metric"] == "accuracy"]["value"].tolist()
    losses = frame[frame["metric"] == "train_loss"]["value"].tolist()
    assert len(accuracies) == 3 and accuracies[-1] > accuracies[0]
    assert losses == sorted(losses, reverse=True)
    final = frame[frame["metric"] == "final_accuracy"].iloc[0]
    assert final["value"] > 0.45 and final["reached"]  # ten classes: chance is 0.10
    assert final["dataset"] == "cifar10-jpeg"
