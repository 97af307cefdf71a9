"""Variants of a recipe, the ablation of CIFAR-10's, and the command."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from tiny import in_this_process

from wallclock import reports
from wallclock.bench.ablation import run as ablation
from wallclock.bench.ablation.kernel_share import calls_in
from wallclock.bench.ablation.variants import Variants
from wallclock.bench.runs.training import new_run
from wallclock.bench.tasks.cifar.ablation import step_flop
from wallclock.bench.tasks.cifar.requests import CifarAblationRequest
from wallclock.bench.tasks.cifar.run import TRAINING
from wallclock.bench.tasks.cifar.task import TASK
from wallclock.bench.tasks.cifar.trainer import Trainer
from wallclock.loaders.data.synthetic import synthetic_split
from wallclock.models.build import build_model
from wallclock.models.networks.sprint import Sprint
from wallclock.models.recipes import get_recipe
from wallclock.models.recipes.override import override
from wallclock.models.recipes.studies import STUDIES
from wallclock.reports.views.ablation import ALL, ALONE, AS_IS, BASELINE, ablation_summary, flop_rows
from wallclock.reports.views.scaling import scaling_summary

SMALL = {"batch_size": 8, "resolutions": (), "model_arguments": {"widths": [4, 8, 8]}, "precision": "fp32"}


def small(name="sprint", **changes):
    recipe = get_recipe(name, "cpu")
    arguments = {"blocks": 1, "widen": 1} if name == "wrn22" else SMALL["model_arguments"]
    return replace(recipe, **SMALL | {"model_arguments": arguments} | changes)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(ablation, "interleaved", in_this_process)


def take_turn(request, name, recipe, stack):
    return TRAINING.turns(request, TRAINING.load(request)).contender(name, recipe)(stack)()


def test_one_left_out_and_one_put_in():
    recipe = get_recipe("sprint", "cpu")
    implementations = ("channels_last", "keep_heap", "product_conv")
    assert recipe.levers() == (*(f"implementations.{name}" for name in implementations), "precision")
    out = Variants().of(recipe)
    assert list(out) == [BASELINE, ALL, *(f"without {name}" for name in (*implementations, "precision"))]
    assert out[BASELINE].levers() == () and out["without precision"].levers() == recipe.levers()[:3]
    put = Variants(how="add-one-in").of(recipe)
    assert list(put) == [BASELINE, ALL, *(f"only {name}" for name in (*implementations, "precision"))]
    assert put["only precision"].levers() == ("precision",) and put[ALL] == recipe
    with pytest.raises(ValueError, match="no levers here"):
        Variants().of(recipe.without(*recipe.levers()))


def test_a_grid_is_every_combination_but_the_recipe_as_it_is():
    recipe = get_recipe("sprint", "cpu")
    grid = Variants(how="grid", grid=("batch_size=250,500", "precision=bf16,fp32"))
    assert list(grid.of(recipe)) == [
        AS_IS, "batch_size=250, precision=bf16", "batch_size=250, precision=fp32", "batch_size=500, precision=fp32"
    ]  # fmt: skip
    assert grid.of(recipe)["batch_size=250, precision=fp32"].batch_size == 250
    assert Variants.from_stored(grid.stored()) == grid
    for wrong, why in (
        ("batch_size", "expected field=value"),
        ("batch_sise=1", "did you mean"),
        ("epochs=9", "as it is"),
    ):
        with pytest.raises(ValueError, match=why):
            Variants(how="grid", grid=(wrong,)).of(recipe)


def test_a_study_of_wide_resnets_changes_what_it_says():
    recipe = get_recipe("wrn22", "cpu")
    variants = STUDIES["wide-resnet"].variants(recipe)
    split = synthetic_split()
    base = step_flop(recipe, split)
    times = {name: step_flop(variant, split) / base for name, variant in variants.items()}
    assert times["inner ni//2"] == pytest.approx(0.5, abs=0.01) and times["inner ni*2"] == pytest.approx(2, abs=0.02)
    assert times["kernels 5-5"] == pytest.approx(25 / 9, rel=0.01) and times["blocks 2-2-5"] == pytest.approx(
        1, abs=0.01
    )
    with pytest.raises(ValueError, match="use wrn22"):
        STUDIES["wide-resnet"].variants(get_recipe("sprint", "cpu"))


def test_flop_of_a_network_is_that_of_its_convolutions():
    recipe = small("wrn22", model_arguments={"blocks": 1, "widen": 1})
    n, products = recipe.batch_size, 0
    sides = ((16, 16, 32, True), (16, 32, 16, False), (32, 64, 8, False))
    for before, after, edge, same in sides:
        products += n * edge**2 * (9 * before * after + 9 * after**2 + (0 if same else before * after))
    first = n * 32**2 * 27 * 16  # its input has no gradient
    head = n * 64 * 10
    assert step_flop(recipe, synthetic_split()) == 2 * (3 * (products + head) + 2 * first)


@pytest.mark.parametrize("how", ["leave-one-out", "add-one-in"])
def test_a_kernel_is_timed_alone_in_every_round(how, here, tmp_path):
    request = CifarAblationRequest(
        recipe=small(), data="synthetic", device="cpu", rounds=2, turn_length=1, choice=Variants(how=how)
    )
    run = new_run(TASK, request, tmp_path, "test")
    assert run.execute(lambda text: None) == "done"
    found = reports.load(run.writer.path).query(f"metric in {ALONE} and phase == 'steady'")
    (variant,) = found["variant"].unique()
    assert variant == ("without product_conv" if how == "leave-one-out" else "only product_conv")
    assert len(found) == 4 and (found["value"] > 0).all()
    summary = ablation_summary(reports.load(run.writer.path)).set_index("variant")
    assert summary.loc[variant, "kernel_speedup"] > 0 and summary["predicted"].notna().sum() == 1


def test_the_calls_of_a_step_are_counted_and_kept_apart_from_it():
    torch.manual_seed(0)
    model = Sprint(10, widths=(8, 8, 8))
    images = torch.randn(4, 3, 32, 32)

    def step():
        for _ in range(2):
            model(images).sum().backward()
        with torch.no_grad():  # an evaluation is no part of a step's work on gradients
            model(images)

    calls = calls_in(step, model, "product_conv")
    shapes = [(24, 31, 31), (8, 15, 15), (8, 15, 15), (8, 7, 7), (8, 7, 7), (8, 3, 3)]
    # Convolutions of one form and one input are timed once: the second and third, the fourth and fifth.
    assert [tuple(call.arguments[0].shape[1:]) for call in calls] == list(dict.fromkeys(shapes))
    assert [call.count for call in calls] == [2, 4, 4, 2]
    assert [call.count for call in calls_in(step, model, "conv_bn_act")] == [2, 2, 2]  # the blocks
    assert calls_in(step, model, "upsample_conv") == []
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_flops_are_set_against_seconds_and_reversals_named(here, tmp_path, monkeypatch):
    recipe = small("wrn22")
    monkeypatch.setattr(
        Variants,
        "of",
        lambda self, base: {AS_IS: base, "wider": replace(base, model_arguments={"blocks": 1, "widen": 2})},
    )
    run = new_run(
        TASK,
        CifarAblationRequest(recipe=recipe, data="synthetic", device="cpu", rounds=3, turn_length=1),
        tmp_path,
        "test",
    )
    assert run.execute(lambda text: None) == "done"
    frame = reports.load(tmp_path)
    frame.loc[(frame["metric"] == "step_s") & (frame["variant"] == "wider"), "value"] = 1e-6
    _, rows = flop_rows(frame, ablation_summary(frame))
    assert [row[1] for row in rows] == ["wider", AS_IS] and rows[1][-1] == "wider" and float(rows[0][3]) > 2


def test_more_devices_are_projected_from_one(here, tmp_path, wallclock):
    changes = ["--set", "batch_size=16", "--set", 'model_arguments={"blocks": 1, "widen": 1}']
    code, out, _ = wallclock(
        *("ablate", "cifar", "--study", "devices", "--rounds", "2", "--device", "cpu", *changes, "--out", tmp_path)
    )
    assert code == 0 and "More devices: a projection from one" in out
    summary = scaling_summary(reports.load(tmp_path)).set_index("devices")
    assert summary["part"].to_dict() == {2: 8, 4: 4, 8: 2}
    recipe = small("wrn22", model_arguments={"blocks": 1, "widen": 1})
    weights = sum(p.numel() for p in build_model(recipe, 10, torch.device("cpu")).parameters())
    assert set(summary["gradient_bytes"]) == {4 * weights}
    assert (summary["at_10"] < summary["at_100"]).all() and (summary["at_100"] < summary["at_most"]).all()


def test_a_turn_of_the_schedule_is_two_steps_of_each_epoch(monkeypatch):
    chosen = Variants(how="study", grid=("schedule",))
    changes = ("batch_size=8", "precision=fp32", 'model_arguments={"act":"silu","widths":[4,8,8]}')
    recipe = override(get_recipe("sprint-jpeg", "cpu"), *changes)
    variants = chosen.of(recipe)
    lacking = ["images at full size", "no group ends first", "GELU", "no keep_heap", "no product_conv"]
    assert list(variants) == [AS_IS, *lacking] and len({one.hash() for one in variants.values()}) == 6
    seen, forward = [], Trainer.forward

    def watched(self, images):
        trained = [any(p.requires_grad for p in group.parameters()) for group in self.model.groups]
        seen.append((images.shape[-1], sum(trained)))
        return forward(self, images)

    monkeypatch.setattr(Trainer, "forward", watched)
    request = CifarAblationRequest(recipe=recipe, data="synthetic", device="cpu", choice=chosen)
    with ExitStack() as stack:
        done = take_turn(request, AS_IS, recipe, stack)
    assert seen == [(24, 3)] * 8 + [(32, 3)] * 6 + [(32, 2)] * 2 + [(32, 1)] * 2
    assert dict((metric, value) for metric, _, value in done.figures)["step_s"] == pytest.approx(done.seconds / 18)


def test_a_recipe_takes_its_turns_outside_an_ablation_too():
    recipe = small()
    request = CifarAblationRequest(recipe=recipe, data="synthetic", device="cpu", turn_length=1)
    with ExitStack() as stack:
        done = take_turn(request, "recipe", recipe, stack)
    figures = {metric: value for metric, _, value in done.figures}
    assert figures["steps_per_s"] == pytest.approx(1 / figures["step_s"])
    assert figures["images_per_s"] == pytest.approx(8 / figures["step_s"])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["cifar", "--rounds", "0"], "expected at least 1"),
        (["cifar", "--leave-one-out", "--grid", "epochs=1"], "exclude each other"),
        (["cifar", "--recipe", "sprnt"], "did you mean 'sprint'"),
        (["cifar", "--study", "wide-resnet", "--recipe", "sprint"], "use wrn22"),
        (["cifar", "--study", "devices", "--recipe", "sprint"], "use --set batch_size=496"),
        (["cifar", "--study", "schedule", "--recipe", "darknet"], "every step of darknet is like the others"),
        (["cifar", "--set", "implementations.cuda_graph=true", "--device", "cpu"], "CUDA graphs need a GPU"),
        (["wgan", "--resume", "nowhere"], "holds no run"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(arguments, why, tmp_path, wallclock):
    code, out, err = wallclock("ablate", *arguments, "--out", tmp_path / "runs")
    assert code == 2 and out == "" and why in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()
