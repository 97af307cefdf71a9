"""`wallclock run cyclegan` and `translate`: what is recorded, that a run goes on, what a generator makes of images."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import Stop

from wallclock import reports
from wallclock.bench.engine.checkpoint import CHECKPOINT
from wallclock.bench.runs.training import new_run, resumed_run
from wallclock.bench.tasks.cyclegan.requests import CycleGanAblationRequest, CycleGanRequest
from wallclock.bench.tasks.cyclegan.task import TASK
from wallclock.models.recipes.override import override
from wallclock.reports.views.ablation import ablation_summary

ROOT = Path(__file__).parents[4]
SMALL = ("image_size=32", "load_size=36", "blocks=1", "channels=4")
FLAGS = [text for change in SMALL for text in ("--set", change)]


def request(**changes):
    recipe = TASK.get_recipe("paper", "cpu")
    for change in SMALL:
        recipe = override(recipe, change)
    fields = {"recipe": recipe, "data": "synthetic", "device": "cpu", "iterations": 6, "look_every": 3}
    return CycleGanRequest(**fields | changes)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """So small are these maps that two threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run of six iterations."""
    run = new_run(TASK, request(), tmp_path_factory.mktemp("done"), "test")
    assert run.execute(lambda text: None) == "done"
    return run.writer.path


def test_a_run_records_rates_losses_cycles_and_pictures(done):
    frame = reports.load(done)
    rates = frame[frame["metric"] == "iterations_per_s"]
    assert rates["phase"].tolist() == ["warm-up"] + ["steady"] * 5
    images = frame[frame["metric"] == "images_per_s"]["value"].to_numpy()
    assert images.tolist() == pytest.approx((2 * rates["value"]).tolist())
    projected = frame[frame["metric"] == "projected_training_h"].iloc[0]
    assert projected["value"] == pytest.approx(266_800 / rates["value"].iloc[1:].median() / 3600)
    assert projected["unit"] == "h, a projection" and projected["projected_iterations"] == 266_800
    losses = frame[frame["metric"] == "loss_cycle"]
    assert losses["step"].tolist() == [1, 2, 3, 4, 5, 6] and (losses["value"] > 0).all()
    looks = frame[frame["metric"] == "cycle_error"]
    assert looks["step"].tolist() == [0, 0, 3, 3, 6, 6] and looks["domain"].tolist() == ["A", "B"] * 3
    noisy = frame[frame["metric"] == "cycle_error_with_noise"]["value"].tolist()
    assert all(a != b for a, b in zip(noisy, looks["value"].tolist(), strict=True)) and 0 < looks["value"].min() < 2
    names = [picture.name for picture in reports.load_pictures(done)]
    assert names == [f"translations-{n:07d}" for n in (0, 3, 6)]
    picture = reports.load_pictures(done)[0]
    assert (picture.width, picture.height) == (6 * 32, 4 * 32)
    page = reports.build_page(
        frame, reports.load_runs(done), done / "page.html", reports.load_pictures(done)
    ).read_text()
    assert "CycleGAN: there and back" in page and "CycleGAN: losses" in page and "Translations of paper" in page


def test_an_interrupted_run_goes_on_to_the_same_losses(done, tmp_path):
    run = new_run(TASK, request(), tmp_path, "test")
    with pytest.raises(KeyboardInterrupt):
        run.execute(Stop(8))  # two lines of the first look, three windows, two of a look, and the fourth window
    again = resumed_run(TASK, CycleGanRequest, run.writer.path)
    assert again.execute(lambda text: None) == "done"

    def curve(path):
        frame = reports.load(path).drop_duplicates(["metric", "step", "domain"], keep="last")
        return frame[frame["metric"].str.startswith(("loss_", "cycle_"))].set_index(["metric", "step"])["value"]

    expected = curve(done).sort_index()
    assert curve(run.writer.path).sort_index().to_list() == expected.to_list()


@pytest.mark.slow
def test_a_killed_run_can_be_read_and_goes_on(tmp_path):
    def killed_in_iteration(number, *arguments):
        command = [sys.executable, "-m", "wallclock", "run", "cyclegan", *arguments, "--out", tmp_path]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            for line in process.stderr:
                if line.startswith(f"iteration {number}: "):
                    os.kill(process.pid, signal.SIGKILL)

    killed_in_iteration(3, *FLAGS, "--iterations", "400", "--look-every", "2")
    (path,) = tmp_path.iterdir()
    assert reports.load_runs(path)["run_status"].tolist() == ["unfinished"]
    begun = reports.load(path).query("metric == 'loss_gan'")["step"].tolist()
    killed_in_iteration(4, "--resume", path)
    steps = reports.load(path).query("metric == 'loss_gan'")["step"].tolist()
    assert begun[:3] == [1, 2, 3] and steps[len(begun)] in (3, 5)  # from the last checkpoint, after two or four


def test_what_could_not_be_read_is_noted(tmp_path):
    for part in ("trainA", "trainB", "testA", "testB"):
        (tmp_path / "set" / part).mkdir(parents=True)
        Image.new("RGB", (9, 9), (200, 10, 10)).save(tmp_path / "set" / part / "0.png")
    (tmp_path / "set" / "trainA" / "1.jpg").write_text("text")
    run = new_run(TASK, request(data=str(tmp_path / "set"), iterations=1), tmp_path / "runs", "test")
    assert run.execute(lambda text: None) == "done"
    (notes,) = reports.load_runs(run.writer.path)["notes"]
    assert any("1.jpg cannot be read as an image" in note for note in notes)


@pytest.mark.slow
def test_levers_take_turns_and_the_command_tables_them(tmp_path):
    recipe = request().recipe
    asked = CycleGanAblationRequest(recipe=recipe, data="synthetic", device="cpu", rounds=2)
    names = ["channels_last", "keep_heap", "concatenated", "fused_adam"]
    assert list(asked.variants()) == [
        "baseline", "all levers", "all levers, bf16", *(f"without {name}" for name in names)
    ]  # fmt: skip
    one = recipe.without(*(f"implementations.{name}" for name in names[1:]))
    asked = CycleGanAblationRequest(recipe=one, data="synthetic", device="cpu", rounds=2)
    run = new_run(TASK, asked, tmp_path, "test")
    assert run.execute(lambda text: None) == "done"
    frame = reports.load(run.writer.path)
    summary = ablation_summary(frame).set_index("variant")
    assert sorted(summary.index) == ["all levers", "all levers, bf16", "baseline"]
    assert (summary["rounds"] == 2).all() and summary.loc["baseline", "over_baseline"] == 1
    errors = frame[frame["metric"] == "first_loss_error"].set_index("variant")["value"]
    assert errors["baseline"] == 0 and errors["all levers"] < 1e-5 < errors["all levers, bf16"] < 0.1


def test_a_trained_generator_translates_a_folder(done, tmp_path, wallclock):
    source = tmp_path / "in" / "deeper"
    source.mkdir(parents=True)
    Image.new("CMYK", (50, 40)).save(source / "one.jpg")
    Image.new("L", (8, 90), 130).save(source.parent / "two.png")
    (source / "notes.txt").write_text("no image")
    code, out, err = wallclock("translate", done, tmp_path / "in", tmp_path / "out", "--device", "cpu")
    assert code == 0 and "2 images in" in out and "1 files could not be read" in out
    assert "notes.txt cannot be read as an image" in " ".join(err.split())
    made = np.asarray(Image.open(tmp_path / "out" / "deeper" / "one.png"))
    assert made.shape == (32, 32, 3) and made.std() > 0
    one = (done / CHECKPOINT, source / "one.jpg", tmp_path / "back")
    code, out, _ = wallclock("translate", *one, "--direction", "b-to-a", "--size", "48", "--device", "cpu", "--json")
    assert json.loads(out) == {"images": 1, "unreadable": 0, "folder": str(tmp_path / "back")}
    assert code == 0 and Image.open(tmp_path / "back" / "one.png").size == (48, 48)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere", "in", "out"), "no checkpoint at nowhere; give a run of `wallclock run cyclegan`"),
        (("damaged", "in", "out"), "is damaged"),
        (("RUN", "nowhere", "out"), "no such path: nowhere; give a folder of images"),
        (("RUN", "empty", "out"), "empty holds no image that can be read"),
        (("RUN", "in", "out", "--direction", "up"), "no direction 'up'; directions: a-to-b, b-to-a"),
        (("RUN", "in", "out", "--size", "30"), "--size is 30; expected a multiple of 4"),
    ],
)
def test_translations_that_cannot_be_made_are_refused(arguments, says, done, tmp_path, wallclock, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "damaged").write_bytes((done / CHECKPOINT).read_bytes()[:5000])
    given = [done if text == "RUN" else text for text in arguments]
    code, _, err = wallclock("translate", *given, "--device", "cpu")
    assert code == 2 and says in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--data", "nowhere"), "no folder trainA, trainB, testA, testB"),
        (("--recipe", "leson"), "did you mean 'lesson'"),
        (("--look-every", "0"), "expected at least 0 (for all), 1 and 1"),
        (("--set", "blocks=0"), "at least 1"),
        (("--resume", "nowhere"), "nowhere holds no run"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(arguments, says, tmp_path, wallclock):
    code, _, err = wallclock("run", "cyclegan", *arguments, "--device", "cpu", "--out", tmp_path)
    assert code == 2 and says in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_the_command_trains_and_prints_json(tmp_path, wallclock):
    code, out, _ = wallclock(
        "run", "cyclegan", *FLAGS, "--iterations", "2", "--device", "cpu", "--json", "--out", tmp_path
    )
    assert code == 0
    metrics = {row["metric"] for row in json.loads(out)["summary"]}
    assert {"iterations_per_s", "images_per_s", "cycle_error"} <= metrics
