"""Schedules against their definition, and what a recipe's record promises."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from wallclock import reports
from wallclock.models.recipes import RECIPES, get_recipe
from wallclock.models.recipes.cyclegan import CycleGanRecipe
from wallclock.models.recipes.override import override
from wallclock.models.recipes.recipe import Implementations, Recipe
from wallclock.models.recipes.schedules import LinearDecay, OneCycle
from wallclock.models.recipes.wgan import WganRecipe

PUBLISHED = Path(__file__).parents[3] / "reports" / "published"


def fastai_circular_lr_beta(iteration, total, div=20, pct=20, max_momentum=0.95, min_momentum=0.85):
    """The formula of fastai 0.7, written from its description: learning rate factor and momentum."""
    cycle = int(total * (1 - pct / 100) / 2)
    if iteration > 2 * cycle:
        done = (iteration - 2 * cycle) / (total - 2 * cycle)
        return (1 + done * (1 - 100) / 100) / div, max_momentum
    done = iteration / cycle if iteration <= cycle else 1 - (iteration - cycle) / cycle
    return (1 + done * (div - 1)) / div, max_momentum + done * (min_momentum - max_momentum)


@pytest.mark.parametrize("iteration", [0, 1, 250, 400, 401, 700, 799, 801, 900, 999])
def test_one_cycle_is_fastais(iteration):
    setting = OneCycle().at(iteration / 1000)
    factor, momentum = fastai_circular_lr_beta(iteration, 1000)
    assert setting.lr_factor == pytest.approx(factor, abs=1e-9)
    assert setting.momentum == pytest.approx(momentum, abs=1e-9)


def test_linear_decay_stays_at_zero():
    schedule = LinearDecay(until=0.5)
    assert [schedule.at(p).lr_factor for p in (0, 0.25, 0.5, 0.9)] == [1, 0.5, 0, 0]
    assert schedule.at(0).momentum is None


@pytest.mark.parametrize("name", RECIPES)
def test_a_resolved_recipe_is_json_and_its_hash_follows_every_field(name):
    recipe = RECIPES[name]("cpu")
    assert json.loads(json.dumps(recipe.resolved())) == recipe.resolved()
    assert recipe.resolved()["optimizer"]["type"] in {"SGD", "MuonSGD"}
    changed = [
        replace(recipe, epochs=recipe.epochs + 1),
        replace(recipe, optimizer=replace(recipe.optimizer, momentum=0.123)),
        replace(recipe, implementations=Implementations(channels_last=False)),
    ]
    assert len({recipe.hash(), *(r.hash() for r in changed)}) == 4
    assert RECIPES[name]("cpu").hash() == recipe.hash()
    with pytest.raises(FrozenInstanceError):
        recipe.epochs = 1


def test_padding_and_pipeline_are_fields_like_any_other():
    recipe = RECIPES["sprint"]("cpu")
    assert (recipe.padding, recipe.pipeline) == ("reflect", "device")
    black = override(recipe, "padding=zero")
    assert black.padding == "zero" and black.hash() != recipe.hash()
    assert Recipe.from_resolved(override(black, "pipeline=dali").resolved()).pipeline == "dali"
    for assignment in ("padding=black", "pipeline=torchdata"):
        with pytest.raises(ValueError, match="expected one of"):
            override(recipe, assignment)
    with pytest.raises(ValueError, match="one of reflect, zero, none"):
        replace(recipe, padding="edge")


def test_records_of_before_there_was_a_choice_of_pipeline_still_load():
    resolved = RECIPES["sprint"]("cpu").resolved()
    del resolved["padding"], resolved["pipeline"]
    assert Recipe.from_resolved(resolved) == RECIPES["sprint"]("cpu")
    published = Path(__file__).parents[3] / "reports" / "published"
    runs = reports.load_runs(published)
    recipes = [r for r, asked in zip(runs["recipe"], runs["request"], strict=True) if asked["benchmark"] == "cifar"]
    assert recipes
    for recipe in recipes:
        assert Recipe.from_resolved(recipe).pipeline == "device"


def test_the_device_changes_only_the_implementations():
    for make in RECIPES.values():
        cpu, cuda = make("cpu").resolved(), make("cuda").resolved()
        assert {key for key in cpu if cpu[key] != cuda[key]} == {"implementations"}


def test_variants_are_named_by_their_switches():
    assert Implementations().variant == "eager"
    assert Implementations(compile=True, cuda_graph=True).variant == "compile+cuda_graph"


@pytest.mark.parametrize(("field", "value"), [("batch_size", 0), ("epochs", 0), ("epochs", float("nan"))])
def test_impossible_budgets_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        replace(RECIPES["sprint"]("cpu"), **{field: value})


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'sprint'"):
        get_recipe("sprnt", "cpu")
    with pytest.raises(ValueError, match="recipes: sprint, sprint-jpeg, sprint94, sprint95, sprint96, wrn22, darknet"):
        get_recipe("zzz", "cpu")


def test_a_record_from_before_a_switch_existed_loads_with_the_switch_off():
    recipe = replace(RECIPES["sprint"]("cpu"), implementations=Implementations(residual="triton"))
    stored = json.loads(json.dumps(recipe.resolved()))
    for name in ("instance_norm_act", "upsample_conv", "optimizer"):
        del stored["implementations"][name]
    assert Recipe.from_resolved(stored) == recipe


def test_every_published_recipe_loads():
    runs = reports.load_runs(PUBLISHED)
    stored = [(r, asked["benchmark"]) for r, asked in zip(runs["recipe"], runs["request"], strict=True) if r]
    assert {kind for _, kind in stored} >= {"cifar", "wgan ablation"}
    assert any("upsample_conv" not in recipe["implementations"] for recipe, _ in stored)
    kinds = {"wgan": WganRecipe, "cyclegan": CycleGanRecipe, "cifar": Recipe}
    for recipe, kind in stored:
        read = kinds[kind.partition(" ")[0]].from_resolved(recipe)
        assert read.implementations.upsample_conv == "eager"


def test_recipes_need_no_torch():
    code = "import sys, wallclock.models.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
