"""The wgan task: what it records, that it goes on exactly where it was, and what becomes of runs that break off."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny import Stop

from wallclock import reports
from wallclock.bench.engine.checkpoint import CHECKPOINT
from wallclock.bench.runs.training import new_run, resumed_run
from wallclock.bench.tasks.wgan.requests import WganRequest
from wallclock.bench.tasks.wgan.task import TASK
from wallclock.loaders.batches import DataError
from wallclock.models.recipes.wgan import CriticSteps, Stage
from wallclock.reports.store.pictures import load_pictures

TINY = {
    "image_size": 16,
    "generator_channels": 4,
    "critic_channels": 4,
    "batch_size": 64,
    "generator_batch_size": 8,
    "critic_steps": CriticSteps(usual=2, long=4, long_until=1, long_every=4),
    "stages": (Stage(epochs=0.1, lr=1e-4), Stage(epochs=0.1, lr=1e-5, long_start=False)),
}


@pytest.fixture(autouse=True)
def one_thread():
    """So small are these maps that two threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def request(name="lesson", **changes):
    recipe = replace(TASK.get_recipe(name, "cpu"), **TINY)
    fields = {"recipe": recipe, "data": "synthetic", "device": "cpu", "look_every": 3}
    return WganRequest(**fields | changes)


def execute(asked, root, observe=lambda text: None, **options):
    run = new_run(TASK, asked, root, "test", **options)
    return run.execute(observe), run.writer.path


def curve(path, metric):
    """A metric over critic steps; of steps that a resumed run took again, both values."""
    frame = reports.load(path)
    line = frame[frame["metric"] == metric]
    return list(zip(line["step"], line["value"], strict=True))


def test_a_run_records_rates_losses_looks_and_samples(tmp_path):
    said = []
    status, path = execute(request(), tmp_path, said.append)
    assert status == "done"
    frame = reports.load(path)
    metrics = frame["metric"].value_counts()
    # Two stages of 8 steps: 4 (long), 2, 2, and again 4 (long), 2, 2.
    assert metrics["critic_loss"] == metrics["generator_loss"] == 6
    assert [step for step, _ in curve(path, "critic_loss")] == [4, 6, 8, 12, 14, 16]
    assert [step for step, _ in curve(path, "em_held_out")] == [0, 8, 16]
    rates = frame[frame["metric"] == "critic_iterations_per_s"]
    assert rates["critic_steps_per_cycle"].tolist() == [4, 2, 2, 4, 2, 2]
    assert rates["phase"].tolist() == ["warm-up", "warm-up", "steady", "steady", "steady", "steady"]
    pivot = frame[frame["metric"].str.endswith("per_s")].groupby("metric")["value"].apply(list)
    for it, generator, images, per_cycle in zip(
        pivot["critic_iterations_per_s"],
        pivot["generator_iterations_per_s"],
        pivot["images_per_s"],
        rates["critic_steps_per_cycle"],
        strict=True,
    ):
        assert images == pytest.approx(64 * it) and it == pytest.approx(per_cycle * generator)
    names = [picture.name for picture in load_pictures(path)]
    assert names == ["samples-0000000", "samples-0000003", "samples-0000006"]
    picture = load_pictures(path)[-1]
    assert (picture.width, picture.height) == (128, 128) and "16 critic steps" in picture.caption
    assert load_pictures(path)[0].png != picture.png
    assert any("it/s" in line for line in said) and any("held-out" in line for line in said)
    summary = reports.summarise(frame)
    assert set(summary["variant"]) == {"channels_last+keep_heap+early_backward+products"}


def test_the_checkpoint_is_safetensors_and_holds_every_part(tmp_path):
    _, path = execute(request(), tmp_path)
    stored = load_file(path / CHECKPOINT)
    kinds = {name.partition(".")[0] for name in stored}
    assert kinds == {"critic", "generator", "critic_optimizer", "generator_optimizer", "noise"}
    assert any(name.endswith("running_mean") for name in stored) and any("square_avg" in name for name in stored)


@pytest.mark.parametrize(("name", "line"), [("lesson", 3), ("paper", 5), ("gp", 7)])
def test_a_run_that_was_stopped_gives_the_losses_of_one_that_was_not(name, line, tmp_path):
    asked = request(name)
    _, whole = execute(asked, tmp_path / "whole")
    broken = new_run(TASK, asked, tmp_path / "broken", "test")
    with pytest.raises(KeyboardInterrupt):
        broken.execute(Stop(line))
    path = broken.writer.path
    assert reports.load_runs(path).loc[0, "run_status"] == "interrupted"
    assert resumed_run(TASK, WganRequest, path).execute(lambda text: None) == "done"
    for metric in ("critic_loss", "generator_loss", "em_train", "em_held_out", "final_em_held_out"):
        assert dict(curve(path, metric)) == dict(curve(whole, metric))
        assert set(curve(path, metric)) == set(curve(whole, metric))  # also where steps were taken twice
    first, second = (load_file(run / CHECKPOINT) for run in (path, whole))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_divergence_is_recorded(tmp_path):
    recipe = replace(request("gp").recipe, stages=(Stage(epochs=0.2, lr=1e30),))
    status, path = execute(request(recipe=recipe), tmp_path)
    assert status == "diverged"
    frame = reports.load(path)
    final = frame[frame["metric"] == "final_em_held_out"]
    assert final["status"].tolist() == ["diverged"] and "a loss became nan" in final["error"].iloc[0]
    assert math.isnan(final["value"].iloc[0])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"look_every": 0}, "expected at least 0"),
        ({"generator_iterations": -1}, "expected at least 0"),
        ({"only_class": "cat"}, "has no class 'cat'; classes: disc"),
        ({"data": "nowhere"}, "no such path: nowhere"),
    ],
)
def test_requests_that_cannot_be_met_are_refused_and_record_nothing(tmp_path, changes, says):
    with pytest.raises((ValueError, DataError), match=says):
        new_run(TASK, request(**changes), tmp_path, "test")
    assert list(tmp_path.iterdir()) == []


def test_one_class_can_be_chosen(tmp_path):
    run = new_run(TASK, request(only_class="ring"), tmp_path, "test")
    assert len(run.data.train) == 500 and set(run.data.train.labels.tolist()) == {1}
    run.writer.finish("stopped")


@pytest.mark.slow
def test_training_on_real_images_lowers_the_estimated_distance(real_images, tmp_path):
    """From the largest look, once the critic has learnt to tell them apart: it falls by a fifth at least."""
    recipe = replace(
        TASK.get_recipe("paper", "cpu"),
        image_size=32,
        generator_channels=16,
        critic_channels=16,
        critic_steps=CriticSteps(long=40, long_until=2, long_every=0),
        stages=(Stage(epochs=100, lr=2e-4),),
    )
    asked = WganRequest(
        recipe=recipe, data=str(real_images), device="cpu", generator_iterations=150,
        look_every=15,
    )  # fmt: skip
    status, path = execute(asked, tmp_path)
    assert status == "done"
    distances = [value for _, value in curve(path, "em_held_out")]
    assert max(distances[1:]) > 0 and distances[-1] < 0.8 * max(distances)
    assert len(load_pictures(path)) == 11
