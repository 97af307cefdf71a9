"""The ablation of a WGAN's levers: which variants there are, that wrong ones are not timed, and that it goes on."""

from dataclasses import replace

import pytest
import torch
from tiny import in_this_process

from wallclock import reports
from wallclock.bench.ablation import run as ablation
from wallclock.bench.runs.training import new_run
from wallclock.bench.tasks.wgan.requests import WganAblationRequest
from wallclock.bench.tasks.wgan.task import TASK
from wallclock.models.recipes.wgan import Stage
from wallclock.reports.views.ablation import ALL, BASELINE, ablation_rows, ablation_summary


def request(recipe=None, **changes):
    small = {"image_size": 16, "generator_channels": 4, "critic_channels": 4, "batch_size": 16}
    whole = TASK.get_recipe("lesson", "cpu")
    plain = whole.without(*whole.levers())
    chosen = replace(plain, implementations=replace(plain.implementations, products=True))
    fields = {"recipe": recipe or replace(chosen, **small), "data": "synthetic", "device": "cpu", "rounds": 2}
    return WganAblationRequest(**fields | changes)


def test_variants_are_the_plain_loop_all_levers_and_all_but_each():
    recipe = TASK.get_recipe("lesson", "cpu")
    variants = WganAblationRequest(recipe=recipe, data="synthetic", device="cpu").variants()
    names = ["channels_last", "keep_heap", "early_backward", "products"]
    assert list(variants) == [BASELINE, ALL, f"{ALL}, bf16", *(f"without {name}" for name in names)]
    assert variants[BASELINE].levers() == () and variants[ALL].levers() == recipe.levers()
    assert variants[f"{ALL}, bf16"].levers() == (*recipe.levers(), "precision")
    for name in names:
        left = {lever.rpartition(".")[2] for lever in variants[f"without {name}"].levers()}
        assert left == set(names) - {name}
    half = WganAblationRequest(recipe=replace(recipe, precision="bf16"), data="synthetic", device="cpu").variants()
    assert "without precision" in half and f"{ALL}, bf16" not in half
    for variant in variants.values():  # nothing but five critic steps and one of the generator, without an end
        assert {variant.critic_steps.before(n, variant.stages[0]) for n in (0, 3, 500)} == {5}
        assert variant.stages == (Stage(epochs=1e6, lr=1e-4, long_start=False),)


@pytest.fixture(autouse=True)
def one_thread():
    """So small are these maps that two threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_turns_in_processes_of_their_own(tmp_path):
    run = new_run(TASK, request(), tmp_path, "test")
    assert run.execute(lambda text: None) == "done"
    summary = ablation_summary(reports.load(run.writer.path))
    assert summary["rounds"].tolist() == [2, 2, 2] and (summary["it_per_s"] > 0).all()


def test_turns_tell_of_critic_and_generator_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "interleaved", in_this_process)
    run, said = new_run(TASK, request(), tmp_path, "test"), []
    assert run.execute(said.append) == "done"
    assert said[3].startswith("round 1 of 2, baseline: ") and said[3].endswith(" it/s")
    frame = reports.load(run.writer.path)
    errors = frame[frame["metric"] == "first_loss_error"].set_index("variant")["value"]
    assert errors[BASELINE] == 0 and errors[ALL] < 1e-3 and errors[f"{ALL}, bf16"] < 0.5
    summary = ablation_summary(frame).set_index("variant")
    assert summary.loc[BASELINE, "over_baseline"] == 1
    steps = frame[(frame["phase"] == "steady")].pivot_table(
        index=["round", "variant"], columns="metric", values="value"
    )
    whole = 5 * steps["critic_step_s"] + steps["generator_step_s"]
    assert steps["critic_iterations_per_s"].tolist() == pytest.approx((5 / whole).tolist())
    assert steps["images_per_s"].tolist() == pytest.approx((16 * 5 / whole).tolist())
    assert len(ablation_rows(ablation_summary(frame))[1]) == 3


def test_a_variant_that_computes_otherwise_is_not_timed_further(tmp_path):
    run = new_run(TASK, request(), tmp_path, "test")
    right = dict.fromkeys(run.ablation.variants, -0.01) | {f"{ALL}, bf16": -0.0103}
    with run.writer:
        assert run._compare(right) == ""
        wrong = run._compare(right | {ALL: -0.0101})
        assert wrong == "all levers does not compute what the plain loop does: its first loss is off by 1.0e-02"
        assert "off by nan" in run._compare(right | {ALL: float("nan")})
    frame = reports.load(run.writer.path)
    assert frame[frame["status"] == "failed"]["variant"].tolist() == [ALL, ALL]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rounds": 0}, "expected at least 1"),
        ({"turn_length": 0}, "expected at least 1"),
        ({"batch": 2000}, "4096 images do not fill the 5 batches of 2000 of one cycle"),
        ({"data": "nowhere"}, "no such path"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(tmp_path, changes, says):
    batch = changes.pop("batch", None)
    with pytest.raises(ValueError, match=says):
        asked = request(**changes)
        new_run(
            TASK, replace(asked, recipe=replace(asked.recipe, batch_size=batch)) if batch else asked, tmp_path, "test"
        )
    assert list(tmp_path.iterdir()) == []
