"""`wallclock tune`: what is searched, what is given up, what survives, and that no test image is looked at."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from tiny import tiny_recipe

from wallclock import reports
from wallclock.bench.tasks.cifar import tuning as cifar_tuning
from wallclock.bench.tasks.cifar.progress import SeedDiverged, SeedEvent
from wallclock.bench.tasks.cifar.run import GivenUp
from wallclock.bench.tasks.cifar.trainer import Evaluated, Finished
from wallclock.bench.tasks.cifar.tuning import (
    Objective,
    TuningRequest,
    Watch,
    advice,
    best_trial,
    needed_accuracy,
    open_study,
    trial_rows,
    work,
)
from wallclock.loaders.batches import Dataset, Split
from wallclock.models.recipes.search import dimension

optuna = pytest.importorskip("optuna", reason="optuna is not installed")
SMALL = (
    *("--set=batch_size=100", "--set=epochs=0.2", "--set=tta=null", "--set=resolutions=[]", "--set=precision=fp32"),
    '--set=model_arguments={"widths":[8,16,16]}',
    "--set=implementations.keep_heap=false", "--set=implementations.product_conv=false", "--device=cpu",
)  # fmt: skip


@pytest.fixture(autouse=True)
def quiet():
    with cifar_tuning.quiet():
        yield


def small_recipe(**changes):
    return tiny_recipe(**changes).without("implementations.keep_heap", "implementations.product_conv")


def small_request(**changes):
    fields = {"recipe": small_recipe(), "data": "synthetic", "target": 0.3, "device": "cpu"}
    return TuningRequest(**(fields | {"dimensions": (dimension("epochs=1:3"),)} | changes))


class FakeTrial:
    """What a watch needs of Optuna's."""

    def __init__(self, prune_at=99):
        self.reported, self.prune_at = {}, prune_at

    def report(self, value, step):
        self.reported[step] = value

    def should_prune(self):
        return max(self.reported) >= self.prune_at


def evaluated(epoch, accuracy, seed=0, elapsed=1.0):
    return SeedEvent(seed, Evaluated(epoch, 1, accuracy, 1.0, elapsed))


def watch(trial=None, *, seeds=1, needed=0.9, best_s=float("inf"), epochs=10, **more):
    return Watch(trial or FakeTrial(), seeds=seeds, epochs=epochs, needed=needed, best_s=best_s, **more)


def test_a_trial_reports_its_accuracy_at_each_tenth_of_its_schedule_however_long_it_is():
    for epochs in (4, 10):
        trial = FakeTrial()
        watching = watch(trial, epochs=epochs)
        for epoch in range(1, epochs + 1):
            watching(evaluated(epoch, epoch / epochs))
        assert trial.reported == pytest.approx({tenth: 1 - tenth / 10 for tenth in range(1, 10)})


def test_only_the_first_seed_is_held_against_the_others():
    trial = FakeTrial()
    watching = watch(trial, seeds=2)
    watching(evaluated(5, 0.5))
    watching(evaluated(5, 0.0, seed=1))
    assert trial.reported[5] == 0.5


def test_what_cannot_win_is_given_up():
    watching = watch(best_s=10.0)
    watching(evaluated(1, 0.5, elapsed=9.9))
    with pytest.raises(GivenUp, match=r"slower than 10 s"):
        watching(evaluated(2, 0.5, elapsed=10.1))
    with pytest.raises(GivenUp, match="25% of trials are as inaccurate after 30%"):
        watching = watch(FakeTrial(prune_at=3))
        watching(evaluated(2, 0.5))
        watching(evaluated(4, 0.5))
    with pytest.raises(GivenUp, match="diverged"):
        watch()(SeedDiverged(0, "nan"))
    hopeful = watch(seeds=3, needed=0.9)
    hopeful(SeedEvent(0, Finished(0.899, 1.0, 1.0)))  # 90.05% of each is left, within three deviations
    with pytest.raises(GivenUp, match=r"89\.45% so far, and 91\.10% is needed of each seed left"):
        hopeful(SeedEvent(1, Finished(0.89, 1.0, 1.0)))
    watch(seeds=1, needed=0.9)(SeedEvent(0, Finished(0.1, 1.0, 1.0)))  # the last one is a result
    watch(seeds=2, needed=0.9, finished=[0.1])(SeedEvent(1, Finished(0.1, 1.0, 1.0)))  # of a trial that went on too


def test_a_probability_asks_for_a_margin_by_the_spread_of_the_seeds(tmp_path):
    study = open_study(small_request(), tmp_path)
    assert needed_accuracy(study, small_request()) == 0.3
    margin = needed_accuracy(study, small_request(reach=0.975)) - 0.3
    assert margin == pytest.approx(1.96 * cifar_tuning.ACCURACY_SD, rel=1e-3)
    distributions = {"epochs": optuna.distributions.FloatDistribution(1, 3)}
    for seed in range(20):
        accuracies = [0.3 + 0.01 * sign for sign in (-1, 1) * 4]
        study.add_trial(
            optuna.create_trial(
                params={"epochs": 1 + seed / 20}, distributions=distributions, value=1.0,
                user_attrs={"accuracies": accuracies},
            )
        )  # fmt: skip
    margin = needed_accuracy(study, small_request(reach=0.975)) - 0.3
    assert margin == pytest.approx(1.96 * 0.01 * (8 / 7) ** 0.5, rel=0.03)


def test_the_fastest_that_reaches_the_target_is_best_and_the_first_is_the_recipe_as_it_is(
    tmp_path, monkeypatch, small_split
):
    from wallclock.bench.tasks.cifar import run as cifar

    monkeypatch.setattr(cifar, "synthetic_split", lambda: small_split)
    cifar.load_split.cache_clear()
    result = cifar_tuning._result

    def short_after_one_epoch(path):
        """A single epoch takes the least time, and misses."""
        seconds, accuracies = result(path)
        return seconds, [0.01] if reports.load_runs(path)["recipe"][0]["epochs"] == 1 else accuracies

    monkeypatch.setattr(cifar_tuning, "_result", short_after_one_epoch)
    request = small_request(target=0.08, dimensions=(dimension("epochs=1,2,4"),))
    study = open_study(request, tmp_path)
    for epochs in (1, 4):
        study.enqueue_trial({"epochs": epochs})
    seen = []
    work(study, Objective(request=request, folder=tmp_path, command="test"), 3, seen.append)
    assert [trial.number for trial in seen] == [0, 1, 2] and seen[0].params == {"epochs": 2}
    rows = trial_rows(study)
    reaching = [row for row in rows if row["reaches"]]
    assert {"epochs": 1} in [row["values"] for row in rows[len(reaching) :]]
    assert rows[: len(reaching)] == reaching and [r["seconds"] for r in reaching] == sorted(
        r["seconds"] for r in reaching
    )
    assert all(row["accuracy"] >= 0.08 for row in reaching)
    assert all(row["why"] or row["accuracy"] < 0.08 for row in rows[len(reaching) :])
    best = best_trial(study)
    assert best is not None and best.number == rows[0]["trial"]
    assert f"--set epochs={best.params['epochs']}" in advice(study, request)[1]
    cifar.load_split.cache_clear()
    frame = reports.load(tmp_path)
    assert set(frame["split"]) == {"tune"} and frame["run_id"].nunique() == 3


def test_a_value_that_the_recipe_refuses_is_a_trial_pruned_with_its_reason(tmp_path):
    request = small_request(dimensions=(dimension("batch_size=50:100"),))
    study = open_study(request, tmp_path)
    object.__setattr__(request.recipe, "batch_size", -1)  # only when it is too late to refuse it at once

    def cannot(trial):
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    objective = Objective(request=request, folder=tmp_path, command="test", then=cannot)
    (trial,) = run_one(study, objective)
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert trial.user_attrs["why"] == "cannot run: CUDA out of memory." and trial.constraints["accuracy"] > 0


def run_one(study, objective):
    seen = []
    work(study, objective, len(cifar_tuning.ended(study)) + 1, seen.append)
    return seen


def disk_set(images, seed):
    labels = torch.randint(0, 10, (len(images),), generator=torch.Generator().manual_seed(seed))
    return Dataset.create("made", images, labels, tuple("abcdefghij"))


def test_no_test_image_and_no_label_of_one_has_a_part_in_it(monkeypatch, tmp_path):
    """Two data sets that differ in their test images alone give the same study, number for number."""
    from wallclock.bench.tasks.cifar import run as cifar

    images = torch.randint(0, 256, (600, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    train, seen = disk_set(images[:400], 0), []
    for number, test in enumerate((disk_set(images[400:500], 1), disk_set(images[500:], 2))):
        monkeypatch.setattr(cifar, "synthetic_split", lambda test=test: Split(train, test))
        cifar.load_split.cache_clear()
        request = small_request(dimensions=(dimension("epochs=1,2"),), recipe=small_recipe(batch_size=40))
        folder = tmp_path / str(number)
        study = open_study(request, folder)
        study.enqueue_trial({"epochs": 1})
        work(study, Objective(request=request, folder=folder, command="test"), 2, lambda trial: None)
        frame = reports.load(folder)
        values = frame[~frame["unit"].isin(["s", "images/s"])].sort_values(["metric", "epoch", "value"])["value"]
        hashes = set(reports.load_runs(folder)["request"].map(lambda asked: asked["content_hash"]))
        seen.append((values.tolist(), hashes, study.user_attrs["request"]))
    cifar.load_split.cache_clear()
    assert len(seen[0][0]) > 5 and seen[0] == seen[1]
    split = Split(train, test)
    assert not set(map(image_bytes, split.tune().test.images_NHWC)) & set(map(image_bytes, test.images_NHWC))


def image_bytes(image):
    return image.numpy().tobytes()


def test_a_study_of_something_else_is_refused(tmp_path):
    open_study(small_request(), tmp_path)
    open_study(small_request(), tmp_path)
    with pytest.raises(ValueError, match="a study with another seeds, target; choose another --study"):
        open_study(small_request(target=0.4, seeds=2), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--search", "epoch=1:2"], "did you mean 'epochs'"),
        (["--search", "epochs=2:1"], "expected a range from low to high, got 2.0:1.0"),
        (["--search", "epochs=1:x"], "expected two numbers"),
        (["--search", "epochs=0:2"], "epochs"),
        (["--search", "precision=bf16"], "at least two values"),
        (["--search", "precision=bf16,fp8"], "expected one of"),
        (["--search", "epochs=1:2", "--search", "epochs=1:3"], "stands twice"),
        (["--search", "label_smoothing=0:0.2:log"], "begins above 0"),
        (["--trials", "0"], "--trials is 0"),
        (["--seeds", "0"], "seeds is 0"),
        (["--reach", "1.5"], "expected a probability"),
        (["--target", "94"], "did you mean 0.94"),
        (["--data", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_gets_one_line(wallclock, tmp_path, arguments, words):
    code, out, err = wallclock("tune", "cifar", "--out", tmp_path, *SMALL, *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1 and words in err
    assert not list(tmp_path.iterdir())


def test_without_optuna_it_says_what_to_install(wallclock, monkeypatch, tmp_path):
    monkeypatch.setattr(cifar_tuning, "package_version", lambda name: None)
    code, _, err = wallclock("tune", "cifar", "--out", tmp_path)
    assert code == 2 and "uv sync --extra tune" in err


@pytest.mark.slow
def test_the_command_leaves_a_study_with_its_plots_and_goes_on(wallclock, tmp_path):
    asked = ("tune", "cifar", "--study", tmp_path / "s", "--search", "epochs=0.1:0.3", "--target", "0.05", *SMALL)
    code, out, _ = wallclock(*asked, "--trials", "2")
    assert (
        code == 0
        and "python -m wallclock.bench.compare.race" in out
        and max(map(len, out.split("\n\n")[0].splitlines())) <= 80
    )
    page = (tmp_path / "s" / "study.html").read_text()
    assert page.count("<script") >= 2 and "Optimization History" in page
    code, out, _ = wallclock(*asked, "--trials", "3", "--json")
    document = json.loads(out)
    assert code == 0 and sorted(row["trial"] for row in document["trials"]) == [0, 1, 2]
    import pandas as pd

    table = pd.read_parquet(tmp_path / "s" / "trials.parquet")
    assert len(table) == 3 and table["epochs"].between(0.1, 0.3).all()
    code, _, _ = wallclock("report", tmp_path / "s")
    assert code == 0


@pytest.mark.slow
def test_a_killed_trial_is_done_again_and_two_processes_share_a_study(tmp_path):
    """Killed in the middle of a trial, which is queued again once its heartbeat has stopped, and goes on in its run."""
    folder, log = tmp_path / "s", tmp_path / "log"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "wallclock", "tune", "cifar", "--study", str(folder), "--search", "epochs=0.2:0.5"]
    command += ["--target", "0.05", "--seeds", "3", *SMALL]
    with log.open("w") as file:
        first = subprocess.Popen([*command, "--trials", "3"], stdout=file, stderr=file, env=environment)
        while first.poll() is None:
            runs = list(folder.glob("*/records.jsonl"))
            if runs and runs[0].read_text().count("final_accuracy") >= 1:
                break
            time.sleep(0.1)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    time.sleep(3 * cifar_tuning.HEARTBEAT_S + 5)  # until its heartbeat is found to have stopped
    begun = runs[0].parent.name
    pair = [subprocess.Popen([*command, "--trials", "5"], env=environment, stdout=subprocess.DEVNULL) for _ in "ab"]
    assert [process.wait() for process in pair] == [0, 0]
    study = cifar_tuning.joined(cifar_tuning.storage_in(folder))
    states = [trial.state.name for trial in study.trials]
    assert states.count("FAIL") == 1 and states.count("COMPLETE") + states.count("PRUNED") in (5, 6)
    again = [trial for trial in study.trials if trial.user_attrs.get("run") == begun and trial.state.name != "FAIL"]
    assert len(again) == 1 and "failed_trial" in again[0].system_attrs
    seeds = sorted(reports.load(folder / begun).query("metric == 'final_accuracy'")["seed"])
    given_up = again[0].state.name == "PRUNED"  # where another trial was faster, which is chance
    assert seeds == [0, 1, 2] or (given_up and seeds == list(range(len(seeds))))


@pytest.mark.slow
def test_trials_on_ray_leave_their_runs_here(tmp_path):
    ray = pytest.importorskip("ray", reason="ray is not installed")
    pytest.importorskip("grpc", reason="grpcio is not installed")
    from ray.cluster_utils import Cluster

    from wallclock.bench.tasks.cifar.tuning_on_ray import work_on_ray

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    request, seen = small_request(recipe=small_recipe(epochs=6), dimensions=(dimension("epochs=4:8"),)), []

    def observe(trial):
        seen.append(trial)
        if len(seen) == 1:
            for _ in range(600):
                if not ray.available_resources().get("CPU", 0):
                    break
                time.sleep(0.1)
            cluster.remove_node(second, allow_graceful=False)

    try:
        study = open_study(request, tmp_path)
        work_on_ray(study, request, tmp_path, "test", 4, cpus=1, observe=observe)
    finally:
        ray.shutdown()
        cluster.shutdown()
    states = [trial.state.name for trial in study.trials]
    assert states.count("COMPLETE") + states.count("PRUNED") == len(seen) == 4
    assert states.count("FAIL") <= 1 and "RUNNING" not in states
    runs = {trial.user_attrs["run"] for trial in seen}
    assert runs == set(reports.load_runs(tmp_path)["run_id"])
