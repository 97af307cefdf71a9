"""`wallclock judge`: the last checkpoint of a generative run against real images."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wallclock import reports
from wallclock.bench.engine.checkpoint import CHECKPOINT
from wallclock.bench.quality import judge as judging
from wallclock.bench.quality.features import save_network
from wallclock.bench.runs.training import new_run
from wallclock.bench.tasks.cyclegan.requests import CycleGanRequest
from wallclock.bench.tasks.registry import TASKS
from wallclock.bench.tasks.wgan.requests import WganRequest
from wallclock.loaders.data.synthetic import synthetic_split
from wallclock.models.networks.sprint import Sprint, whitening_filters

pytest.importorskip("torch_fidelity")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """So small are these maps that two threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def few_real_images(monkeypatch):
    monkeypatch.setattr(judging, "MOST_REAL", 300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A WGAN and a CycleGAN of a few steps, and weights of features."""
    root = tmp_path_factory.mktemp("judged")
    critic_steps = replace(TASKS["wgan"].get_recipe("lesson", "cpu").critic_steps, long_until=0, long_every=0)
    recipe = replace(
        TASKS["wgan"].get_recipe("lesson", "cpu"),
        image_size=32,
        generator_channels=4,
        critic_channels=4,
        batch_size=16,
        critic_steps=critic_steps,
    )
    asked = WganRequest(recipe=recipe, data="synthetic", device="cpu", generator_iterations=1)
    run = new_run(TASKS["wgan"], asked, root, "test")
    run.execute(lambda text: None)
    run.writer.path.rename(root / "wgan")
    small = replace(TASKS["cyclegan"].get_recipe("lesson", "cpu"), image_size=32, load_size=36, blocks=1, channels=4)
    request = CycleGanRequest(recipe=small, data="synthetic", device="cpu", iterations=1)
    run = new_run(TASKS["cyclegan"], request, root, "test")
    run.execute(lambda text: None)
    run.writer.path.rename(root / "cyclegan")
    torch.manual_seed(0)
    network = Sprint(10, widths=(8, 8, 8))
    images = synthetic_split(train=100, test=10).train.images_NHWC.permute(0, 3, 1, 2).float()
    network.whiten.weight.data.copy_(whitening_filters((images - images.mean()) / images.std()))
    save_network(network, root / "features.safetensors")
    return root


def judged(folder, name, out, wallclock, *arguments):
    features = ("--features", folder / "features.safetensors")
    return wallclock("judge", folder / name, *features, "--device", "cpu", "--out", out, *arguments)


def test_a_wgans_samples_are_judged_and_what_is_wrong_is_said(folder, tmp_path, wallclock):
    code, out, err = judged(folder, "wgan", tmp_path, wallclock, "--samples", "120")
    assert code == 0 and "fid" in out and "samples: collapsed" in " ".join(err.split())
    frame = reports.load(tmp_path)
    figures = frame.set_index("metric")["value"]
    assert {"fid", "kid", "precision", "recall", "coverage", "memorisation_ratio", "pairwise_ratio"} <= set(
        figures.index
    )
    assert figures["fid"] > 0 and figures["nearest_sample_ratio"] < 0.5
    assert set(frame["images"]) == {120} and set(frame["step"]) == {5}
    (row,) = reports.load_runs(tmp_path).to_dict("records")
    assert row["request"]["judged"] and any("samples: collapsed" in note for note in row["notes"])


def test_a_cyclegan_is_judged_both_ways(folder, tmp_path, wallclock):
    code, _, _ = judged(folder, "cyclegan", tmp_path, wallclock)
    assert code == 0
    frame = reports.load(tmp_path)
    fid = frame[frame["metric"] == "fid"].set_index("of")["value"]
    assert set(fid.index) == {"A to B", "B to A"} and (fid > 0).all() and set(frame["images"]) == {50}


def test_without_weights_a_network_is_trained_once_and_kept(folder, tmp_path, monkeypatch):
    made = []

    def train(split, path, *, device):
        made.append(len(split.train.classes))
        return Path(shutil.copy(folder / "features.safetensors", path))

    monkeypatch.setattr(judging, "train_network", train)
    shutil.copytree(folder / "wgan", tmp_path / "run")
    options = {
        "weights": None,
        "samples": 20,
        "device": torch.device("cpu"),
        "out": tmp_path / "out",
        "command": "test",
    }
    for _ in range(2):
        judging.judge(tmp_path / "run", observe=lambda text: None, **options)
    assert made == [10]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("wgan", "--samples", "5"), "--samples is 5; expected 10 or more"),
        (("wgan", "--extractor", "inception-v3-compat"), "needs its weights; give them with --features"),
        (("wgan", "--features", "nowhere"), "no weights at nowhere"),
        (("nowhere",), "nowhere"),
        (("records",), f"has no {CHECKPOINT}; give the run itself"),
    ],
)
def test_what_cannot_be_judged_is_refused(arguments, says, folder, tmp_path, wallclock, monkeypatch):
    shutil.copytree(folder / "wgan", tmp_path / "records", ignore=shutil.ignore_patterns(CHECKPOINT))
    shutil.copytree(folder / "wgan", tmp_path / "wgan")
    monkeypatch.chdir(tmp_path)
    code, _, err = wallclock("judge", *arguments, "--device", "cpu", "--out", tmp_path / "out")
    assert code == 2 and says in err and "Traceback" not in err
