"""What carries out each convolution is chosen by measurement, and what is wrong, slow or broken is never taken."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from wallclock import reports
from wallclock.bench.measure.timing import now_s
from wallclock.bench.runs.training import new_run, resumed_run
from wallclock.bench.tasks.cifar import fastest_convs as choices
from wallclock.bench.tasks.cifar import run as cifar
from wallclock.bench.tasks.cifar.fastest_convs import recorded_choices, tried_choices
from wallclock.bench.tasks.cifar.requests import CifarRequest
from wallclock.bench.tasks.cifar.task import TASK
from wallclock.kernels import conv_bn_operators
from wallclock.models.layers import BatchNormAct, ConvBNAct, Residual, units
from wallclock.models.networks.darknet import Darknet
from wallclock.models.networks.sprint import SprintGroup
from wallclock.models.networks.wide_resnet import PreActivationBlock, WideResNet
from wallclock.models.recipes import get_recipe
from wallclock.models.recipes.override import override
from wallclock.models.recipes.recipe import Implementations
from wallclock.reports.views.choices import choice_rows

NORMS = {ConvBNAct: 1, Residual: 2, PreActivationBlock: 1, SprintGroup: 2}


@pytest.fixture
def one_call(monkeypatch):
    """Every choice is called once a round, without warm-up: the interpreter takes seconds."""

    def once(fn, **options):
        start_s = now_s()
        fn()
        return SimpleNamespace(samples_s=(now_s() - start_s,))

    monkeypatch.setattr(choices, "measure", once)


def tiny_darknet():
    torch.manual_seed(0)
    return Darknet(10, num_blocks=(2,), base_channels=4)


def all_tried(model, images, device, **options):
    images = images.to(device)
    return list(tried_choices(model.to(device), images, torch.float32, Implementations(), **options))


def test_units_are_the_outermost_and_have_their_norms():
    model = Darknet(10, num_blocks=(1, 1), base_channels=4)
    names = [f"features.{place}" for place in range(5)]
    assert list(units(model)) == names
    for network in (model, WideResNet(10, blocks=2, widen=1), get_model("sprint")):
        for unit in units(network).values():
            assert len(unit.chosen_norms()) == NORMS[type(unit)]
    assert list(units(units(model)["features.4"])) == [""]


def get_model(name):
    from wallclock.models.build import build_model

    return build_model(get_recipe(name, "cpu"), 10, torch.device("cpu"))


@pytest.mark.slow
def test_the_fastest_right_choice_of_each_unit_is_taken(device, large_tiles, one_call, monkeypatch):
    if device.type == "cuda":
        pytest.skip("the interpreter loses for certain; a GPU's choice is its own")
    model, images = tiny_darknet(), torch.randn(4, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tried = all_tried(model, images, device)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(norm.implementations == Implementations() for norm in norms(model))
    found = {name: one for of_unit in tried for one in of_unit if one.chosen for name in one.units}
    assert found.keys() == units(model).keys()
    assert {len(of_unit) for of_unit in tried} == {2, 4}
    assert any(len(one.units) == 2 for one in found.values()), "two blocks of a group are alike, and measured once"
    assert all(set(one.choices) == {"eager"} for one in found.values()), "the interpreter is slower than PyTorch"
    assert all(one.error < 1e-5 and not one.why_not and one.latencies_s for of_unit in tried for one in of_unit)

    exact = F.batch_norm

    def slow(*arguments, **options):
        if arguments[0].dtype == torch.float32:
            sleep_s(1.0)
        return exact(*arguments, **options)

    monkeypatch.setattr(F, "batch_norm", slow)
    known = set(found) - {"features.0"}
    ((eager, ours),) = all_tried(model, images, device, known=known)
    assert ours.chosen and not eager.chosen and ours.choices == ("triton",)
    assert ours.median_s < eager.median_s


def sleep_s(seconds):
    import time

    time.sleep(seconds)


def norms(model):
    return [layer for layer in model.modules() if isinstance(layer, BatchNormAct)]


def test_what_is_wrong_or_fails_is_recorded_and_not_taken(device, large_tiles, one_call, monkeypatch):
    images = torch.randn(4, 3, 8, 8)
    model = torch.nn.Sequential(ConvBNAct(3, 4, 3, act="relu", momentum=0.1))
    exact = conv_bn_operators.conv

    def wrong(*arguments, **options):
        y, *others = exact(*arguments, **options)
        return 1.01 * y, *others

    def broken(*arguments, **options):
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    monkeypatch.setattr(choices, "WORTH", 1e9)  # anything would be taken
    for planted, words in ((wrong, "wrong: off by"), (broken, "RuntimeError: no kernel image is available for")):
        monkeypatch.setattr(conv_bn_operators, "conv", planted)
        ((eager, ours),) = all_tried(model, images, device)
        assert eager.chosen and not ours.chosen and ours.why_not.startswith(words)
        (sample,) = ours.samples({"device": "cpu"})
        assert sample.status == "failed" and sample.error == ours.why_not and sample.metric == "error"


@pytest.fixture
def request_auto():
    recipe = get_recipe("darknet", "cpu")
    for change in ("model_arguments={}", "batch_size=2", "epochs=0.001", "precision=fp32"):
        recipe = override(recipe, change)
    recipe = dataclasses.replace(recipe, model_arguments={"num_blocks": [1], "base_channels": 4})
    recipe = override(recipe, "implementations.conv_bn_act=auto")
    return CifarRequest(recipe=recipe, data="synthetic", target=0.5, seeds=1, device="cpu", phases=0)


def test_a_machine_without_a_gpu_says_why_it_stays_with_eager(request_auto, tmp_path):
    run = new_run(TASK, request_auto, tmp_path, "test")
    assert run.execute(lambda event: None) == "done"
    (row,) = reports.load_runs(run.writer.path).to_dict("records")
    (note,) = row["notes"]
    assert note.startswith("conv_bn_act is eager everywhere: Triton")
    assert set(reports.load(run.writer.path)["variant"]) == {"auto conv_bn_act"}


def test_choices_are_recorded_and_a_run_that_goes_on_keeps_them(
    request_auto, tmp_path, large_tiles, one_call, monkeypatch, device
):
    if device.type == "cuda":
        pytest.skip("the interpreter is asked for")
    monkeypatch.setattr(cifar, "interpreted", lambda *_: "")
    seen = []

    def stop(event):
        raise KeyboardInterrupt

    run = new_run(TASK, request_auto, tmp_path, "test")
    with pytest.raises(KeyboardInterrupt):
        run.execute(stop)
    samples = reports.load(run.writer.path)
    recorded = recorded_choices(samples)
    header, rows = choice_rows(samples)
    assert header[0] == "unit" and [row[0].split()[0] for row in rows] == list(recorded)
    assert [row[-1] for row in rows] == [", ".join(recorded[row[0].split()[0]]) for row in rows]
    assert recorded == run.choices and recorded.keys() == {"features.0", "features.1", "features.2"}
    monkeypatch.setattr(cifar, "tried_choices", lambda *a: seen.append(a[-1]) or ())
    resumed = resumed_run(TASK, CifarRequest, run.writer.path)
    resumed.execute(lambda event: None)
    assert seen == [recorded]
