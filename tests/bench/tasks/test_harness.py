"""What every task gets from the harness, on a made-up one: run, resume, records, ablation, commands, entries."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny import Stop, in_this_process
from toy_task import TOY, TRAINING, ToyAblationRequest, ToyRecipe, ToyRequest, ToyTrainer

from wallclock import reports
from wallclock.bench.ablation import run as ablation
from wallclock.bench.ablation.turns import Taken
from wallclock.bench.cli import ablate as ablate_commands
from wallclock.bench.cli import run as run_commands
from wallclock.bench.engine.checkpoint import CHECKPOINT
from wallclock.bench.measure.timing import Deadline
from wallclock.bench.runs.job import Context
from wallclock.bench.runs.training import new_run, resumed_run
from wallclock.bench.tasks import registry
from wallclock.reports.store.layout import RECORDS, StoreError
from wallclock.reports.store.pictures import load_pictures

CPU = torch.device("cpu")


def request(recipe=None, **changes):
    return ToyRequest(recipe=recipe or ToyRecipe(), device="cpu", **changes)


def execute(asked, root, observe=lambda text: None, **options):
    run = new_run(TOY, asked, root, "test", **options)
    return run.execute(observe), run.writer.path


def interrupted(asked, root, line):
    """The directory of a run that Ctrl-C ends at its n-th line."""
    run = new_run(TOY, asked, root, "test")
    with pytest.raises(KeyboardInterrupt):
        run.execute(Stop(line))
    return run.writer.path


def resume(path, kind=ToyRequest):
    return resumed_run(TOY, kind, path)


def curves(path):
    """Losses and looks over steps; of steps that a resumed run took again, both values."""
    frame = reports.load(path)
    kept = frame[frame["metric"].isin(["loss", "brightness", "final_brightness"])]
    return set(zip(kept["metric"], kept["step"], kept["value"], strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of ten steps, with looks after four and eight."""
    status, path = execute(request(), tmp_path_factory.mktemp("whole"))
    assert status == "done"
    return path


def test_a_run_records_windows_losses_looks_and_pictures(whole):
    frame = reports.load(whole)
    rates = frame[frame["metric"] == "iterations_per_s"]
    assert rates["step"].tolist() == [2, 4, 6, 8, 10] and rates["phase"].tolist() == ["warm-up"] + ["steady"] * 4
    assert set(rates["better"]) == {"higher"} and rates["epoch"].tolist() == [0.4, 0.8, 1.2, 1.6, 2.0]
    losses = frame[frame["metric"] == "loss"]
    assert losses["step"].tolist() == list(range(1, 11)) and set(losses["better"]) == {"lower"}
    assert frame[frame["metric"] == "brightness"]["step"].tolist() == [0, 4, 8, 10]
    final = frame[frame["metric"] == "final_brightness"].iloc[0]
    assert final["value"] == frame[frame["metric"] == "brightness"]["value"].iloc[-1] and final["seed"] == 0
    assert set(frame["lr"]) == {1e-2} and set(frame["dataset"]) == {"synthetic"} and set(frame["case"]) == {"one"}
    assert set(frame["variant"]) == {"channels_last"}
    assert [picture.name for picture in load_pictures(whole)] == ["seen-000", "seen-004", "seen-008", "seen-010"]
    run = reports.load_runs(whole).loc[0]
    assert run["request"]["benchmark"] == "toy" and run["request"]["together"] == 2 and "-toy-one-" in run["run_id"]


@pytest.mark.parametrize("line", [1, 3, 4, 7, 9])
def test_a_run_that_was_stopped_goes_on_to_the_same_losses_and_state(line, whole, tmp_path):
    path = interrupted(request(), tmp_path, line)
    assert reports.load_runs(path).loc[0, "run_status"] == "interrupted"
    assert resume(path).execute(lambda text: None) == "done"
    assert curves(path) == curves(whole)
    first, second = (load_file(run / CHECKPOINT) for run in (path, whole))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    with pytest.raises(StoreError, match="finished"):
        resume(path)


def test_a_checkpoint_holds_every_part_by_name(whole):
    names = set(load_file(whole / CHECKPOINT))
    parts = {f"adam.{number}.{part}" for number in (0, 1) for part in ("step", "exp_avg", "exp_avg_sq")}
    assert names == {"filter.weight", "filter.bias", "noise", *parts}


def test_a_limit_ends_a_run_and_a_budget_stops_it(tmp_path):
    status, path = execute(request(steps=3), tmp_path)
    assert status == "done" and {step for metric, step, _ in curves(path) if metric == "loss"} == {1, 2, 3}
    status, path = execute(request(), tmp_path, deadline=Deadline(-1.0))
    note = reports.load_runs(path).loc[0, "notes"][-1]
    assert status == "stopped" and note == "stopped after 2 iterations: the budget is spent"
    assert resume(path).execute(lambda text: None) == "done"


def test_a_loss_that_is_no_number_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyTrainer, "update", lambda self, inputs: torch.full((1,), math.nan))
    status, path = execute(request(), tmp_path)
    assert status == "diverged" and reports.load_runs(path).loc[0, "run_status"] == "diverged"
    final = reports.load(path).query("metric == 'final_brightness'").iloc[0]
    assert (
        math.isnan(final["value"])
        and final["status"] == "diverged"
        and final["error"].endswith("a number by iteration 2")
    )
    with pytest.raises(StoreError, match="finished"):
        resume(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"host": "another"}, "host: another then"),
        ({"source_hash": "0123456789ab"}, "source_hash: 0123456789ab then"),
        ({"environment": {"threads": "64"}}, "threads: 64 then, .* now"),
        ({"request": {"content_hash": "0"}}, "made with other data"),
        ({"request": {"data": "elsewhere"}}, "seen from where it was begun"),
        ({"recipe_hash": "0"}, "reads otherwise"),
        ({"request": {"benchmark": "cifar"}}, "a run of cifar, not of toy"),
    ],
)
def test_a_run_goes_on_only_where_it_was_begun(tmp_path, change, says):
    path = interrupted(request(), tmp_path, 2)
    records = path / RECORDS
    text = records.read_text()
    head, rest = text.split("\n", 1)
    stored = json.loads(head)
    for key, value in change.items():
        stored[key] = stored[key] | value if isinstance(value, dict) else value
    records.write_text(json.dumps(stored) + "\n" + rest)
    changed = records.read_text()
    with pytest.raises(StoreError, match=says):
        resume(path)
    assert records.read_text() == changed  # refused before it was touched
    records.write_text(text)
    assert resume(path).execute(lambda seen: None) == "done"


@pytest.mark.parametrize("damage", ["cut", "other recipe", "other tensors", "other position"])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    run = interrupted(request(), tmp_path, 3)
    path = run / CHECKPOINT
    tensors, position = load_file(path), json.dumps({"iteration": 4})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:300])
    elif damage == "other recipe":
        save_file(tensors, path, metadata={"position": position, "recipe_hash": "0"})
    elif damage == "other tensors":
        tensors.pop("noise")
        save_file(tensors, path, metadata={"position": position, "recipe_hash": ToyRecipe().hash()})
    else:
        save_file(tensors, path, metadata={"position": '{"stage": 1}', "recipe_hash": ToyRecipe().hash()})
    with pytest.raises(
        StoreError, match={"other recipe": "another recipe", "other tensors": "tensors"}.get(damage, "damaged")
    ):
        resume(run).execute(lambda text: None)


def test_what_changes_the_mathematics_is_noted(tmp_path):
    _, path = execute(request(ToyRecipe(precision="bf16"), steps=1), tmp_path)
    assert reports.load_runs(path).loc[0, "notes"] == ["this changes what is computed: precision=bf16: it rounds"]
    assert reports.load_runs(execute(request(steps=1), tmp_path)[1]).loc[0, "notes"] == []


def test_graphs_give_the_losses_of_the_steps_that_they_hold(recorded_graphs, monkeypatch):
    monkeypatch.setattr("toy_task.check_device", lambda *arguments: None)
    split = TRAINING.load(None)
    losses = []
    for graph in (False, True):
        recipe = replace(ToyRecipe(), implementations=replace(ToyRecipe().implementations, cuda_graph=graph))
        torch.manual_seed(0)
        losses.append(torch.stack(list(ToyTrainer(recipe, split, device=CPU, seed=0).iterations())))
    torch.testing.assert_close(*losses)


def asked(**changes):
    return ToyAblationRequest(recipe=ToyRecipe(), device="cpu", rounds=2, **changes)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(ablation, "interleaved", in_this_process)


def test_levers_take_turns_that_are_recorded_compared_and_gone_on_with(here, tmp_path):
    run = new_run(TOY, asked(), tmp_path, "test")
    with pytest.raises(KeyboardInterrupt):
        run.execute(Stop(8))  # three variants: in the third round, the second after warm-up
    path = run.writer.path
    begun = reports.load(path)
    assert begun[begun["metric"] == "iteration_s"]["round"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    errors = begun[begun["metric"] == "first_loss_error"].set_index("variant")["value"]
    assert errors["baseline"] == 0 and errors["all levers"] < 1e-3 and errors["all levers, bf16"] < 0.5
    again = resume(path, ToyAblationRequest)
    assert again.rounds_done == 2 and again.execute(lambda text: None) == "done"
    frame = reports.load(path)
    assert set(frame["lr"]) == {1e-2} and set(frame["changes_mathematics"]) == {True, False}
    steady = frame[(frame["metric"] == "iterations_per_s") & (frame["phase"] == "steady")]
    assert steady.groupby("round")["variant"].nunique().to_dict() == {1: 3, 2: 2, 3: 3}
    levers = reports.Report(path).summaries["levers"].set_index("variant")  # a view finds rate and times by itself
    assert levers["it_per_s"].to_dict() == steady.groupby("variant")["value"].median().to_dict()
    assert (levers["step_s"] > 0).all() and (levers["cpu_s"] > 0).all()


@pytest.mark.parametrize("name", list(registry.TASKS))
def test_a_turn_gives_the_rate_that_its_task_names_first(name):
    """`wallclock compare` judges it."""
    task = registry.TASKS[name]
    turns = task.training().turns
    recipe = task.get_recipe(task.usual, "cpu")
    bare = turns.__new__(turns)
    bare.request = task.ablation(recipe=recipe, device="cpu")
    cycle = bare.cycle(recipe)
    taken = Taken({kind: 1.0 for kind, _ in cycle}, dict(cycle), 1.0)
    metric, unit, value = bare.figures(recipe, taken)[0]
    assert (metric, unit) == (task.rate, "it/s") and value > 0


def test_a_variant_that_computes_otherwise_is_not_timed_further(here, tmp_path, monkeypatch):
    run = new_run(TOY, asked(), tmp_path, "test")
    monkeypatch.setattr(ToyRecipe, "changes", lambda self: ())
    monkeypatch.setitem(ablation.LOSS_TOLERANCE, "cpu", 1e-9)
    assert run.execute(lambda text: None) == "failed"
    assert "does not compute what the plain loop does" in reports.load_runs(run.writer.path).loc[0, "error"]


@pytest.fixture
def commands(monkeypatch):
    """The made-up task on the command line."""
    for module, app in ((run_commands, run_commands.run_app), (ablate_commands, ablate_commands.ablate_app)):
        monkeypatch.setattr(app, "registered_commands", list(app.registered_commands))
        module._add_task(TOY)


def test_a_task_has_its_commands(commands, here, wallclock, tmp_path):
    code, out, err = wallclock("run", "toy", "--help")
    assert code == 0 and "--steps" in out and "--together" not in out and "Train one filter." in out
    arguments = ("--device", "cpu", "--set", "batch_size=10", "--out", tmp_path, "--json")
    code, out, err = wallclock("run", "toy", "--steps", 5, "--look-every", 3, *arguments)
    document = json.loads(out)
    assert code == 0 and {"iterations_per_s", "final_brightness"} <= {row["metric"] for row in document["summary"]}
    assert "iteration 2: " in err and {row["batch_size"] for row in document["summary"]} == {10}
    code, out, err = wallclock(
        "ablate", "toy", "--add-one-in", "--rounds", 1, "--set", "implementations.keep_heap=true", *arguments
    )
    assert code == 0 and "round 1 of 1, only keep_heap: " in err
    code, out, err = wallclock("run", "toy", "--recipe", "oen", "--out", tmp_path)
    assert code == 2 and "did you mean 'one'" in err
    code, out, err = wallclock("ablate", "toy", "--resume", "nowhere")
    assert code == 2 and "holds no run" in err


def test_ctrl_c_says_how_to_go_on(commands, wallclock, tmp_path, monkeypatch):
    def press(self, window):
        raise KeyboardInterrupt

    monkeypatch.setattr("toy_task.ToyRun.line", press)
    code, _, err = wallclock("run", "toy", "--device", "cpu", "--out", tmp_path)
    (path,) = tmp_path.iterdir()
    assert code == 130 and f"go on with `wallclock run toy --resume {path}`" in err


def test_an_entry_becomes_a_job(tmp_path):
    (make,) = TOY.quick
    job = make(TOY)
    console = Console(file=(tmp_path / "said").open("w"))
    assert job.unavailable(None) == "" and (job.name, job.summary) == ("toy one", "one filter")
    assert job.run(Context(tmp_path / "runs", None, "cpu", Deadline(None), console, "test")) == "done"
    console.file.close()
    assert "iteration 5: " in (tmp_path / "said").read_text()


def test_tasks_are_found_in_their_folders_and_refused_where_they_are_not_declared(monkeypatch):
    assert list(registry.TASKS)[:3] == ["cifar", "wgan", "cyclegan"]
    assert sum(task.unnamed for task in registry.TASKS.values()) == 1
    for task, error, says in (
        (replace(TOY, name="other"), ValueError, "named 'other'; expected 'cifar'"),
        (None, TypeError, "declares no TASK"),
    ):
        monkeypatch.setattr(registry, "import_module", lambda name, task=task: SimpleNamespace(TASK=task))
        with pytest.raises(error, match=says):
            registry.find_tasks()
    with pytest.raises(ValueError, match="no task 'munti'; tasks: cifar, "):
        registry.task_named("munti")
