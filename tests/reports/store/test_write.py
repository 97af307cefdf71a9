"""The store under what happens to it: kills, full disks, two writers, damaged bytes. All of it done for real."""

import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wallclock.reports import Run, RunWriter, Sample, StoreError, load, load_runs
from wallclock.reports.store.layout import RECORDS, RUN_TABLE, SAMPLE_TABLE, run_directories

ROOT = Path(__file__).resolve().parents[3]

WRITE_FOREVER = """
import itertools, sys
from pathlib import Path
from reports import Run, RunWriter, Sample
writer = RunWriter.create(Path(sys.argv[1]), Run(run_id="killed", started_utc="2026-11-23T10:00:00Z", command="x"))
for i in itertools.count():
    writer.add(Sample(benchmark="b", metric="m", unit="s", better="lower", value=i, index=i))
    print(i, flush=True)
"""
WRITE_RUNS = """
import sys
from pathlib import Path
from reports import Run, RunWriter, Sample
from wallclock.reports.store.write import new_run_id
root, arm = Path(sys.argv[1]), sys.argv[2]
for r in range(10):
    with RunWriter.create(root, Run(run_id=new_run_id("x"), started_utc="", command=arm)) as w:
        for i in range(20):
            w.add(Sample(benchmark="b", metric="m", unit="s", better="lower", value=i, arm=arm, round=r, index=i))
"""


def python(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_killed_writer_loses_nothing_that_was_added_and_resumes(
    tmp_path: Path, make_sample: Callable[..., Sample]
) -> None:
    child = python(WRITE_FOREVER, str(tmp_path))
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 500:
            break
    child.send_signal(signal.SIGKILL)
    added = max([500, *(int(line) for line in child.stdout.read().split())])
    assert child.wait() == -signal.SIGKILL
    frame = load(tmp_path)
    assert frame["value"].tolist() == list(range(len(frame)))
    assert len(frame) >= added + 1
    assert load_runs(tmp_path)["run_status"].tolist() == ["unfinished"]
    with RunWriter.resume(tmp_path / "killed") as writer:
        writer.add(make_sample(value=-1.0))
    assert load(tmp_path)["value"].tolist() == [*range(len(frame)), -1.0]
    assert load_runs(tmp_path)["run_status"].tolist() == ["done"]
    assert not (tmp_path / "killed" / RECORDS).exists()


def test_a_torn_last_line_is_left_out_and_cut_on_resume(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    writer = RunWriter.create(tmp_path, make_run())
    writer.add(make_sample(value=1.0), make_sample(value=2.0))
    records = writer.path / RECORDS
    writer._close()
    records.write_bytes(records.read_bytes()[:-9])
    assert load(tmp_path)["value"].tolist() == [1.0]
    with RunWriter.resume(writer.path) as again:
        again.add(make_sample(value=3.0))
    assert load(tmp_path)["value"].tolist() == [1.0, 3.0]


def test_a_second_writer_on_a_run_is_refused(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    with RunWriter.create(tmp_path, make_run()) as writer:
        script = "import sys; from reports import RunWriter; RunWriter.resume(sys.argv[1])"
        second = subprocess.run(
            [sys.executable, "-c", script, str(writer.path)], cwd=ROOT, capture_output=True, text=True
        )
        assert second.returncode == 1
        assert "is being written by another process" in second.stderr.splitlines()[-1]
        with pytest.raises(StoreError, match="exists"):
            RunWriter.create(tmp_path, writer.run)
    with pytest.raises(StoreError, match="is finished"):
        RunWriter.resume(writer.path)


def test_two_processes_write_into_one_root_at_once(tmp_path: Path) -> None:
    children = [python(WRITE_RUNS, str(tmp_path), arm) for arm in ("a", "b")]
    assert [child.wait() for child in children] == [0, 0]
    frame = load(tmp_path)
    assert frame.groupby("arm").size().to_dict() == {"a": 200, "b": 200}
    assert frame["run_id"].nunique() == 20
    assert not frame.duplicated(["arm", "round", "index"]).any()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small file system to fill: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_told_and_keeps_what_was_added(
    small_disk: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(16_384))
    writer = RunWriter.create(small_disk, make_run())
    added = 0
    with pytest.raises(StoreError, match="is full; all that was recorded before is kept. Make room"):
        for _ in range(10_000):
            writer.add(make_sample(value=added))
            added += 1
    assert 100 < added < 10_000
    assert load(small_disk)["value"].tolist() == list(range(added))
    ballast.unlink()
    writer.add(make_sample(value=-1.0))  # no half line may be left for this one to be glued to
    assert load(small_disk)["value"].tolist() == [*range(added), -1.0]
    with pytest.raises(StoreError, match="is full"):
        while True:
            writer.add(make_sample())
    with pytest.raises(StoreError, match="is full"):
        writer.finish()
    assert [p.name for p in writer.path.iterdir()] == [RECORDS]
    with pytest.raises(StoreError, match="nothing can be added"):  # closed, so that another process can resume it
        writer.note("late")


def test_a_disk_that_fills_at_the_end_keeps_the_lines(
    small_disk: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    writer = RunWriter.create(small_disk, make_run())
    writer.add(*(make_sample(value=i) for i in range(100)))
    block = small_disk / "block"
    with pytest.raises(OSError), open(block, "wb", buffering=0) as file:
        while True:
            if file.write(bytes(4096)) < 4096:
                raise OSError
    with open(block, "r+b") as file:  # room for the end line, none for the tables
        file.truncate(max(0, block.stat().st_size - 4096))
    with pytest.raises(StoreError, match="is full"):
        writer.finish()
    assert load(small_disk)["value"].tolist() == list(range(100))
    assert not list(writer.path.glob("*.part"))


@pytest.fixture
def two_runs(tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]) -> tuple[Path, Path]:
    paths = []
    for value in (1.0, 2.0):
        with RunWriter.create(tmp_path, make_run()) as writer:
            writer.add(*(make_sample(value=value, index=i) for i in range(1000)))
        paths.append(writer.path)
    return paths[0], paths[1]


@pytest.mark.parametrize("name", [RUN_TABLE, SAMPLE_TABLE])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damaged_parquet_is_named_and_skipped(two_runs: tuple[Path, Path], name: str, damage: str) -> None:
    bad = two_runs[0] / name
    content = bytearray(bad.read_bytes())
    if damage == "flip":
        content[40] ^= 0x10
    bad.write_bytes({"truncate": content[: len(content) // 2], "flip": content, "empty": b""}[damage])
    with pytest.raises(StoreError, match=f"{name} is damaged; restore it from a copy"):
        load(two_runs[0].parent)
    frame = load(two_runs[0].parent, on_damage="skip")
    assert set(frame["value"]) == {2.0}
    assert len(frame.attrs["skipped"]) == 1 and str(bad) in frame.attrs["skipped"][0]


def test_a_damaged_line_is_named(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    writer = RunWriter.create(tmp_path, make_run())
    writer.add(make_sample(), make_sample())
    writer._close()
    records = writer.path / RECORDS
    lines = records.read_bytes().splitlines(keepends=True)
    records.write_bytes(lines[0] + lines[1].replace(b"{", b"\x00", 1) + lines[2])
    with pytest.raises(StoreError, match=r"records\.jsonl line 2 is damaged"):
        load(tmp_path)
    records.write_bytes(lines[1])
    with pytest.raises(StoreError, match="has no run line"):
        load_runs(tmp_path)
    records.write_bytes(json.dumps({**json.loads(lines[0]), "schema_version": 99}).encode() + b"\n")
    with pytest.raises(StoreError, match="schema 99, newer than 1; upgrade"):
        load_runs(tmp_path)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such path"):
        load(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="no runs in"):
        load(tmp_path)


def test_exceptions_end_a_run_by_name(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    with pytest.raises(ZeroDivisionError), RunWriter.create(tmp_path, make_run(run_id="a-failed")):
        raise ZeroDivisionError("boom")
    with pytest.raises(KeyboardInterrupt), RunWriter.create(tmp_path, make_run(run_id="b-stopped")) as writer:
        raise KeyboardInterrupt
    runs = load_runs(tmp_path)
    assert runs["run_status"].tolist() == ["failed", "interrupted"]
    assert runs["error"].tolist() == ["ZeroDivisionError: boom", "Ctrl-C"]
    RunWriter.resume(writer.path).finish()
    assert load_runs(tmp_path)["run_status"].tolist() == ["failed", "done"]


def test_a_plain_copy_merges_roots(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    deep = tmp_path / "other" / "machine"
    deep.mkdir(parents=True)
    os.rename(two_runs[1], deep / two_runs[1].name)
    assert load(tmp_path)["run_id"].nunique() == 2
    assert load([two_runs[0], deep])["run_id"].nunique() == 2
    assert run_directories(two_runs[0] / RUN_TABLE) == [two_runs[0]]


def test_a_run_counts_once_however_it_is_reached(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    once = len(load(two_runs[0]))
    os.symlink(two_runs[0], tmp_path / "link")
    assert len(load([two_runs[0], tmp_path / "link"])) == once
    shutil.copytree(two_runs[0], tmp_path / "copy" / two_runs[0].name)
    frame = load([two_runs[0], tmp_path / "copy"])
    assert len(frame) == once and "counts once" in frame.attrs["skipped"][0]
    assert len(load_runs([two_runs[0], tmp_path / "copy"])) == 1


def test_of_two_copies_the_finished_one_counts(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    with RunWriter.create(tmp_path / "run", make_run(run_id="r")) as writer:
        writer.add(make_sample(value=1.0))
        shutil.copytree(writer.path, tmp_path / "backup" / "r")
        writer.add(make_sample(value=2.0))
    assert load(tmp_path)["value"].tolist() == [1.0, 2.0]


def test_a_run_that_is_under_way_is_not_called_killed(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    with RunWriter.create(tmp_path, make_run()) as writer:
        writer.add(make_sample(value=1.0))
        assert load_runs(tmp_path)["run_status"].tolist() == ["running"]
        writer.add(make_sample(value=2.0))  # being looked at does it no harm
    assert load_runs(tmp_path)["run_status"].tolist() == ["done"]


def test_nothing_but_damage_is_an_error_that_names_it(two_runs: tuple[Path, Path]) -> None:
    for run in two_runs:
        (run / RUN_TABLE).write_bytes(b"PAR1")
    for read in (load, load_runs):
        with pytest.raises(StoreError, match="is damaged; restore it from a copy"):
            read(two_runs, on_damage="skip")


names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.none() | st.integers(-(2**63), 2**63 - 1)
sample_fields = st.fixed_dictionaries(
    {"value": numbers, "metric": names, "seed": counts, "step": counts, "epoch": st.none() | numbers},
    optional={
        "case": names,
        "reached": st.none() | st.booleans(),
        "error": st.none() | names,
        "parameters": st.dictionaries(names, names | st.integers(-(2**40), 2**40) | st.booleans(), max_size=3),
    },
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.lists(sample_fields, min_size=1, max_size=5))
def test_lines_and_parquet_read_alike_and_as_written(
    tmp_path_factory: pytest.TempPathFactory,
    make_run: Callable[..., Run],
    make_sample: Callable[..., Sample],
    fields: list[dict[str, object]],
) -> None:
    import pandas as pd

    writer = RunWriter.create(tmp_path_factory.mktemp("runs"), make_run())
    samples = [make_sample(**given_fields) for given_fields in fields]
    writer.add(*samples)
    from_lines = load(writer.path)
    writer.finish()
    from_tables = load(writer.path)
    apart = ["run_status"]
    pd.testing.assert_frame_equal(from_lines.drop(columns=apart), from_tables.drop(columns=apart))
    for sample, (_, row) in zip(samples, from_tables.iterrows(), strict=True):
        assert (row["value"], row["metric"], row["case"]) == (sample.value, sample.metric, sample.case)
        for name in ("seed", "step", "epoch", "reached", "error"):
            assert (None if pd.isna(row[name]) else row[name]) == getattr(sample, name)
        for name, value in sample.parameters.items():
            assert row[f"parameter_{name}" if f"parameter_{name}" in row else name] == value


def test_a_parameter_named_as_a_column_is_kept_beside_it(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    with RunWriter.create(tmp_path, make_run()) as writer:
        writer.add(make_sample(value=1.5, parameters={"value": 7, "host": "x", "batch": 32}))
    row = load(tmp_path).iloc[0]
    assert (row["value"], row["parameter_value"], row["parameter_host"], row["batch"]) == (1.5, 7, "x", 32)


def test_values_that_are_no_numbers_survive(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    with RunWriter.create(tmp_path, make_run()) as writer:
        writer.add(make_sample(value=math.nan, status="diverged"), make_sample(value=math.inf, status="missed"))
    frame = load(tmp_path)
    assert math.isnan(frame["value"][0]) and frame["value"][1] == math.inf
    assert frame["status"].tolist() == ["diverged", "missed"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"better": "up"}, "better is 'up'; expected one of lower, higher"),
        ({"phase": "hot"}, "expected one of warm-up, steady"),
        ({"metric": ""}, "a sample needs a metric"),
        ({"value": math.nan}, "train_eval_s is nan with status 'ok'"),
    ],
)
def test_a_sample_that_says_nothing_is_refused(
    make_sample: Callable[..., Sample], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_sample(**fields)


def test_the_lock_ends_with_the_writer(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    writer = RunWriter.create(tmp_path, make_run())
    writer.finish("stopped")
    with open(writer.path / RECORDS) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(StoreError, match="nothing can be added"):
        writer.note("late")
