"""The cifar task: what it records, that it repeats itself, and what becomes of runs that diverge, stop or break off."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

import reports
from bench.numerics import numerics
from bench.ranks import Ranks
from bench.tasks.cifar import CifarRequest, CifarRun, SeedDiverged, SeedEvent, new_run, resumed_run
from bench.tasks.training import Evaluated, Finished, StepDone, Trainer, check_runnable
from bench.timing import Deadline, PhaseTimer, RunClocks
from loaders.batches import DataError
from loaders.synthetic import synthetic_split
from models.recipes import get_recipe
from models.recipes.recipe import TRITON_OPERATIONS, Implementations, Pruning, Resolution, TestTimeAugmentation
from reports.schema import Run
from reports.store import RECORDS, RunWriter, StoreError, new_run_id, utc_now

CPU = torch.device("cpu")


def tiny_recipe(**changes):
    """Sprint, narrow enough to learn the embedded set in seconds."""
    fields = {"model_arguments": {"widths": (16, 32, 32)}, "batch_size": 100, "epochs": 2, "resolutions": ()}
    return replace(get_recipe("sprint", "cpu"), **(fields | changes))


@pytest.fixture(scope="module")
def small_split():
    return synthetic_split(train=1000, test=300)


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
    return CifarRun(asked, split, RunWriter.create(root, run), **options)


def execute(asked, split, root, **options):
    return run_of(asked, split, root, **options).execute(lambda seen: None)


def test_a_run_records_every_look_every_seed_and_every_clock(small_split, tmp_path, monkeypatch):
    monkeypatch.setattr(RunClocks, "_first", True)
    outcome = execute(request(seeds=2, phases=3), small_split, tmp_path)
    assert outcome.status == "done"
    frame = reports.load(outcome.path)
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
    again = reports.load(execute(request(), small_split, tmp_path).path)
    assert "process_s" not in set(again["metric"])  # nor does another run of this process
    phases = frame[frame["metric"] == "phase_time"]
    assert phases.groupby("phase_name").size().to_dict() == {
        "backward": 3, "data": 3, "evaluation": 3, "forward": 3, "optimiser": 3
    }  # fmt: skip
    assert len(frame[frame["metric"] == "step_time"]) == 3
    assert frame["dataset"].unique().tolist() == ["synthetic"]


def test_a_missed_target_is_a_censored_result(small_split, tmp_path):
    outcome = execute(request(target=0.999), small_split, tmp_path)
    frame = reports.load(outcome.path)
    scored = frame[frame["target"].notna()]
    assert outcome.status == "done"
    assert set(scored["status"]) == {"missed"} and scored["censored"].all()
    assert reports.time_to_target(frame).loc[0, "hits"] == 0


def test_the_same_seed_gives_the_same_digits_and_another_does_not(small_split, tmp_path):
    values = {}
    for name, seeds in (("first", 2), ("again", 2)):
        frame = reports.load(execute(request(seeds=seeds), small_split, tmp_path / name).path)
        kept = frame[frame["metric"].isin(["accuracy", "train_loss", "final_accuracy"])]
        values[name] = kept.groupby("seed")["value"].apply(list).to_dict()
    assert values["first"] == values["again"]
    assert values["first"][0] != values["first"][1]


@pytest.mark.slow
def test_it_learns(small_split):
    with numerics(seed=0):
        trainer = Trainer(tiny_recipe(epochs=8), small_split, device=CPU, seed=0, clocks=RunClocks(CPU))
        events = list(trainer.train())
    losses = [e.train_loss_nats for e in events if isinstance(e, Evaluated)]
    assert losses[-1] < 0.8 * losses[0]
    assert events[-1].accuracy > 0.35
    assert sum(isinstance(e, StepDone) for e in events) == 80


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
    split = synthetic_split(train=5 * batch_size, test=batch_size)
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
        outcome = execute(request(recipe, device=device.type), split, tmp_path)
        frame = reports.load(outcome.path)
        assert outcome.status == "done"
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


def test_a_single_epoch_is_looked_at_four_times(small_split):
    with numerics(seed=0):
        trainer = Trainer(tiny_recipe(epochs=1), small_split, device=CPU, seed=0, clocks=RunClocks(CPU))
        looks = [e.step for e in trainer.train() if isinstance(e, Evaluated)]
    assert looks == [3, 6, 9, 10]


@pytest.mark.parametrize("pipeline", ["dataloader", "dali", "webdataset"])
def test_every_pipeline_trains(pipeline, small_split, tmp_path, monkeypatch):
    """Those that shuffle as the device does give its very losses; shards come in another order, and cost no more."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def frame_of(name):
        recipe = tiny_recipe(
            pipeline=name, epochs=1, precision="fp32", resolutions=(Resolution(size=16, until_epoch=0.5),)
        )
        frame = reports.load(execute(request(recipe), small_split, tmp_path / name).path)
        assert set(frame["pipeline"]) == {name} and set(frame["padding"]) == {"reflect"}
        return frame

    found, expected = frame_of(pipeline), frame_of("device")
    losses = [frame[frame["metric"] == "train_loss"]["value"].to_numpy() for frame in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1 if pipeline == "webdataset" else 0.02)


@pytest.mark.parametrize("padding", ["zero", "none"])
def test_padding_is_one_ablation_away(padding, small_split):
    augmentations = []
    for each in ("reflect", padding):
        trainer = Trainer(tiny_recipe(padding=each), small_split, device=CPU, seed=0, clocks=RunClocks(CPU))
        augmentations.append(trainer.batches().augmentation)
    reflect, other = augmentations
    assert (reflect.pad, reflect.padding) == (2, "reflect")
    assert (other.pad, other.padding) == {"zero": (2, "zero"), "none": (0, "reflect")}[padding]


def test_a_pipeline_that_is_not_installed_is_refused_before_anything_is_recorded(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ValueError, match="DALI is not installed .*uv sync --extra dali"):
        new_run(request(tiny_recipe(pipeline="dali")), tmp_path / "runs", "test")
    assert not (tmp_path / "runs").exists()


def test_small_images_come_first(small_split, monkeypatch):
    recipe = tiny_recipe(resolutions=(Resolution(size=20, until_epoch=1),))
    with numerics(seed=0):
        trainer = Trainer(recipe, small_split, device=CPU, seed=0, clocks=RunClocks(CPU))
        sizes = []
        trainer.model.register_forward_pre_hook(
            lambda module, inputs: sizes.append(inputs[0].shape[-1]) if module.training else None
        )
        list(trainer.train())
    assert sizes == [20] * 10 + [32] * 10


def test_a_prediction_depends_on_its_own_image_alone(small_split):
    recipe = tiny_recipe(precision="fp32")
    with numerics(seed=0):
        trainer = Trainer(recipe, small_split, device=CPU, seed=0, clocks=RunClocks(CPU))
        list(trainer.train())
        trainer.model.eval()
        images, _ = next(iter(trainer.test_batches()))
        tta = TestTimeAugmentation(threshold=0.5)
        with torch.no_grad():
            together = trainer.predict(images[:64], tta)
            alone = torch.cat([trainer.predict(image[None], tta) for image in images[:64]])
            plain = trainer.predict(images[:64], None)
            untouched = trainer.predict(images[:64], TestTimeAugmentation(threshold=0.0))
    assert torch.equal(together, alone)
    assert torch.equal(plain, untouched)


def test_six_views_are_the_weighted_mean_of_their_logits(small_split):
    with numerics(seed=0):
        trainer = Trainer(tiny_recipe(precision="fp32"), small_split, device=CPU, seed=0, clocks=RunClocks(CPU))
        trainer.model.eval()
        images, _ = next(iter(trainer.test_batches()))
        images = images[:8]
        with torch.no_grad():
            plain = trainer.forward(images)
            result = trainer._six_views(images, plain)
            padded = torch.nn.functional.pad(images, (1, 1, 1, 1), "reflect")
            views = [images, padded[:, :, :32, :32], padded[:, :, 2:, 2:]]
            logits = [trainer.forward(v) + trainer.forward(v.flip(3)) for v in views]
    torch.testing.assert_close(result, 0.25 * logits[0] + 0.125 * (logits[1] + logits[2]))


def test_divergence_is_recorded_and_the_other_seeds_still_run(small_split, tmp_path):
    recipe = tiny_recipe(optimizer=replace(tiny_recipe().optimizer, head_lr=1e38))
    seen = []
    outcome = run_of(request(recipe, seeds=2), small_split, tmp_path).execute(seen.append)
    assert outcome.status == "diverged"
    frame = reports.load(outcome.path)
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
    recipe = tiny_recipe(model_arguments={"widths": (8, 8, 8)}, batch_size=500, epochs=1, optimizer=optimizer)
    deadline = BudgetOfOneSeed()
    stopped = new_run(request(recipe, seeds=2), tmp_path, "test", deadline=deadline).execute(deadline)
    assert (stopped.status, stopped.verdict) == ("stopped", "diverged")
    frame = reports.load(stopped.path)
    assert frame[frame["status"] == "diverged"]["metric"].tolist() == ["train_eval_s", "resident_s", "final_accuracy"]
    again = resumed_run(stopped.path)
    assert again.diverged and again.done == {0}
    again.writer.finish("stopped")


def test_a_budget_that_holds_no_seed_stops_before_it(small_split, tmp_path):
    outcome = execute(request(seeds=3), small_split, tmp_path, deadline=Deadline(60), estimate_s=1000)
    assert outcome.status == "stopped"
    assert "does not hold another seed" in reports.load_runs(outcome.path).loc[0, "notes"][0]


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
    asked = request(tiny_recipe(model_arguments={"widths": (8, 8, 8)}, batch_size=500, epochs=3), seeds=2)
    deadline = Spent()
    outcome = new_run(asked, tmp_path, "test", deadline=deadline).execute(deadline)
    assert outcome.status == "stopped"
    run = reports.load_runs(outcome.path).loc[0]
    assert run["run_status"] == "stopped" and "within seed 0" in run["notes"][0]
    metrics = reports.load(outcome.path)["metric"]
    assert (metrics == "accuracy").sum() == 2 and not (metrics == "final_accuracy").any()
    assert resumed_run(outcome.path).execute(lambda seen: None).status == "done"


class Interrupt:
    """Raises Ctrl-C's exception in the middle of one seed."""

    def __init__(self, seed):
        self.seed = seed

    def __call__(self, seen):
        if isinstance(seen, SeedEvent) and seen.seed == self.seed and isinstance(seen.event, Evaluated):
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_result(tmp_path):
    asked = request(tiny_recipe(model_arguments={"widths": (8, 8, 8)}, batch_size=500, epochs=1), seeds=2)
    whole = reports.load(new_run(asked, tmp_path / "whole", "test").execute(lambda seen: None).path)
    broken = new_run(asked, tmp_path / "broken", "test")
    with pytest.raises(KeyboardInterrupt):
        broken.execute(Interrupt(seed=1))
    assert reports.load_runs(broken.writer.path).loc[0, "run_status"] == "interrupted"
    outcome = resumed_run(broken.writer.path).execute(lambda seen: None)
    assert outcome.status == "done"
    resumed = reports.load(outcome.path)

    def finals(frame):
        return frame[frame["metric"] == "final_accuracy"].set_index("seed")["value"].to_dict()

    assert finals(resumed) == finals(whole)
    with pytest.raises(StoreError, match="finished"):
        resumed_run(outcome.path)


def test_resuming_on_other_data_is_refused_and_leaves_the_run_resumable(tmp_path, small_split):
    run = run_of(request(seeds=2), small_split, tmp_path)  # the record's hash is not that of "synthetic"
    with pytest.raises(KeyboardInterrupt):
        run.execute(Interrupt(seed=0))
    for _ in range(2):
        with pytest.raises(StoreError, match="other data"):
            resumed_run(run.writer.path)


@pytest.fixture
def begun(tmp_path):
    """A run that was interrupted in its first seed."""
    asked = request(tiny_recipe(model_arguments={"widths": (8, 8, 8)}, batch_size=500, epochs=1))
    run = new_run(asked, tmp_path, "test")
    with pytest.raises(KeyboardInterrupt):
        run.execute(Interrupt(seed=0))
    return run.writer.path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"host": "another"}, "host: another then"),
        pytest.param({"source_hash": "0123456789ab"}, "source_hash: 0123456789ab then", marks=pytest.mark.slow),
        pytest.param({"environment": {"threads": "64"}}, "threads: 64 then, .* now", marks=pytest.mark.slow),
        ({"request": {"device": "cuda"}}, "no CUDA GPU answers here"),
        pytest.param({"request": {"data": "elsewhere"}}, "seen from where it was begun", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_only_where_it_was_begun(begun, change, says):
    if "cuda" in str(change) and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    records = begun / RECORDS
    text = records.read_text()
    head, rest = text.split("\n", 1)
    run = json.loads(head)
    for key, value in change.items():
        run[key] = run[key] | value if isinstance(value, dict) else value
    records.write_text(json.dumps(run) + "\n" + rest)
    changed = records.read_text()
    with pytest.raises(ValueError, match=says):
        resumed_run(begun)
    assert records.read_text() == changed  # refused before it was touched
    records.write_text(text)
    assert resumed_run(begun).execute(lambda seen: None).status == "done"


def test_phases_stop_when_the_budget_holds_no_other_step(small_split, tmp_path):
    deadline = BudgetOfOneSeed()
    deadline.ended = True
    frame = reports.load(execute(request(seeds=0, phases=5), small_split, tmp_path, deadline=deadline).path)
    counts = frame[frame["metric"] == "phase_time"].groupby("phase_name").size()
    assert counts.to_dict() == {"backward": 1, "data": 1, "evaluation": 3, "forward": 1, "optimiser": 1}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (tiny_recipe(model="sprnt"), "did you mean 'sprint'"),
        (tiny_recipe(model="wrn_22", model_arguments={}), "use SGD"),
        (tiny_recipe(model_arguments={"width": 1}), "does not take"),
        (tiny_recipe(model_arguments={"widths": (8,) * 6}), "cannot compute images of 32 pixels"),
        (tiny_recipe(precision="fp16"), "bf16 or a GPU"),
        (tiny_recipe(implementations=Implementations(cuda_graph=True)), "need a GPU"),
        (tiny_recipe(batch_size=2000), "do not fill one batch"),
    ],
)
def test_what_cannot_run_here_is_refused_with_the_next_step(recipe, message, small_split):
    with pytest.raises(ValueError, match=message):
        Trainer(recipe, small_split, device=CPU, seed=0, clocks=RunClocks(CPU))


@pytest.mark.parametrize("target", [0, 1, 1.5, 94, -1, float("nan")])
def test_targets_outside_0_to_1_are_refused(target):
    with pytest.raises(ValueError, match="expected an accuracy between 0 and 1"):
        request(target=target)


def test_images_too_small_for_a_resolution_are_refused(small_split):
    recipe = tiny_recipe(resolutions=(Resolution(size=64, until_epoch=1),))
    with numerics(seed=0), pytest.raises(DataError, match="64-pixel"):
        list(Trainer(recipe, small_split, device=CPU, seed=0, clocks=RunClocks(CPU)).train())


def test_pruned_epochs_are_shorter_and_the_schedule_knows(small_split):
    """Of 1,000 samples 250 are left out: seven steps of 100 instead of ten, in all epochs but the first and last."""
    recipe = tiny_recipe(epochs=4, pruning=Pruning())
    with numerics(seed=0):
        trainer = Trainer(recipe, small_split, device=CPU, seed=0, clocks=RunClocks(CPU))
        assert [epoch.steps for epoch in trainer.epochs] == [10, 7, 7, 10]
        events = list(trainer.train())
    looks = [event for event in events if isinstance(event, Evaluated)]
    assert [look.epoch for look in looks] == [1, 2, 3, 4] and [look.step for look in looks] == [10, 17, 24, 34]
    (last,) = (event for event in events if isinstance(event, Finished))
    assert last.accuracy > 0.15 and looks[-1].train_loss_nats < looks[0].train_loss_nats
    assert trainer._easy.losses.isfinite().all()
    cut = tiny_recipe(epochs=2.5, pruning=Pruning(whole_epochs=0))
    with numerics(seed=0):
        trainer = Trainer(cut, small_split, device=CPU, seed=0, clocks=RunClocks(CPU))
    assert [epoch.steps for epoch in trainer.epochs] == [10, 7, 4]


def test_pruning_needs_to_know_the_samples(small_split):
    with pytest.raises(ValueError, match="pruning=null"):
        check_runnable(tiny_recipe(pruning=Pruning(), pipeline="dataloader"), small_split, CPU)
    with pytest.raises(ValueError, match="under torchrun"):
        ranks = Ranks(rank=0, world=2)
        Trainer(tiny_recipe(pruning=Pruning()), small_split, device=CPU, seed=0, clocks=RunClocks(CPU), ranks=ranks)


def losses_of_steps(split, device, *, cuda_graph):
    """Losses of steps of both sizes of image, before and after the whitening bias freezes."""
    chosen = Implementations(cuda_graph=cuda_graph)
    small = (Resolution(size=24, until_epoch=2),)
    recipe = tiny_recipe(
        precision="fp32", epochs=3, resolutions=small, pruning=Pruning(whole_epochs=0), implementations=chosen
    )
    with numerics(seed=0):
        trainer = Trainer(recipe, split, device=device, seed=0, clocks=RunClocks(device))
        trainer.model.train()
        unmeasured, losses = PhaseTimer(device, enabled=False), []
        for epoch, steps in zip(trainer.epochs[1:], ((0, 1, 12), (13, 14)), strict=True):
            batches = trainer._shown(trainer.batches(epoch.size), epoch)
            for step in steps:
                before = trainer._loss_sum.item()
                trainer.step(batches, step, unmeasured)
                losses.append(trainer._loss_sum.item() - before)
        assert trainer.model.whiten.bias.grad is None and not trainer.model.whiten.bias.requires_grad
    return losses


def test_whole_steps_as_graphs_train_the_same(small_split, monkeypatch, eager_graphs):
    monkeypatch.setattr("bench.tasks.training.check_runnable", lambda *arguments: None)
    plain, captured = (losses_of_steps(small_split, CPU, cuda_graph=graph) for graph in (False, True))
    assert captured == pytest.approx(plain, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; torch finds none")
def test_whole_steps_as_cuda_graphs_train_the_same(small_split, device):
    plain, captured = (losses_of_steps(small_split, device, cuda_graph=graph) for graph in (False, True))
    assert captured == pytest.approx(plain, rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs g++")
def test_compiled_equals_eager(small_split):
    accuracies = []
    for compiled in (False, True):
        recipe = tiny_recipe(precision="fp32", epochs=4, implementations=Implementations(compile=compiled))
        with numerics(seed=0):
            events = list(Trainer(recipe, small_split, device=CPU, seed=0, clocks=RunClocks(CPU)).train())
        first = next(e for e in events if isinstance(e, Evaluated))
        accuracies.append((first.train_loss_nats, isinstance(events[-1], Finished)))
    assert accuracies[0][1] and accuracies[1][1]
    assert accuracies[1][0] == pytest.approx(accuracies[0][0], rel=0.02)
