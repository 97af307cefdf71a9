"""`wallclock run loaders`: what is wrong is not timed, regimes stay apart, a killed run goes on."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from wallclock import reports
from wallclock.bench.cases.loaders import run as loaders
from wallclock.bench.cases.loaders import trial as loader_trial
from wallclock.bench.cases.loaders.run import LoadersRequest, LoadersRun
from wallclock.bench.runs.training import resumed_run as resumed_task
from wallclock.bench.tasks.cifar.requests import CifarRequest
from wallclock.bench.tasks.cifar.task import TASK
from wallclock.models.recipes import get_recipe
from wallclock.reports.format import text as tables
from wallclock.reports.store.layout import StoreError
from wallclock.reports.views.loaders import (
    REGIMES,
    loader_failures,
    loader_rates,
    loader_rows,
    loader_stalls,
    loader_summary,
)

ROOT = Path(__file__).parents[4]
SMALL = {"data": "synthetic", "device": "cpu", "images": 240, "batch_sizes": (60,), "rounds": 2, "steps": 1}


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Little time for each sample, a narrow network, and one number of workers to try."""
    monkeypatch.setattr(loaders, "cpu_cores", lambda: 1)
    monkeypatch.setattr(loaders, "IMAGE_BUDGET_S", 0.02)
    narrow = replace(get_recipe("sprint", "cpu"), model_arguments={"widths": (8, 8, 8)})
    monkeypatch.setattr(loaders, "get_recipe", lambda name, device: narrow)


def ran(tmp_path, **fields):
    run = LoadersRun.new(LoadersRequest(**SMALL | fields), tmp_path, "test")
    seen = []
    return run.writer.path, run.execute(seen.append), seen


@pytest.mark.slow
def test_every_regime_has_its_samples_and_its_table(tmp_path):
    path, status, seen = ran(tmp_path)
    assert status == "done"
    frame = reports.load(path)
    assert set(frame["regime"]) == {"one image", "alone", "first batch", "training", "tuning"}
    checks = frame[frame["metric"] == "error"]["value"]
    assert len(checks) == 3 * 3 + 3 * 3 and checks.between(0, 1e-6).all()
    for form, pipelines in (
        ("pixels", ("device", "dataloader", "dali")),
        ("shards", ("webdataset", "dataloader", "dali")),
    ):
        for pipeline in pipelines:
            own = frame[(frame["form"] == form) & (frame["variant"] == pipeline)]
            for metric, count in (("images_per_s", 2), ("first_batch", 2), ("cpu_time", 2), ("added_memory", 2),
                                  ("step_time", 2), ("stall", 2)):  # fmt: skip
                steady = own[(own["metric"] == metric) & (own["regime"] != "tuning")]
                assert len(steady) == count, (form, pipeline, metric)
                assert (steady["value"] >= 0).all() and (steady["batch_size"] == 60).all()
            assert (own[own["metric"] == "image_time"]["batch_size"] == 1).all()
            assert own[own["metric"] == "stall"]["value"].between(0, 1).all()
    held = frame[frame["variant"] == loader_trial.HELD]
    assert set(held["regime"]) == {"training"} and set(held["form"]) == {"pixels", "shards"}
    order = frame[(frame["metric"] == "images_per_s") & (frame["regime"] == "alone") & (frame["form"] == "pixels")]
    assert order["variant"].tolist() == ["device", "dataloader", "dali", "dali", "dataloader", "device"], "in turn"
    assert order["slot"].tolist() == [0, 1, 2, 0, 1, 2]

    summary = loader_summary(frame)
    assert len(REGIMES) == 4
    for regime in REGIMES:
        header, rows = loader_rows(summary, regime)
        assert len(rows) == (8 if regime == "training" else 6) and all(len(row) == len(header) for row in rows)
        console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(tables.terminal((header, rows)))
        assert max(map(len, console.export_text().splitlines())) <= 80
        assert "…" not in console.export_text()
    alone = summary[(summary["regime"] == "alone") & (summary["form"] == "pixels")].set_index("pipeline")
    rates = frame[(frame["metric"] == "images_per_s") & (frame["regime"] == "alone") & (frame["form"] == "pixels")]
    medians = rates.groupby("variant", observed=True)["value"].median()
    assert alone.loc["dali", "x_device"] == pytest.approx(medians["device"] / medians["dali"])
    assert alone.loc["device", "x_device"] == 1
    training = summary[(summary["regime"] == "training") & (summary["form"] == "pixels")].set_index("pipeline")
    ratio = training.loc["dali", "value"] / training.loc[loader_trial.HELD, "value"]
    assert training.loc["dali", "growth"] == pytest.approx(ratio - 1)
    assert len(loader_rates(summary)["data"][0]["x"]) == 6
    computing, waiting = loader_stalls(summary)["data"]
    for whole, parts in zip(summary[summary["regime"] == "training"]["value"],
                            zip(computing["x"], waiting["x"], strict=True), strict=True):  # fmt: skip
        assert sum(parts) == pytest.approx(whole, rel=1e-5)
    page = reports.build_page(frame, reports.load_runs(path), tmp_path / "page.html").read_text()
    assert "Loaders while the device trains" in page and "waiting for the batch" in page
    assert {done.regime for done in seen} >= {"tuning", "alone, round 1", "training, round 2"}


def test_only_what_is_asked_for_is_measured(tmp_path):
    path, status, _ = ran(tmp_path, only=("pixels device alone",))
    frame = reports.load(path)
    assert status == "done" and set(frame["variant"]) == {"device"} and set(frame["regime"]) == {"alone", "first batch"}
    with pytest.raises(
        ValueError, match="nothing matches 'pixels webdataset'; forms: pixels, shards; pipelines: device"
    ):
        LoadersRun.new(LoadersRequest(**SMALL | {"only": ("pixels webdataset",)}), tmp_path / "other", "test")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("fields", "message"), [
    ({"images": 100}, "100 images are less than two batches of 60"),
    ({"batch_sizes": (0,)}, "expected numbers above 0"),
    ({"rounds": 0}, "expected numbers above 0"),
    ({"batch_sizes": ()}, "expected numbers above 0"),
])  # fmt: skip
def test_what_cannot_be_asked_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LoadersRequest(**SMALL | fields)


@pytest.mark.slow
def test_a_wrong_pipeline_is_recorded_and_not_timed(tmp_path, monkeypatch):
    """One that flips no image is fast."""
    from wallclock.loaders.pipelines.dali import DaliBatches

    right = DaliBatches.__iter__

    def flipped(self):
        return ((images.flip(3), labels) for images, labels in right(self))

    monkeypatch.setattr(DaliBatches, "__iter__", flipped)
    path, status, _ = ran(tmp_path, only=("pixels alone",))
    assert status == "failed"
    frame = reports.load(path)
    failed = frame[frame["status"] == "failed"]
    assert set(failed["variant"]) == {"dali"} and failed["error"].str.startswith("wrong: off by").all()
    timed = frame[(frame["metric"] == "images_per_s") & (frame["regime"] == "alone")]
    assert set(timed["variant"]) == {"device", "dataloader"}
    header, rows = loader_failures(frame)
    assert rows == [["pixels 60", "dali", failed["error"].iloc[0]]]


def test_without_dali_the_others_are_measured_and_the_record_says_why(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    path, status, seen = ran(tmp_path, only=("pixels alone",))
    assert status == "done" and set(reports.load(path)["variant"]) == {"device", "dataloader"}
    (note,) = [note for note in reports.load_runs(path)["notes"].iloc[0] if note.startswith("dali")]
    assert "dali was not measured: DALI is not installed" in note and "uv sync --extra dali" in note
    with pytest.raises(ValueError, match="nothing matches 'dali'.*not here: dali"):
        LoadersRun.new(LoadersRequest(**SMALL | {"only": ("dali",)}), tmp_path, "test")


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_rounds_that_are_left(tmp_path, monkeypatch):
    request = LoadersRequest(**SMALL | {"only": ("pixels alone",), "rounds": 3})
    run = LoadersRun.new(request, tmp_path, "test")
    count = itertools.count()

    def interrupt(done):
        if done.regime == "alone, round 2" and next(count) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.execute(interrupt)
    path, seen = run.writer.path, []
    assert reports.load_runs(path)["run_status"].tolist() == ["interrupted"]
    again = LoadersRun.resume(path)
    assert again.workers.keys() == {"dataloader", "dali"}, "tuned once"
    assert again.execute(seen.append) == "done"
    assert {done.regime for done in seen} == {"alone, round 2", "alone, round 3"}
    frame = reports.load(path)
    rates = frame[(frame["metric"] == "images_per_s") & (frame["regime"] == "alone")]
    assert rates.groupby("round")["variant"].nunique().tolist() == [3, 3, 3] and len(rates) == 3 + 5 + 3
    with pytest.raises(StoreError, match="is finished"):
        LoadersRun.resume(path)
    with pytest.raises(StoreError):
        resumed_task(TASK, CifarRequest, path)


@pytest.mark.slow
def test_a_killed_run_is_readable_and_goes_on(tmp_path):
    options = [
        "--images",
        "240",
        "--batch-size",
        "60",
        "--rounds",
        "2",
        "--only",
        "pixels alone",
        "--out",
        str(tmp_path),
    ]
    command = [sys.executable, "-m", "wallclock", "run", "loaders", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "alone, round 1" in line:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stderr.close()
    process.stdout.close()
    (path,) = (p for p in tmp_path.iterdir())
    assert len(reports.load(path)) > 0
    deadline = time.monotonic() + 10  # noqa: TID251 - workers notice within five seconds that their parent is gone
    while time.monotonic() < deadline:  # noqa: TID251
        resumed = subprocess.run(
            [*command[:5], "--resume", str(path), "--json"],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if "being written" not in resumed.stderr:
            break
    assert resumed.returncode == 0, resumed.stderr
    document = json.loads(resumed.stdout)
    assert document["runs"][0]["run_status"] == "done"
    assert {row["pipeline"] for row in document["loaders"]} == {"device", "dataloader", "dali"}


@pytest.mark.slow
def test_every_form_of_real_images(real_images, tmp_path):
    path, status, _ = ran(tmp_path, data=str(real_images), only=("alone",), rounds=1)
    assert status == "done"
    frame = reports.load(path)
    assert set(frame["form"]) == {"pixels", "parquet", "shards"} and set(frame["dataset"]) == {"cifar10-jpeg"}
    assert (frame[frame["metric"] == "error"]["value"] <= 1e-6).all()


@pytest.mark.slow
def test_a_step_that_waits_shows_it(tmp_path):
    """A pipeline that dawdles a quarter of a second makes the step that much longer, and all of it is stall."""
    from wallclock.bench.cases.loaders.trial import Form, LoaderTrial
    from wallclock.loaders.data.synthetic import synthetic_split

    data = synthetic_split().train.subset(slice(0, 120))
    trial = LoaderTrial(Form("pixels", data, data), 20, torch.device("cpu"), {})
    trainer, open_pipeline = trial.trainer(get_recipe("sprint", "cpu")), trial.open

    class Dawdling:
        def __init__(self, batches):
            self.batches = batches

        def set_epoch(self, epoch):
            self.batches.set_epoch(epoch)

        def __iter__(self):
            for batch in self.batches:
                time.sleep(0.25)
                yield batch

    trial.open = lambda pipeline, **changes: Dawdling(open_pipeline(pipeline, **changes))
    found = list(trial.training("device", trainer, 3))
    steps = [m.value for m in found if m.metric == "step_time"]
    stalls = [m.value for m in found if m.metric == "stall"]
    assert all(0.25 <= step * stall < 0.5 for step, stall in zip(steps, stalls, strict=True))
    held = [m.value for m in trial.training(loader_trial.HELD, trainer, 3) if m.metric == "stall"]
    assert max(held) < 0.05
