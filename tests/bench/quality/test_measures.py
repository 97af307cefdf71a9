"""Quality on planted generators: three images, a copy of the training set, noise, and a healthy one."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wallclock.bench.quality import Judge, features, problems
from wallclock.bench.quality.features import extract, feature_extractor, fidelity, save_network, train_network
from wallclock.loaders.batches import DataError, Split
from wallclock.loaders.data.synthetic import synthetic_split
from wallclock.models.networks.sprint import Sprint, whitening_filters
from wallclock.models.recipes import get_recipe

pytest.importorskip("torch_fidelity")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def split() -> Split:
    return synthetic_split(seed=3, train=600, test=400)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Of a small sprint network, untrained: convolutions that begin as the identity tell images apart."""
    torch.manual_seed(0)
    network = Sprint(10, widths=(48, 64, 64))
    images = synthetic_split(train=100, test=10).train.images_NHWC.permute(0, 3, 1, 2).float()
    network.whiten.weight.data.copy_(whitening_filters((images - images.mean()) / images.std()))
    return save_network(network, tmp_path_factory.mktemp("network") / "sprint.safetensors")


@pytest.fixture(scope="module")
def figures(split, weights):
    """Of each planted generator's 200 images, against 600 training images and 200 held-out ones."""
    train, held_out = split.train.images_NHWC, split.test.images_NHWC[:200]
    random = torch.Generator().manual_seed(0)
    planted = {
        "healthy": split.test.images_NHWC[200:],
        "three images": train[torch.randint(3, (200,), generator=random) + 500],
        "a copy": train[:200],
        "a copy with noise": (train[:200].int() + torch.randint(-2, 3, (200, 32, 32, 3), generator=random))
        .clamp(0, 255)
        .to(torch.uint8),
        "noise": torch.randint(256, (200, 32, 32, 3), generator=random, dtype=torch.uint8),
    }
    judge = Judge(train, held_out, features=feature_extractor(weights, device=CPU), device=CPU)
    return {name: judge.figures(images) for name, images in planted.items()}


def test_held_out_images_pass(figures):
    healthy = figures["healthy"]
    assert problems(healthy) == []
    assert healthy["memorisation_ratio"] == pytest.approx(1, abs=0.15)
    assert healthy["nearest_sample_ratio"] == pytest.approx(1, abs=0.15)
    assert healthy["pairwise_ratio"] == pytest.approx(1, abs=0.15)
    assert healthy["density"] == pytest.approx(1, abs=0.2) and healthy["coverage"] > 0.9
    assert healthy["precision"] > 0.6 and healthy["recall"] > 0.6
    assert abs(healthy["kid"]) < 3 * healthy["kid_std"]


def test_three_images_are_a_collapse(figures):
    found = figures["three images"]
    assert found["nearest_sample_ratio"] == 0 and found["coverage"] < 0.2
    assert [text.split(":")[0] for text in problems(found)] == ["memorised", "collapsed", "narrow"]
    assert found["fid"] > 5 * figures["healthy"]["fid"]


@pytest.mark.parametrize("name", ["a copy", "a copy with noise"])
def test_a_copy_of_the_training_set_is_told_though_its_images_are_good(name, figures):
    found = figures[name]
    assert found["memorisation_ratio"] < (0.01 if name == "a copy" else 0.5)
    assert [text.split(":")[0] for text in problems(found)] == ["memorised"]
    assert found["fid"] < 2 * figures["healthy"]["fid"] and found["coverage"] > 0.9


def test_noise_is_unlike_real_images(figures):
    found = figures["noise"]
    assert found["precision"] < 0.05 and found["density"] < 0.05
    assert "unlike real images: " in " ".join(problems(found))
    assert found["fid"] > 5 * figures["healthy"]["fid"] and found["kid"] > 5 * abs(figures["healthy"]["kid"])


def test_fid_is_the_known_figure_of_two_gaussians(split):
    """Features that are a pixel's three colours: of samples shifted by 10 each, 300 plus nothing of the covariance."""

    def colours(images):
        return images[:, :, 5, 7].float()

    base = split.train.images_NHWC.clamp(max=240)
    judge = Judge(base, base[:400], features=colours)
    assert judge.figures(base[:400] + 10)["fid"] == pytest.approx(300, rel=1e-6)
    same = judge.figures(base[:400])
    assert same["fid"] == pytest.approx(0, abs=1e-6)
    assert same["precision"] == same["recall"] == same["coverage"] == 1


def test_torch_fidelity_computes_the_same_by_its_own_command(figures, split, weights):
    """The extractor is registered: `calculate_metrics` finds it by name, and gives what a `Judge` gives."""

    class Images(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = images.permute(0, 3, 1, 2)

        def __len__(self):
            return len(self.images)

        def __getitem__(self, place):
            return self.images[place]

    metrics = fidelity().calculate_metrics(
        input1=Images(split.test.images_NHWC[200:]), input2=Images(split.test.images_NHWC[:200]), fid=True, prc=True,
        feature_extractor="wallclock-sprint", feature_extractor_weights_path=str(weights), cuda=False, cache=False,
        save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    assert metrics["frechet_inception_distance"] == pytest.approx(figures["healthy"]["fid"], rel=1e-3)
    assert metrics["precision"] == figures["healthy"]["precision"]


def test_a_network_is_trained_and_comes_back(split, tmp_path, monkeypatch):
    narrow = replace(get_recipe("sprint", "cpu"), model_arguments={"widths": (16, 24, 32)})
    monkeypatch.setattr(features, "get_recipe", lambda name, device: narrow)
    small = Split(split.train.subset(slice(0, 256)), split.test.subset(slice(0, 64)))
    path = train_network(small, tmp_path / "made" / "net.safetensors", device=CPU, epochs=1, batch_size=128)
    images = split.test.images_NHWC[:12]
    first, second = (extract(feature_extractor(path, device=CPU), images, CPU) for _ in range(2))
    assert first.shape == (12, 32) and torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_weights_that_are_none_are_told(damage, weights, tmp_path):
    path = tmp_path / "net.safetensors"
    if damage == "cut":
        path.write_bytes(weights.read_bytes()[:-100])
    elif damage == "other":
        path.write_bytes(b"no weights at all")
    with pytest.raises(DataError, match=r"net\.safetensors"):
        feature_extractor(path, device=CPU)


def test_an_unknown_extractor_and_a_missing_library_are_told(weights, monkeypatch):
    with pytest.raises(ValueError, match="no feature extractor 'inception'; expected one of inception-v3-compat"):
        feature_extractor(weights, name="inception", device=CPU)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"install it with: pip install 'wallclock\[quality\]'"):
        fidelity()


def test_sets_that_are_none_are_refused(split):
    images = split.train.images_NHWC[:20]
    judge = Judge(images, images, features=lambda x: x.float().flatten(1))
    for samples in (images[:5], images.float(), images.permute(0, 3, 1, 2)):
        with pytest.raises(ValueError, match=r"samples are torch\.\w+ \[.*expected uint8 \[N, H, W, 3\]"):
            judge.figures(samples)
