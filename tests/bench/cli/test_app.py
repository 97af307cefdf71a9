"""The command line as a user meets it: a process, its exit code, what it prints, and what it leaves on the disk."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from rich.console import Console
from tiny import TINY

from wallclock import reports
from wallclock.bench.cli.app import app, main
from wallclock.bench.cli.plans import run_job
from wallclock.bench.measure.timing import Deadline, now_s
from wallclock.bench.runs.job import Context, Job
from wallclock.bench.tasks.cifar.trainer import Trainer
from wallclock.models.recipes import RECIPES
from wallclock.reports.store.layout import RECORDS, TRACEBACK

ROOT = Path(__file__).parents[3]
# Enough epochs to be caught in the middle; each takes well under a second.
LONG = (*TINY, "--set", "epochs=300")


def start(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "wallclock", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        **options,
    )  # fmt: skip


def spawned(*arguments, **options):
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err


def wait_for_looks(out, count, process):
    """Waits until a run under `out` has recorded so many accuracies; returns its directory."""
    deadline = now_s() + 120
    while now_s() < deadline:
        for records in out.rglob(RECORDS):
            if records.read_text().count('"metric": "accuracy"') >= count:
                return records.parent
        assert process.poll() is None, process.communicate()
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError("no accuracy was recorded in 120 s")


def test_a_run_prints_its_score_and_where_the_records_are(trained_run):
    assert trained_run.code == 0, trained_run.err
    assert "Time to accuracy" in trained_run.out and "1 of 1" in trained_run.out
    assert "target of 5% reached" in trained_run.err
    assert max(map(len, trained_run.out.splitlines()[:-1])) <= 80
    assert f"records: {trained_run.path}" in trained_run.out
    assert reports.load_runs(trained_run.path).loc[0, "command"].startswith("wallclock run cifar")


@pytest.mark.slow
def test_json_is_all_that_goes_to_standard_output(tmp_path):
    code, out, _ = spawned(
        "run", "cifar", *TINY, "--set", "epochs=0.2", "--target", "0.99", "--out", tmp_path, "--json"
    )
    document = json.loads(out)
    assert code == 0  # a missed target is a result
    assert document["time_to_target"][0]["hits"] == 0
    assert document["runs"][0]["run_status"] == "done"


@pytest.mark.slow
def test_killed_run_is_reported_and_resumed(tmp_path):
    process = start("run", "cifar", *LONG, "--seeds", "2", "--out", tmp_path)
    run = wait_for_looks(tmp_path, 2, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    looks = (run / RECORDS).read_text().count('"metric": "accuracy"')
    code, out, err = spawned("report", tmp_path, "--html", tmp_path / "page.html")
    assert code == 0 and "unfinished" in out and "its process was killed" in out, err
    assert (reports.load(run)["metric"] == "accuracy").sum() == looks
    records = (run / RECORDS).read_text()
    (run / RECORDS).write_text(records.replace('"epochs": 300,', '"epochs": 1,') + '{"kind": "sam')  # torn line
    code, _, err = spawned("run", "cifar", "--resume", run)
    assert code == 2 and "start a new run" in err  # the recipe is no longer the recorded one
    (run / RECORDS).write_text(records)
    process = start("run", "cifar", "--resume", run)
    wait_for_looks(tmp_path, looks + 1, process)
    code, _, err = spawned("run", "cifar", "--resume", run)
    assert code == 2 and "being written by another process" in err
    assert "running" in spawned("report", run)[1]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in err
    assert reports.load_runs(run).loc[0, "run_status"] == "interrupted"


@pytest.mark.slow
def test_resume_finishes_what_was_killed(tmp_path):
    short = (*TINY, "--set", "epochs=2", "--seeds", "30", "--target", "0.05")
    process = start("run", "cifar", *short, "--out", tmp_path)
    run = wait_for_looks(tmp_path, 3, process)
    process.kill()
    process.communicate()
    # The request asks for thirty seeds; three are enough to see the end.
    lines = (run / RECORDS).read_text().splitlines(keepends=True)
    head = json.loads(lines[0])
    head["request"] |= {"seeds": 3, "phases": 2}
    (run / RECORDS).write_text(json.dumps(head) + "\n" + "".join(lines[1:]))
    code, out, err = spawned("run", "cifar", "--resume", run)
    assert code == 0 and "3 of 3" in out, err
    frame = reports.load(run)
    assert sorted(frame[frame["metric"] == "final_accuracy"]["seed"]) == [0, 1, 2]


def test_ctrl_c_keeps_what_was_measured(tmp_path, wallclock, monkeypatch):
    step, steps = Trainer.step, []

    def interrupted(trainer, *given, **named):
        steps.append(None)
        if len(steps) == 60:  # in the second epoch of 50 steps
            signal.raise_signal(signal.SIGINT)
        return step(trainer, *given, **named)

    monkeypatch.setattr(Trainer, "step", interrupted)
    code, _, err = wallclock("run", "cifar", *TINY, "--set", "epochs=2", "--out", tmp_path)
    (run,) = tmp_path.iterdir()
    assert code == 130 and str(run) in err and "--resume" in err
    assert reports.load_runs(run).loc[0, "run_status"] == "interrupted"
    assert (reports.load(run)["metric"] == "accuracy").sum() == 1


@pytest.mark.slow
def test_two_runs_write_into_one_folder_at_once(tmp_path):
    both = [start("run", "cifar", *TINY, "--set", "epochs=2", "--out", tmp_path) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
    assert len(list(tmp_path.iterdir())) == 2
    finals = reports.load(tmp_path).query("metric == 'final_accuracy'")
    assert finals["run_id"].nunique() == 2 and finals["value"].nunique() == 1


@pytest.mark.slow
def test_full_disk_is_told_and_nothing_measured_is_lost(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=False).returncode != 0:
        pytest.skip("this system does not let a test mount a tmpfs")
    try:
        (disk / "filler").write_bytes(bytes(44 << 10))
        code, _, err = spawned("run", "cifar", *LONG, "--out", disk)
        assert code == 2
        assert "is full" in err and "--resume" in err and "Traceback" not in err
        frame = reports.load(disk)
        assert (frame["metric"] == "accuracy").sum() >= 2
        assert reports.load_runs(disk).loc[0, "run_status"] == "unfinished"
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_run_that_diverges_exits_3(tmp_path, wallclock):
    diverging = ("--set", "optimizer.head_lr=1e38", "--set", "epochs=1")
    code, out, err = wallclock("run", "cifar", *TINY, *diverging, "--out", tmp_path)
    assert code == 3, err
    assert "diverged" in out and "loss became" in err
    assert reports.load_runs(tmp_path).loc[0, "run_status"] == "diverged"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "cifar", "--recipe", "sprnt"), "did you mean 'sprint'"),
        (("run", "cifar", "--target", "1.5"), "between 0 and 1"),
        (("run", "cifar", "--target", "94"), "did you mean 0.94"),
        (("run", "cifar", "--seeds", "-1"), "at least 1"),
        (("run", "cifar", "--device", "tpu"), "cpu, cuda or auto"),
        (("run", "cifar", "--data", "/no/such/place"), "no such path: /no/such/place"),
        (("run", "cifar", "--data", "{empty}"), "holds no data set"),
        (("run", "cifar", "--data", "{hollow}"), "holds no images"),
        (("run", "cifar", "--set", "epohcs=2"), "did you mean 'epochs'"),
        (("run", "cifar", "--set", "epochs=many"), "expected something like"),
        (("run", "cifar", "--set", "precision=fp16"), "bf16 or a GPU"),
        (("run", "cifar", "--set", "model=sprnt"), "did you mean 'sprint'"),
        (("run", "cifar", "--set", "optimizer.bias_lr=0"), "bias_lr is 0.0; expected a positive learning rate"),
        (("run", "cifar", "--set", "label_smoothing=1"), "label_smoothing is 1.0"),
        (("run", "cifar", "--set", 'model_arguments={"width":1}'), "does not take"),
        (("run", "cifar", "--resume", "{empty}"), "holds no run"),
        (("run", "cifr"), "Did you mean 'cifar'"),
        (("run", "kernels", "--only", ""), "--only holds no word; give some"),
        (("run", "kernels", "--only", " ", "--static"), "--only holds no word; give some"),
        (("run", "kernels", "--only", "resdual"), "no case matches 'resdual'; operations: batch_norm_act"),
        (("suite", "--budget", "soon"), "a time such as 90s, 8m or 1h"),
        (("suite", "--budget", "30s"), "cifar sprint throughput: skipped, needs real images"),
        (("report", "/no/such/run"), "no such path"),
        (("report", "{empty}"), "no runs in"),
        (("data", "check", "{empty}"), "holds no data set"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, says, tmp_path, wallclock):
    empty, hollow, out = tmp_path / "empty", tmp_path / "hollow", tmp_path / "out"
    empty.mkdir()
    (hollow / "train" / "cat").mkdir(parents=True)
    (hollow / "test" / "cat").mkdir(parents=True)
    arguments = [a.format(empty=empty, hollow=hollow) if a.startswith("{") else a for a in arguments]
    options = ["--out", out] if arguments[0] in ("run", "suite") and "cifr" not in arguments else []
    code, printed, err = wallclock(*arguments, *options)
    assert code == 2, err
    assert says in err and "Traceback" not in err and printed == ""
    assert not list(out.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "use a smaller batch"),
        (RuntimeError("could not create a primitive in shared memory"), 3, "RuntimeError: could not create"),
    ],
)
def test_an_error_in_mid_run_tells_where_the_records_are(error, code, says, tmp_path, monkeypatch, capsys):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(Trainer, "step", fails)
    monkeypatch.setattr(sys, "argv", ["wallclock", "run", "cifar", *TINY, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    (run,) = tmp_path.iterdir()
    told = capsys.readouterr().err
    assert stopped.value.code == code
    assert says in told and str(run) in told and "Traceback" not in told
    assert reports.load_runs(run).loc[0, "run_status"] == "failed"
    assert "in fails" in (run / TRACEBACK).read_text()


def test_a_job_that_fails_does_not_end_the_plan(tmp_path, capsys):
    def fails(context):
        raise torch.OutOfMemoryError("CUDA out of memory")

    context = Context(tmp_path, None, "cpu", Deadline(None), Console(stderr=True, width=80), "test")
    assert run_job(Job("first", "fails", fails), context) == "failed"
    assert run_job(Job("second", "works", lambda c: "done"), context) == "done"
    assert run_job(Job("third", "cannot", fails, lambda c: "no GPU"), context) == "skipped, no GPU"
    told = capsys.readouterr().err
    assert "first: failed, OutOfMemoryError: CUDA out of memory" in told and "third: skipped, no GPU" in told


def test_a_job_of_many_cases_leaves_time_to_those_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr("wallclock.bench.measure.timing.now_s", lambda: 5.0)  # no time passes
    left = []

    def run(context):
        left.append(context.deadline.remaining_s())
        return "done"

    def run_with(job, device="cpu", budget_s=100.0):
        return run_job(job, Context(tmp_path, None, device, Deadline(budget_s), Console(quiet=True), ""))

    part = Job("part", "", run, at_least_s=90, gpu_at_least_s=30, share=0.4)
    assert run_with(part) == run_with(replace(part, share=1.0)) == "done"
    assert left == [40, 100]
    assert run_with(part, budget_s=None) == "done" and left[-1] == math.inf
    assert run_with(part, budget_s=80.0) == "skipped, the budget has 80 s left"
    assert run_with(part, "cuda", 80.0) == "done"
    assert run_with(part, "cuda", 20.0) == "skipped, the budget has 20 s left"


def test_list_env_and_data_speak_json_too(tmp_path, wallclock):
    listed = json.loads(wallclock("list", "--json")[1])
    assert set(listed["recipes"]) == set(RECIPES) and "cifar sprint" in listed["quick"]
    found = {c["name"]: c for c in json.loads(wallclock("env", "--json")[1])["capabilities"]}
    assert all(c["detail"] for c in found.values())
    code, out, _ = wallclock("list")
    assert code == 0 and "darknet" in out and max(map(len, out.splitlines())) <= 80
    code, out, _ = wallclock("env")
    assert code == 0 and "CUDA GPU" in out and max(map(len, out.splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.timed
def test_report_of_10_000_samples_takes_under_a_second_and_a_half_without_torch(tmp_path, slowness):
    run = reports.Run(run_id="r", started_utc="2026-01-01T00:00:00Z", command="")
    with reports.RunWriter.create(tmp_path, run) as writer:
        for seed in range(10):
            same = {"benchmark": "cifar", "case": "sprint", "seed": seed, "parameters": {"dataset": "d"}}
            scored = {**same, "target": 0.9, "reached": True, "censored": False}
            writer.add(
                reports.Sample(
                    metric="final_accuracy", unit="fraction", better="higher", value=0.9 + seed / 1e3, **scored
                ),
                reports.Sample(metric="train_eval_s", unit="s", better="lower", value=10.0 + seed, **scored),
            )
            loss = {**same, "metric": "train_loss", "unit": "nats", "better": "lower", "epoch": 1}
            writer.add(*(reports.Sample(value=1 / (1 + step), step=step, **loss) for step in range(998)))
    code = (
        "import sys; from wallclock.bench.cli.app import main\n"
        "sys.argv = ['wallclock', 'report', {0!r}, '--html', {0!r} + '/p.html']\n"
        "try: main()\nexcept SystemExit as stop: sys.exit(stop.code or ('torch' in sys.modules) * 9)"
    ).format(str(tmp_path))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    times = []
    while len(times) < 8 and min(times, default=9) >= 1.5:  # the first may have to write bytecode
        begun = now_s()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=False)
        times.append(now_s() - begun)
        assert done.returncode == 0, done.stderr
    assert min(times) < 1.5 * slowness


def test_report_writes_csv_markdown_and_page(trained_run, tmp_path, wallclock):
    files = {kind: tmp_path / "new" / f"r.{kind}" for kind in ("csv", "markdown", "html")}
    code, _, err = wallclock("report", trained_run.path, *(p for k, f in files.items() for p in (f"--{k}", f)))
    assert code == 0, err
    assert "train_eval_s" in files["csv"].read_text() and "phase_overhead" in files["csv"].read_text()
    assert "| sprint" in files["markdown"].read_text() and "| overhead |" in files["markdown"].read_text()
    assert 1 << 20 < files["html"].stat().st_size < 3 << 20


def test_a_terminal_without_unicode_gets_its_tables_too(tmp_path):
    published = ROOT / "reports" / "published" / "2026-11-24-epyc-2-cores"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "wallclock", "report", published], env=environment, capture_output=True, check=True
    )
    assert b"train_eval_s ?" in done.stdout


def test_a_damaged_run_does_not_hide_the_others(trained_run, tmp_path, wallclock):
    for name in ("a", "b"):
        shutil.copytree(trained_run.path, tmp_path / name / trained_run.path.name)
    (table,) = (tmp_path / "a").rglob("samples.parquet")
    table.write_bytes(table.read_bytes()[:-100])
    code, out, err = wallclock("report", tmp_path)
    assert code == 0 and "1 of 1" in out
    assert str(table) in err.replace("\n", "")
    code, out, err = wallclock("report", tmp_path / "a", "--html", tmp_path / "page.html")
    assert code == 2 and out == "" and f"{table} is damaged" in err
    assert not (tmp_path / "page.html").exists()


def test_every_command_but_serve_takes_json():
    def commands(group, path=()):
        for name, command in group.commands.items():
            yield from commands(command, (*path, name)) if hasattr(command, "commands") else [((*path, name), command)]

    found = dict(commands(typer.main.get_command(app)))
    without = {path for path, command in found.items() if "--json" not in {o for p in command.params for o in p.opts}}
    assert without == {("serve",)} and ("data", "fetch") in found


def test_help_is_whole_at_80_columns_and_the_shell_completes(monkeypatch, wallclock):
    for path in ((), ("run",), ("data",)):
        code, out, _ = wallclock(*path, "--help")
        assert code == 0 and max(map(len, out.splitlines())) <= 80
        assert "..." not in out.partition("Commands:")[2]
    complete = {"_WALLCLOCK_COMPLETE": "complete_bash", "COMP_WORDS": "wallclock run cifar --rec", "COMP_CWORD": "3"}
    command, environment = Path(sys.executable).with_name("wallclock"), os.environ | complete
    done = subprocess.run([command], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--recipe"]
