"""Changes to a recipe by name, and a recipe's way into a record and back."""

import json
import math
from dataclasses import replace

import pytest

from wallclock.models.recipes import RECIPES
from wallclock.models.recipes.override import override
from wallclock.models.recipes.recipe import SGD, Implementations, Recipe, Resolution, TestTimeAugmentation
from wallclock.models.recipes.schedules import LinearDecay, OneCycle


@pytest.fixture
def sprint() -> Recipe:
    return RECIPES["sprint"]("cpu")


@pytest.fixture
def darknet() -> Recipe:
    return RECIPES["darknet"]("cpu")


@pytest.mark.parametrize(
    ("assignment", "change"),
    [
        ("batch_size=250", {"batch_size": 250}),
        ("target=0.9", {"target": 0.9}),
        ("epochs=2.5", {"epochs": 2.5}),
        ("label_smoothing=0", {"label_smoothing": 0.0}),
        ("precision=fp32", {"precision": "fp32"}),
        ('precision="fp16"', {"precision": "fp16"}),
        (" flip = none ", {"flip": "none"}),
        ('model_arguments={"widths": [8, 8, 8]}', {"model_arguments": {"widths": [8, 8, 8]}}),
        ("resolutions=[]", {"resolutions": ()}),
        ("tta=null", {"tta": None}),
        ("tta.threshold=1", {"tta": TestTimeAugmentation(threshold=1.0)}),
        (
            "implementations.compile=true",
            {"implementations": Implementations(compile=True, keep_heap=True, product_conv=True)},
        ),
        ("summary=a = b", {"summary": "a = b"}),
    ],
)
def test_one_field_changes_and_no_other(sprint: Recipe, assignment: str, change: dict[str, object]) -> None:
    before, changed = sprint.hash(), override(sprint, assignment)
    assert changed == replace(sprint, **change)
    assert changed != sprint and sprint.hash() == before
    assert Recipe.from_resolved(json.loads(json.dumps(changed.resolved()))).hash() == changed.hash() != before


def test_a_part_of_a_part_changes(sprint: Recipe, darknet: Recipe) -> None:
    changed = override(sprint, "optimizer.whiten_bias_schedule.until=0.5")
    assert changed.optimizer == replace(sprint.optimizer, whiten_bias_schedule=LinearDecay(until=0.5))
    changed = override(override(darknet, "optimizer.schedule.start_ratio=10"), "optimizer.momentum=0.8")
    assert changed.optimizer == SGD(lr=1.3, weight_decay=1e-4, momentum=0.8, schedule=OneCycle(start_ratio=10.0))


@pytest.mark.parametrize(
    ("assignment", "field", "kind"),
    [
        ("optimizer.lr=2", "lr", float),
        ("optimizer.lr=2.0", "lr", float),
        ("optimizer.lr=1e-2", "lr", float),
    ],
)
def test_a_whole_number_for_a_fraction_becomes_one(darknet: Recipe, assignment: str, field: str, kind: type) -> None:
    assert type(getattr(override(darknet, assignment).optimizer, field)) is kind


@pytest.mark.parametrize("text", ["9", "9.0"])
def test_the_value_that_was_there_is_the_same_recipe(sprint: Recipe, text: str) -> None:
    assert override(sprint, f"epochs={text}").hash() == sprint.hash()


@pytest.mark.parametrize(
    "assignment",
    [
        *("batch_size=250.0", "batch_size=many", "batch_size=true", "batch_size=null", 'batch_size="250"'),
        *("epochs=true", "epochs=null", "epochs=NaN", "epochs=Infinity", "epochs=1e999", "epochs=two"),
        *("model=5", "model=null", "name=true", "model_arguments=[]", "model_arguments=width"),
        *("implementations.compile=1", "implementations.compile=yes", "implementations.compile=null"),
        *("resolutions=[24]", "resolutions=24", "resolutions=null", "tta.threshold=high", "pad=2.5"),
        *("optimizer.momentum=-Infinity", "optimizer.momentum=null"),
    ],
)
def test_a_value_of_another_type_is_refused_with_an_example(sprint: Recipe, assignment: str) -> None:
    with pytest.raises(ValueError, match="got .*, expected something like") as refused:
        override(sprint, assignment)
    assert str(refused.value).startswith(f"--set {assignment}: ")
    assert "\n" not in str(refused.value)


def test_a_part_that_is_off_takes_nothing_but_null(darknet: Recipe) -> None:
    assert darknet.tta is None
    assert override(darknet, "tta=null") == darknet
    with pytest.raises(ValueError, match=r"got 0\.9, expected something like None"):
        override(darknet, "tta=0.9")
    with pytest.raises(ValueError, match="'tta' has no parts"):
        override(darknet, "tta.threshold=0.9")


@pytest.mark.parametrize(
    ("assignment", "choices"),
    [
        ("precision=bf17", "bf16, fp16, fp32"),
        ("precision=16", "bf16, fp16, fp32"),
        ("precision=null", "bf16, fp16, fp32"),
        ("flip=always", "alternating, random, none"),
    ],
)
def test_a_value_that_is_no_choice_is_refused_with_the_choices(sprint: Recipe, assignment: str, choices: str) -> None:
    with pytest.raises(ValueError, match=f"expected one of {choices}$"):
        override(sprint, assignment)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epoch=2", "no field 'epoch'; did you mean 'epochs'[?] fields: name, summary, target"),
        ("batchsize=2", "did you mean 'batch_size'[?]"),
        (
            "optimizer.momentun=0.5",
            "no field 'momentun'; did you mean 'momentum'[?] fields: filter_lr, filter_momentum",
        ),
        ("optimizer.whiten_bias_schedule.untill=1", "did you mean 'until'[?] fields: until$"),
        ("zzz=2", "no field 'zzz'; fields: name"),
        ("=2", "no field ''"),
        ("optimizer.=2", "no field ''"),
        ("epochs.x=2", "'epochs' has no parts; write epochs=value"),
        ("model_arguments.width=2", "'model_arguments' has no parts"),
        ("optimizer=SGD", "set one of its fields: filter_lr, filter_momentum"),
        ("optimizer=null", "set one of its fields"),
        ("tta=0.5", "set one of its fields: threshold"),
        ("epochs", "expected field=value, such as epochs=2"),
        ("", "expected field=value"),
    ],
)
def test_what_cannot_be_set_is_refused_with_what_can(sprint: Recipe, assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        override(sprint, assignment)
    assert str(refused.value).startswith(f"--set {assignment}: ")


@pytest.mark.parametrize("assignment", ["batch_size=0", "epochs=-1", "epochs=0"])
def test_the_recipes_own_checks_hold(sprint: Recipe, assignment: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        override(sprint, assignment)


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_record(name: str, device_type: str) -> None:
    recipe = RECIPES[name](device_type)
    stored = json.loads(json.dumps(recipe.resolved()))
    rebuilt = Recipe.from_resolved(stored)
    assert rebuilt == recipe
    assert rebuilt.hash() == recipe.hash()
    assert stored == recipe.resolved()  # not used up


def test_every_kind_of_part_survives(sprint: Recipe) -> None:
    recipe = replace(
        sprint,
        model_arguments={"widths": [8, 16], "deep": {"type": "SGD"}},
        optimizer=SGD(lr=0.1, weight_decay=0.0, schedule=LinearDecay(until=0.3)),
        resolutions=(Resolution(size=16, until_epoch=1), Resolution(size=24, until_epoch=2.5)),
        tta=None,
    )
    rebuilt = Recipe.from_resolved(json.loads(json.dumps(recipe.resolved())))
    assert rebuilt == recipe and rebuilt.hash() == recipe.hash()
    assert isinstance(rebuilt.resolutions, tuple)
    assert math.isclose(rebuilt.resolutions[1].until_epoch, 2.5)


@pytest.mark.parametrize("damage", ["field", "missing", "part", "part field", "part without type", "wrong kind"])
def test_a_record_of_another_version_is_refused(sprint: Recipe, damage: str) -> None:
    stored = json.loads(json.dumps(sprint.resolved()))
    match damage:
        case "field":
            stored["warp"] = 9
        case "missing":
            del stored["batch_size"]
        case "part":
            stored["optimizer"]["type"] = "Adam"
        case "part field":
            stored["optimizer"]["beta"] = 0.9
        case "part without type":
            del stored["optimizer"]["type"]
        case "wrong kind":
            stored["batch_size"] = "many"
    with pytest.raises(ValueError, match=r"recipe is of another version .*; start a new run"):
        Recipe.from_resolved(stored)
