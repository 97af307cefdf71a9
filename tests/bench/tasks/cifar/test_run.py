"""The cifar task: what it records, that it repeats itself, and what becomes of runs that diverge, stop or break off."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import tiny_recipe

from wallclock import reports
from wallclock.bench.measure.timing import Deadline, RunClocks
from wallclock.bench.runs.training import new_run, resumed_run
from wallclock.bench.tasks.cifar.progress import SeedDiverged, SeedEvent
from wallclock.bench.tasks.cifar.requests import CifarRequest
from wallclock.bench.tasks.cifar.run import CifarRun
from wallclock.bench.tasks.cifar.task import TASK
from wallclock.bench.tasks.cifar.trainer import Evaluated, Trainer
from wallclock.loaders.data.synthetic import synthetic_split
from wallclock.models.recipes import get_recipe
from wallclock.models.recipes.recipe import TRITON_OPERATIONS, Implementations, Resolution
from wallclock.reports.store.layout import RECORDS, StoreError
from wallclock.reports.store.schema import Run
from wallclock.reports.store.write import RunWriter, new_run_id, utc_now

CPU = torch.device("cpu")


def request(recipe=None, **changes):
    fields = {"data": "synthetic", "target": 0.2, "seeds": 1, "device": "cpu", "phases": 0}
    return CifarRequest(recipe=recipe or tiny_recipe(), **(fields | changes))


def run_of(asked, split, root, **options):
    run = Run(
        run_id=new_run_id("tiny"),
        started_utc=utc_now(),
        command="test",
        request={**asked.stored(), "content_hash": split.content_hash},
        recipe=asked.recipe.resolved(),
        recipe_hash=asked.recipe.hash(),
    )
    return CifarRun(TASK, asked, split, RunWriter.create(root, run), **options)


def execute(asked, split, root, observe=lambda seen: None, **options):
    run = run_of(asked, split, root, **options)
    return run.execute(observe), run.writer.path


def resume(path):
    return resumed_run(TASK, CifarRequest, path)


@pytest.fixture(scope="module")
def two_seeds(small_split, tmp_path_factory):
    """The records of a run of two seeds, the first of which is the first of its process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunClocks, "_first", True)
        status, path = execute(request(seeds=2, phases=3), small_split, tmp_path_factory.mktemp("two"))
    assert status == "done"
    return path


def test_a_run_records_every_look_every_seed_and_every_clock(two_seeds):
    frame = reports.load(two_seeds)
    looks = frame[frame["metric"] == "accuracy"]
    assert looks.groupby("seed")["epoch"].apply(list).to_list() == [[1.0, 2.0], [1.0, 2.0]]
    assert frame[frame["metric"] == "train_loss"]["value"].between(0.5, 4).all()
    finals = frame[frame["metric"] == "final_accuracy"].set_index("seed")
    assert list(finals.index) == [0, 1]
    assert (finals["reached"] == (finals["value"] >= 0.2)).all()
    times = frame.pivot_table(index="seed", columns="metric", values="value")
    assert (times["train_eval_s"] <= times["resident_s"]).all()
    assert times.loc[0, "process_s"] > times.loc[0, "resident_s"]
    assert math.isnan(times.loc[1, "process_s"])  # the second seed did not start cold
    phases = frame[frame["metric"] == "phase_time"]
    assert phases.groupby("phase_name").size().to_dict() == {
        "backward": 3, "data": 3, "evaluation": 3, "forward": 3, "optimiser": 3
    }  # fmt: skip
    assert len(frame[frame["metric"] == "step_time"]) == 3
    assert (frame[frame["metric"] == "operator_time"]["value"] > 0).sum() > 5
    assert frame["dataset"].unique().tolist() == ["synthetic"]


def test_a_missed_target_is_a_censored_result(small_split, tmp_path):
    status, path = execute(request(target=0.999), small_split, tmp_path)
    frame = reports.load(path)
    scored = frame[frame["target"].notna()]
    assert status == "done"
    assert set(scored["status"]) == {"missed"} and scored["censored"].all()
    assert reports.time_to_target(frame).loc[0, "hits"] == 0


def test_the_same_seed_gives_the_same_digits_and_another_does_not(two_seeds, small_split, tmp_path):
    values = []
    for path in (two_seeds, execute(request(seeds=1), small_split, tmp_path)[1]):
        frame = reports.load(path)
        kept = frame[frame["metric"].isin(["accuracy", "train_loss", "final_accuracy"])]
        values.append(kept.groupby("seed")["value"].apply(list).to_dict())
    assert "process_s" not in set(frame["metric"])  # another run of this process does not start cold
    first, again = values
    assert again[0] == first[0] and first[0] != first[1]


SMALL = {
    "sprint": {"widths": (8, 8, 8)},
    "wrn22": {"blocks": 1, "widen": 1},
    "darknet": {"num_blocks": (1,), "base_channels": 4},
}


@pytest.mark.parametrize(
    "name", ["sprint", *(pytest.param(name, marks=pytest.mark.slow) for name in ("darknet", "wrn22"))]
)
def test_kernels_follow_the_eager_loss_curve(name, tmp_path, device, large_tiles):
    batch_size = 8  # the interpreter is slow
    split = synthetic_split(train=3 * batch_size, test=batch_size)
    eager = replace(
        get_recipe(name, "cpu"),
        model_arguments=SMALL[name],
        batch_size=batch_size,
        epochs=1,
        precision="fp32",
        resolutions=(),
    )
    if name != "sprint":
        eager = replace(eager, optimizer=replace(eager.optimizer, lr=0.1))  # theirs are for batches of 512
    every = dict.fromkeys(TRITON_OPERATIONS, "triton")
    switched = replace(eager, implementations=Implementations(**every))
    curves = {}
    for recipe in (eager, switched):
        status, path = execute(request(recipe, device=device.type), split, tmp_path)
        frame = reports.load(path)
        assert status == "done"
        assert frame["variant"].unique().tolist() == [recipe.implementations.variant]
        curves[recipe.implementations.variant] = frame.loc[frame["metric"] == "train_loss", "value"].to_list()
    plain, ours = (curves[recipe.implementations.variant] for recipe in (eager, switched))
    assert len(plain) == 3 and ours == pytest.approx(plain, rel=0.01)


def test_kernels_that_cannot_run_are_refused_with_the_next_step(small_split, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.delenv("TRITON_INTERPRET")
    recipe = tiny_recipe(implementations=Implementations(batch_norm_act="triton"))
    with pytest.raises(ValueError, match="needs a GPU.*; or use --set implementations.batch_norm_act=eager"):
        Trainer(recipe, small_split, device=CPU, seed=0, clocks=RunClocks(CPU))


def losses_by(pipeline, split, root):
    recipe = tiny_recipe(
        pipeline=pipeline, epochs=1, precision="fp32", resolutions=(Resolution(size=16, until_epoch=0.5),)
    )
    frame = reports.load(execute(request(recipe), split, root)[1])
    assert set(frame["pipeline"]) == {pipeline} and set(frame["padding"]) == {"reflect"}
    return frame[frame["metric"] == "train_loss"]["value"].to_numpy()


@pytest.fixture(scope="module")
def losses_of_device(small_split, tmp_path_factory):
    return losses_by("device", small_split, tmp_path_factory.mktemp("device"))


@pytest.mark.parametrize("pipeline", ["dataloader", "dali", "webdataset"])
def test_every_pipeline_trains(pipeline, losses_of_device, small_split, tmp_path, monkeypatch):
    """Those that shuffle as the device does give its very losses; shards come in another order, and cost no more."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    losses = losses_by(pipeline, small_split, tmp_path)
    assert losses == pytest.approx(losses_of_device, rel=0.1 if pipeline == "webdataset" else 0.02)


def test_a_pipeline_that_is_not_installed_is_refused_before_anything_is_recorded(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ValueError, match="DALI is not installed .*uv sync --extra dali"):
        new_run(TASK, request(tiny_recipe(pipeline="dali")), tmp_path / "runs", "test")
    assert not (tmp_path / "runs").exists()


def test_divergence_is_recorded_and_the_other_seeds_still_run(small_split, tmp_path):
    recipe = tiny_recipe(optimizer=replace(tiny_recipe().optimizer, head_lr=1e38))
    seen = []
    status, path = execute(request(recipe, seeds=2), small_split, tmp_path, seen.append)
    assert status == "diverged"
    frame = reports.load(path)
    finals = frame[frame["metric"] == "final_accuracy"]
    assert finals["status"].tolist() == ["diverged", "diverged"]
    assert finals["value"].isna().all() and finals["error"].str.contains("loss became").all()
    assert [s.seed for s in seen if isinstance(s, SeedDiverged)] == [0, 1]
    assert reports.time_to_target(frame).loc[0, "diverged"] == 2


class BudgetOfOneSeed(Deadline):
    """A budget that is spent when the first seed has ended."""

    def __init__(self):
        super().__init__(None)
        self.ended = False

    def __call__(self, seen):
        self.ended = isinstance(seen, SeedDiverged)

    def remaining_s(self):
        return -1.0 if self.ended else math.inf


def test_a_divergence_outlives_stopping_and_resuming(tmp_path):
    optimizer = replace(tiny_recipe().optimizer, head_lr=1e38)
    recipe = tiny_recipe(model_arguments={"widths": (8, 8, 8)}, batch_size=100, epochs=1, optimizer=optimizer)
    deadline = BudgetOfOneSeed()
    run = new_run(TASK, request(recipe, seeds=2), tmp_path, "test", deadline=deadline)
    assert run.execute(deadline) == "diverged"
    path = run.writer.path
    assert reports.load_runs(path).loc[0, "run_status"] == "stopped"
    frame = reports.load(path)
    assert frame[frame["status"] == "diverged"]["metric"].tolist() == ["train_eval_s", "resident_s", "final_accuracy"]
    again = resume(path)
    assert again.diverged and again.done == {0}
    again.writer.finish("stopped")


def test_a_budget_that_holds_no_seed_stops_before_it(small_split, tmp_path):
    status, path = execute(request(seeds=3), small_split, tmp_path, deadline=Deadline(60), estimate_s=1000)
    assert status == "stopped"
    assert "does not hold another seed" in reports.load_runs(path).loc[0, "notes"][0]


class Spent(Deadline):
    """A budget that is spent at the second look of the first seed."""

    def __init__(self):
        super().__init__(None)
        self.looks = 0

    def __call__(self, seen):
        self.looks += isinstance(seen.event, Evaluated)

    def expired(self):
        return self.looks >= 2


@pytest.mark.slow
def test_a_seed_that_overruns_the_budget_is_given_up_and_can_be_resumed(tmp_path):
    asked = request(tiny_recipe(model_arguments={"widths": (8, 8, 8)}, batch_size=100, epochs=3), seeds=2)
    deadline = Spent()
    made = new_run(TASK, asked, tmp_path, "test", deadline=deadline)
    path = made.writer.path
    assert made.execute(deadline) == "stopped"
    run = reports.load_runs(path).loc[0]
    assert run["run_status"] == "stopped" and "within seed 0" in run["notes"][0]
    metrics = reports.load(path)["metric"]
    assert (metrics == "accuracy").sum() == 2 and not (metrics == "final_accuracy").any()
    assert resume(path).execute(lambda seen: None) == "done"


class Interrupt:
    """Raises Ctrl-C's exception in the middle of one seed."""

    def __init__(self, seed):
        self.seed = seed

    def __call__(self, seen):
        if isinstance(seen, SeedEvent) and seen.seed == self.seed and isinstance(seen.event, Evaluated):
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_result(tmp_path):
    asked = request(tiny_recipe(model_arguments={"widths": (8, 8, 8)}, batch_size=100, epochs=1), seeds=2)
    made = new_run(TASK, asked, tmp_path / "whole", "test")
    assert made.execute(lambda seen: None) == "done"
    whole = reports.load(made.writer.path)
    broken = new_run(TASK, asked, tmp_path / "broken", "test")
    with pytest.raises(KeyboardInterrupt):
        broken.execute(Interrupt(seed=1))
    assert reports.load_runs(broken.writer.path).loc[0, "run_status"] == "interrupted"
    path = broken.writer.path
    assert resume(path).execute(lambda seen: None) == "done"
    resumed = reports.load(path)

    def finals(frame):
        return frame[frame["metric"] == "final_accuracy"].set_index("seed")["value"].to_dict()

    assert finals(resumed) == finals(whole)
    with pytest.raises(StoreError, match="finished"):
        resume(path)


def test_resuming_on_other_data_is_refused_and_leaves_the_run_resumable(tmp_path, small_split):
    run = run_of(request(seeds=2), small_split, tmp_path)  # the record's hash is not that of "synthetic"
    with pytest.raises(KeyboardInterrupt):
        run.execute(Interrupt(seed=0))
    for _ in range(2):
        with pytest.raises(StoreError, match="other data"):
            resume(run.writer.path)


def test_a_run_of_another_device_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    run = new_run(TASK, request(tiny_recipe(batch_size=100)), tmp_path, "test")
    run.writer.finish("stopped")
    records = run.writer.path / RECORDS
    records.write_text(records.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    with pytest.raises(ValueError, match="no CUDA GPU answers here"):
        resume(run.writer.path)


def test_phases_stop_when_the_budget_holds_no_other_step(small_split, tmp_path):
    deadline = BudgetOfOneSeed()
    deadline.ended = True
    frame = reports.load(execute(request(seeds=0, phases=5), small_split, tmp_path, deadline=deadline)[1])
    counts = frame[frame["metric"] == "phase_time"].groupby("phase_name").size()
    assert counts.to_dict() == {"backward": 1, "data": 1, "evaluation": 3, "forward": 1, "optimiser": 1}
    assert "operator_time" not in set(frame["metric"])


@pytest.mark.parametrize("target", [0, 1, 1.5, 94, -1, float("nan")])
def test_targets_outside_0_to_1_are_refused(target):
    with pytest.raises(ValueError, match="expected an accuracy between 0 and 1"):
        request(target=target)
