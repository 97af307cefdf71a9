"""The wgan task: what it records, that it goes on exactly where it was, and what becomes of runs that break off."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wallclock import reports
from wallclock.bench.measure.timing import Deadline
from wallclock.bench.tasks.wgan.run import CHECKPOINT, WganRequest, new_run, resumed_run
from wallclock.loaders.batches import DataError
from wallclock.models.recipes import get_wgan_recipe
from wallclock.models.recipes.wgan import CriticSteps, Stage
from wallclock.reports.store.pictures import load_pictures
from wallclock.reports.store.write import RECORDS, StoreError

ROOT = Path(__file__).parents[4]
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
    recipe = replace(get_wgan_recipe(name, "cpu"), **TINY)
    fields = {"recipe": recipe, "data": "synthetic", "device": "cpu", "look_every": 3}
    return WganRequest(**fields | changes)


def execute(asked, root, observe=lambda text: None, **options):
    run = new_run(asked, root, "test", **options)
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


class Stop:
    """Raises Ctrl-C's exception at the n-th line that a run tells."""

    def __init__(self, line):
        self.line, self.seen = line, 0

    def __call__(self, text):
        self.seen += 1
        if self.seen == self.line:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["lesson", "paper", "gp"])
@pytest.mark.parametrize("line", [3, 5, 7])
def test_a_run_that_was_stopped_gives_the_losses_of_one_that_was_not(name, line, tmp_path):
    asked = request(name)
    _, whole = execute(asked, tmp_path / "whole")
    broken = new_run(asked, tmp_path / "broken", "test")
    with pytest.raises(KeyboardInterrupt):
        broken.execute(Stop(line))
    path = broken.writer.path
    assert reports.load_runs(path).loc[0, "run_status"] == "interrupted"
    assert resumed_run(path).execute(lambda text: None) == "done"
    for metric in ("critic_loss", "generator_loss", "em_train", "em_held_out", "final_em_held_out"):
        assert dict(curve(path, metric)) == dict(curve(whole, metric))
        assert set(curve(path, metric)) == set(curve(whole, metric))  # also where steps were taken twice
    first, second = (load_file(run / CHECKPOINT) for run in (path, whole))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    with pytest.raises(StoreError, match="finished"):
        resumed_run(path)


@pytest.mark.slow
def test_a_killed_run_can_be_read_and_goes_on(tmp_path):
    _, whole = execute(request(), tmp_path / "whole")
    script = f"""
import os, signal, torch
from pathlib import Path
from dataclasses import replace
from wallclock.bench.tasks.wgan.run import WganRequest, new_run
from wallclock.models.recipes import get_wgan_recipe
from wallclock.models.recipes.wgan import CriticSteps, Stage
torch.set_num_threads(1)
recipe = replace(get_wgan_recipe("lesson", "cpu"), **{TINY!r})
seen = []
def kill(text):
    seen.append(text)
    if len(seen) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
asked = WganRequest(recipe=recipe, data="synthetic", device="cpu", look_every=3)
new_run(asked, Path({str(tmp_path)!r}) / "killed", "test").execute(kill)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    (path,) = (tmp_path / "killed").iterdir()
    assert reports.load_runs(path).loc[0, "run_status"] == "unfinished"
    assert len(curve(path, "critic_loss")) == 4
    run = resumed_run(path)
    assert run.execute(lambda text: None) == "done"
    assert set(curve(path, "critic_loss")) == set(curve(whole, "critic_loss"))


def test_a_limit_ends_a_run_and_a_budget_stops_it(tmp_path):
    status, path = execute(request(generator_iterations=2), tmp_path)
    assert status == "done" and len(curve(path, "generator_loss")) == 2
    assert [step for step, _ in curve(path, "em_train")] == [0, 6]
    status, path = execute(request(), tmp_path, deadline=Deadline(-1.0))
    assert status == "stopped" and "the budget is spent" in reports.load_runs(path).loc[0, "notes"][-1]
    assert resumed_run(path).execute(lambda text: None) == "done"


def test_divergence_is_recorded(tmp_path):
    recipe = replace(request("gp").recipe, stages=(Stage(epochs=0.2, lr=1e30),))
    status, path = execute(request(recipe=recipe), tmp_path)
    assert status == "diverged"
    frame = reports.load(path)
    final = frame[frame["metric"] == "final_em_held_out"]
    assert final["status"].tolist() == ["diverged"] and "a loss became nan" in final["error"].iloc[0]
    assert math.isnan(final["value"].iloc[0])


def test_bf16_is_noted_as_other_mathematics(tmp_path):
    asked = request(recipe=replace(request().recipe, precision="bf16"), generator_iterations=1)
    _, path = execute(asked, tmp_path)
    (note,) = reports.load_runs(path).loc[0, "notes"]
    assert note.startswith("this changes what is computed: precision=bf16")
    assert reports.load_runs(execute(request(generator_iterations=1), tmp_path)[1]).loc[0, "notes"] == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"host": "another"}, "host: another then"),
        ({"request": {"content_hash": "0"}}, "made with other data"),
        ({"recipe_hash": "0"}, "reads otherwise"),
        ({"request": {"benchmark": "cifar"}}, "a run of cifar, not of wgan"),
    ],
)
def test_a_run_goes_on_only_where_it_was_begun(tmp_path, change, says):
    run = new_run(request(), tmp_path, "test")
    with pytest.raises(KeyboardInterrupt):
        run.execute(Stop(2))
    records = run.writer.path / RECORDS
    head, rest = records.read_text().split("\n", 1)
    stored = json.loads(head)
    for key, value in change.items():
        stored[key] = stored[key] | value if isinstance(value, dict) else value
    records.write_text(json.dumps(stored) + "\n" + rest)
    with pytest.raises(StoreError, match=says):
        resumed_run(run.writer.path)


@pytest.mark.parametrize("damage", ["cut", "other recipe", "other tensors"])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    from safetensors.torch import save_file

    run = new_run(request(), tmp_path, "test")
    with pytest.raises(KeyboardInterrupt):
        run.execute(Stop(3))
    path = run.writer.path / CHECKPOINT
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        tensors = load_file(path)
        position = {"position": json.dumps({"stage": 0})}
        if damage == "other recipe":
            save_file(tensors, path, metadata=position | {"recipe_hash": "0"})
        else:
            tensors.pop("noise")
            save_file(tensors, path, metadata=position | {"recipe_hash": request().recipe.hash()})
    with pytest.raises(StoreError, match={"cut": "damaged", "other recipe": "another recipe"}.get(damage, "tensors")):
        resumed_run(run.writer.path).execute(lambda text: None)


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
        new_run(request(**changes), tmp_path, "test")
    assert list(tmp_path.iterdir()) == []


def test_one_class_can_be_chosen(tmp_path):
    run = new_run(request(only_class="ring"), tmp_path, "test")
    assert len(run.split.train) == 500 and set(run.split.train.labels.tolist()) == {1}
    run.writer.finish("stopped")


@pytest.mark.slow
def test_training_on_real_images_lowers_the_estimated_distance(real_images, tmp_path):
    """From the largest look, once the critic has learnt to tell them apart: it falls by a fifth at least."""
    recipe = replace(
        get_wgan_recipe("paper", "cpu"),
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
