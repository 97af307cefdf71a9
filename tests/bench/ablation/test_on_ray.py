"""Rounds on a Ray cluster of two nodes, both of them this machine."""

import time
from dataclasses import replace

import pytest

from wallclock import reports
from wallclock.bench.ablation.on_ray import ClusterRun
from wallclock.bench.ablation.run import Ablation
from wallclock.bench.runs import ray_calls as ray_tasks
from wallclock.bench.runs.training import plan_run
from wallclock.bench.tasks.cifar.requests import CifarAblationRequest
from wallclock.bench.tasks.cifar.task import TASK
from wallclock.models.recipes import get_recipe
from wallclock.reports.views.ablation import ablation_summary

ROUNDS = 3


@pytest.fixture
def nodes():
    """The cluster, and its second node, which has no part of the driver."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made, second
    ray.shutdown()
    made.shutdown()


def planned_run():
    recipe = replace(
        get_recipe("sprint", "cpu"),
        batch_size=8,
        resolutions=(),
        model_arguments={"widths": [4, 8, 8]},
        precision="fp32",
    )
    recipe = recipe.without(*recipe.levers()[1:])  # two variants: a cell is a process for each turn of each
    request = CifarAblationRequest(recipe=recipe, device="cpu", rounds=ROUNDS, turn_length=1)
    data, run = plan_run(TASK, request, "test")
    return Ablation(TASK, request, data), run


def held_on(node_id, held):
    """Returns `take_round`, that comes to no end in the second round of a node, and lets the others wait for that."""

    def measured(contenders, device, number, seed):
        import ray

        from wallclock.bench.ablation.on_ray import take_round

        cell = take_round(contenders, device, number, seed)
        here = ray.get_runtime_context().get_node_id() == node_id
        first = held.with_suffix(".first")
        if here and not first.exists():
            first.touch()
            return cell
        if here:
            held.touch()
        patience = 6000
        while (here or not held.exists()) and patience:
            time.sleep(0.1)
            patience -= 1
        return cell

    return measured


@pytest.mark.slow
def test_a_node_that_is_killed_loses_no_round_and_none_counts_twice(nodes, tmp_path, monkeypatch):
    made, second = nodes
    held = tmp_path / "held"
    monkeypatch.setattr("wallclock.bench.ablation.on_ray.take_round", held_on(second.node_id, held))
    ablation, run = planned_run()
    told, out = [], tmp_path / "runs"

    def observe(text):
        told.append(text)
        if held.exists() and second in made.worker_nodes:
            made.remove_node(second, allow_graceful=False)

    assert ClusterRun(ablation, run, out, cpus=1).execute(observe) == "done"
    frame = reports.load(out)
    steps = frame[frame["metric"] == "step_s"]
    counts = steps.groupby(["variant", "round"], observed=True).size()
    assert (counts == 1).all() and len(counts) == ROUNDS * len(ablation.variants)
    assert sum("done again elsewhere" in text for text in told) == 1
    again = steps[steps["attempt"].notna()]
    assert set(again["attempt"]) == {2} and again["round"].nunique() == 1
    runs = reports.load_runs(out)
    assert len(runs) == 2 and all(status == "done" for status in runs["run_status"])
    for _, part in steps.groupby("run_id", observed=True):  # a round is whole on its node
        assert (part.groupby("round")["variant"].nunique() == len(ablation.variants)).all()
    assert (ablation_summary(frame)["over_baseline"] > 0).all()


@pytest.mark.slow
def test_a_cell_that_no_node_holds_is_refused(nodes, tmp_path):
    with pytest.raises(ValueError, match="no node of the cluster has 64 CPU"):
        ClusterRun(*planned_run(), tmp_path, cpus=64).execute(print)
    assert not list(tmp_path.iterdir())


def test_without_ray_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_tasks, "package_version", lambda name: None)
    with pytest.raises(ValueError, match="uv sync --extra ray"):
        ClusterRun(*planned_run(), tmp_path, cpus=1).execute(print)
