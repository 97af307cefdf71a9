"""What published records are said to show, worked out from them."""

from pathlib import Path

import pytest

from wallclock import reports

PUBLISHED = Path(__file__).parents[2] / "reports" / "published"


def test_kernels_in_the_interpreter_follow_the_eager_loss_curve():
    folder = PUBLISHED / "2026-11-25-interpreter"
    runs = reports.load_runs(folder).set_index("run_id")
    losses, recipes = {}, {}
    for (run, variant), samples in reports.load(folder).groupby(["run_id", "variant"], observed=True):
        curve = samples[samples["metric"] == "train_loss"]
        losses[variant], recipes[variant] = curve.set_index("epoch")["value"], runs.loc[run, "recipe"]
        assert runs.loc[run, "run_status"] == "done" and not runs.loc[run, "git_dirty"]
        assert (runs.loc[run, "environment"].get("TRITON_INTERPRET") == "1") == (variant == "triton")
    assert set(losses) == {"eager", "triton"} and runs["git_sha"].nunique() == 1
    assert {run["content_hash"] for run in runs["request"]} == {runs["request"].iloc[0]["content_hash"]}
    choices = {variant: recipe.pop("implementations") for variant, recipe in recipes.items()}
    assert recipes["eager"] == recipes["triton"]
    switched = [name for name, choice in choices["eager"].items() if choice == "eager"]
    assert len(switched) == 6 and all(choices["triton"][name] == "triton" for name in switched)
    assert list(losses["triton"].index) == list(losses["eager"].index) == [0.25, 0.5, 0.75, 1.0]
    assert losses["triton"].to_list() == pytest.approx(losses["eager"].to_list(), rel=1e-3)
    assert losses["eager"].nunique() == 4  # of batches that differ
