import json
import os
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import psutil
import pytest

from wallclock import reports
from wallclock.bench.compare.counts import count_turn
from wallclock.bench.compare.git import worktree
from wallclock.bench.compare.rounds import _count_rounds
from wallclock.bench.compare.sides import parse_subject
from wallclock.reports.views.comparison import SPENT, comparison_summary

PROJECT = '[tool.wallclock.benchmarks.work]\ncommand = "sh work.sh"\nmetrics = ["work_ms"]\n'


def work(ms):
    """Prints so many milliseconds: this figure is judged, and no machine's clock decides what comes out."""
    return f"{says(ms)}\n"


def says(ms):
    """A command that prints one figure."""
    return f"""echo '{{"metric": "work_ms", "value": {ms}, "unit": "ms"}}'"""


@pytest.fixture
def repository(tmp_path, commit):
    """Three commits: `before`, `docs` which changes a text alone, and `slow`, which takes half as long again."""
    place = tmp_path / "project"
    commit(place, "before", pyproject_toml=PROJECT, work_sh=work(60))
    commit(place, "docs", README_md="more words")
    commit(place, "slow", work_sh=work(90))
    return place


def stored(out):
    return comparison_summary(reports.load(out), reports.load_runs(out))


def test_a_gate_fails_for_what_became_slower_and_says_so_everywhere(repository, tmp_path, wallclock, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    to = ("--junit", tmp_path / "junit.xml", "--out", tmp_path / "runs")
    code, out, err = wallclock(
        "gate", "before", "slow", "--repository", repository, "--tolerance", "0.1", "--rounds", "6", *to
    )
    assert code == 1 and "regressed" in out and "regression: 1 regressed" in err
    assert max(map(len, out.splitlines())) <= 80
    (case,) = ET.parse(tmp_path / "junit.xml").getroot()
    assert case.get("classname") == "work" and case.find("failure").get("type") == "regressed"
    assert "| work<br>work" in (tmp_path / "summary.md").read_text()
    (row,) = stored(tmp_path / "runs").to_dict("records")
    assert row["verdict"] == "regressed" and row["ratio"] == pytest.approx(1.5)
    request = reports.load_runs(tmp_path / "runs")["request"].iloc[0]
    assert len(request["base"]["revision"]) == 40 and request["head"]["text"] == "slow"
    left = subprocess.run(["git", "-C", repository, "worktree", "list"], capture_output=True, text=True, check=True)
    assert len(left.stdout.splitlines()) == 1


def test_words_alone_are_no_regression(repository, tmp_path, wallclock):
    code, out, err = wallclock(
        "gate", "before", "docs", "--repository", repository, "--rounds", "6", "--tolerance", "0.2", "--out", tmp_path
    )
    assert code == 0 and "equivalent" in out and "no regression" in err


def test_the_tree_as_it_is_can_be_the_head_and_its_changes_are_recorded(repository, tmp_path, wallclock):
    (repository / "work.sh").write_text(work(1))
    code, out, _ = wallclock("gate", "slow", "--repository", repository, "--rounds", "6", "--out", tmp_path / "runs")
    assert code == 0 and "improved" in out
    request = reports.load_runs(tmp_path / "runs")["request"].iloc[0]
    assert request["head"] == {"kind": "tree", "text": ".", "commands": {"work": "sh work.sh"}, "dirty": True,
                               "revision": request["head"]["revision"]}  # fmt: skip


def test_printed_figures_are_judged_beside_the_time(tmp_path, wallclock):
    scripts = []
    for number, rate in enumerate((100, 50)):
        script = tmp_path / f"{number}.py"
        script.write_text(f'print("words"); print(\'{{"metric": "rate", "value": {rate}, "unit": "it/s"}}\')')
        scripts.append(f"python {script}")
    code, out, _ = wallclock("compare", *scripts, "--rounds", "7", "--out", tmp_path / "runs", "--json")
    assert code == 0
    rows = {row["metric"]: row for row in json.loads(out)}
    assert rows["rate"]["verdict"] == "regressed" and rows["rate"]["ratio"] == 0.5
    assert set(rows) == {"rate", "process_s", "process_cpu_s"} and 0 < rows["process_s"]["base"] < 60


@pytest.mark.parametrize(
    ("command", "why"),
    [("exit 7", "exit 7"), ("echo gone wrong >&2; exit 1", "gone wrong"), ("kill -9 $$", "killed by signal 9"),
     ("sleep 60", "timeout: it took longer than 0.5 s"), ("no-such-program --at all", "not found")],
)  # fmt: skip
def test_a_command_that_fails_or_hangs_is_recorded_and_invalid(command, why, tmp_path, wallclock):
    code, out, _ = wallclock("compare", "cmd:true", f"cmd:{command}", "--timeout", "0.5", "--out", tmp_path)
    assert code == 3 and "invalid" in out
    (row,) = stored(tmp_path).to_dict("records")
    assert row["verdict"] == "invalid" and "head" in row["reason"] and why in row["reason"]


@pytest.fixture
def declared(repository, commit):
    """Returns `commits`, which tags commits `base` and `head` of projects with other declarations."""

    def commits(base, head, **files):
        commit(repository, "base", pyproject_toml=base, **files)
        commit(repository, "head", pyproject_toml=head, new_txt="x")
        return repository

    return commits


def test_what_does_not_build_is_invalid_and_the_others_are_measured(declared, tmp_path, wallclock):
    built = (
        PROJECT + '[tool.wallclock.benchmarks.built]\ncommand = "true"\nbuild = "echo no compiler here >&2; exit 1"\n'
    )
    code, out, err = wallclock(
        "gate", "base", "head", "--repository", declared(built, built), "--rounds", "6", "--tolerance", "0.2",
        "--out", tmp_path,
    )  # fmt: skip
    assert code == 3 and "1 equivalent, 1 invalid" in err
    assert "no compiler here" in " ".join(out.split())


def test_a_benchmark_whose_sources_differ_is_invalid(repository, commit, tmp_path, wallclock):
    commit(repository, "base", pyproject_toml=PROJECT + 'sources = ["work.sh"]\n')
    commit(repository, "head", work_sh=work(60))
    code, out, _ = wallclock("gate", "base", "head", "--repository", repository, "--rounds", "6", "--out", tmp_path)
    assert code == 3 and "is not the same on" in " ".join(out.split())


def test_the_base_says_what_is_run_and_a_head_that_says_otherwise_is_invalid(declared, tmp_path, wallclock):
    """Else a change could pass by declaring a command that does nothing."""
    easy = PROJECT.replace("sh work.sh", "sh easy.sh").replace('["work_ms"]', '["work_ms", "process_s"]')
    place = declared(PROJECT, easy, easy_sh=work(1))
    command = ("gate", "base", "head", "--repository", place, "--rounds", "6", "--tolerance", "0.2")
    code, out, _ = wallclock(*command, "--out", tmp_path / "a")
    told = " ".join(out.split())
    assert code == 3 and "command was 'sh work.sh' and is 'sh easy.sh', metrics was" in told
    code, _, _ = wallclock(*command, "--accept-changed-benchmarks", "--out", tmp_path / "b")
    (row,) = stored(tmp_path / "b").to_dict("records")  # the metrics are the base's
    assert code == 0 and row["verdict"] == "improved" and row["ratio"] == pytest.approx(1 / 90)


def test_the_same_commit_on_both_sides_is_said(repository, tmp_path, wallclock):
    _, _, err = wallclock("gate", "slow", "HEAD", "--repository", repository, "--rounds", "1", "--out", tmp_path)
    assert "base and head are the same commit" in err
    assert any("the same commit" in note for note in reports.load_runs(tmp_path)["notes"].iloc[0])


def test_a_budget_is_spent_until_the_verdict_is_clear(repository, commit, tmp_path, wallclock):
    code, _, err = wallclock(
        "gate", "before", "slow", "--repository", repository, "--budget", "60s", "--out", tmp_path / "a"
    )
    assert code == 1 and "at most" in err
    assert stored(tmp_path / "a")["rounds"].iloc[0] <= 21
    commit(repository, "long", work_sh=f"sleep 0.1; {says(90)}")
    spend = ("--budget", "1.2s", "--strict", "--out", tmp_path / "b")  # three rounds at most, and six are needed
    code, _, err = wallclock("gate", "long", "long", "--repository", repository, *spend)
    assert code == 4 and "inconclusive" in err
    rounds = stored(tmp_path / "b")["rounds"].iloc[0]
    assert not rounds >= 6  # none where the warm-up took it all
    assert reports.load_runs(tmp_path / "b")["run_status"].iloc[0] == ("done" if rounds > 0 else "stopped")


def test_by_default_a_time_is_spent_and_looks_pay_for_it(repository, tmp_path, wallclock, monkeypatch):
    monkeypatch.setattr("wallclock.bench.compare.rounds.BUDGET_S", 0.5)
    code, _, _ = wallclock("gate", "before", "docs", "--repository", repository, "--out", tmp_path)
    assert code == 0 and reports.load_runs(tmp_path)["request"].iloc[0]["rule"]["spend"] is True
    frame = reports.load(tmp_path)
    looks = frame[frame["metric"] == SPENT]
    assert 0 < looks["value"].sum() <= 1 and looks["round"].is_monotonic_increasing
    turns = frame[(frame["metric"] == "work_ms") & (frame["phase"] == "steady")].groupby("round")["arm"].agg(set)
    assert all((("base again" in arms) == (number % 3 == 0)) for number, arms in turns.items())
    (row,) = stored(tmp_path).to_dict("records")
    assert row["rounds"] == looks["round"].iloc[-1] == len(turns) >= 8
    assert _count_rounds(frame, ["work"], lambda n: 2 if n % 3 else 3, False) == len(turns)  # whence it would go on


def test_cpu_time_has_a_row_of_its_own_and_metrics_can_be_chosen(tmp_path, wallclock):
    command = ("compare", "cmd:true", "cmd:true", "--rounds", "2", "--json", "--out", tmp_path)
    assert [row["metric"] for row in json.loads(wallclock(*command)[1])] == ["process_s", "process_cpu_s"]
    chosen = ("--metric", "process_cpu_s", "--metric", "process_peak_bytes")
    metrics = [row["metric"] for row in json.loads(wallclock(*command, *chosen)[1])]
    assert metrics == ["process_cpu_s", "process_peak_bytes"]
    code, out, err = wallclock(*command, "--metric", "proces_s")
    assert code == 3 and json.loads(out) == [] and "nothing was compared" in err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["git:mian", "main"], "did you mean main?"),
        (["mian", "main"], "did you mean main?"),
        (["before", "true"], "name two of one sort"),
        (["before", "slow", "--benchmark", "wrok"], "did you mean 'work'?"),
        (["before", "slow", "--tolerance", "2"], "expected a share"),
        (["before", "slow", "--rounds", "3", "--budget", "1m"], "--rounds or --budget"),
        (["before", "slow", "--budget", "soon"], "such as 90s"),
        (["cifar/sprnt", "sprint"], "did you mean 'sprint'?"),
        (["sprint", "sprint precisoin=fp32"], "did you mean 'precision'?"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(arguments, why, repository, wallclock):
    code, out, err = wallclock("compare", *arguments, "--repository", repository)
    assert code == 2 and out == "" and why in err and len(err.strip().splitlines()) == 1


def test_a_project_without_benchmarks_is_told_how_to_declare_one(tmp_path, commit, wallclock):
    commit(tmp_path / "project", "one", README_md="x")
    code, _, err = wallclock("gate", "one", ".", "--repository", tmp_path / "project")
    assert code == 2 and "add [tool.wallclock.benchmarks.NAME]" in err


def test_subjects_are_known_by_what_they_are(repository):
    kinds = {
        text: parse_subject(text, repository).kind
        for text in ("before", ".", "sprint", "wgan/lesson", "true", "sleep 1")
    }
    assert kinds == {
        "before": "git",
        ".": "tree",
        "sprint": "recipe",
        "wgan/lesson": "recipe",
        "true": "cmd",
        "sleep 1": "cmd",
    }
    assert parse_subject("cmd:sprint", repository).kind == "cmd"


def test_a_project_without_pyproject_is_a_tree_though_it_holds_runs(tmp_path, commit, wallclock):
    place = tmp_path / "project"
    commit(place, "one", work_sh=work(60))
    command = ("compare", "one", ".", "--command", "sh work.sh", "--rounds", "1", "--repository", place)
    for _ in range(2):
        code, _, err = wallclock(*command, "--out", place / "runs")
        assert code == 0, err
    assert len(reports.load_runs(place / "runs")) == 2


SUITE = """
import time

def test_same(benchmark):
    benchmark.pedantic(time.sleep, (0.002,), rounds=3)

def test_slower(benchmark):
    benchmark.pedantic(time.sleep, ({},), rounds=3)
"""


@pytest.mark.slow
def test_a_suite_of_pytest_benchmark_has_a_verdict_on_each_test(tmp_path, commit, wallclock, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:  # where it would measure nothing
        monkeypatch.delenv(name)
    place = tmp_path / "project"
    declared = '[tool.wallclock]\ntolerance = 0.5\n[tool.wallclock.benchmarks.suite]\npytest = "test_perf.py"\n'
    commit(place, "base", pyproject_toml=declared)
    for tag, seconds in (("fast", 0.02), ("slow", 0.06)):
        (place / "test_perf.py").write_text(SUITE.format(seconds))
        commit(place, tag)
    command = ("gate", "fast", "slow", "--repository", place, "--rounds", "7", "--json", "--out", tmp_path / "runs")
    code, out, err = wallclock(*command)
    rows = {row["metric"]: row for row in json.loads(out)}
    assert code == 1 and set(rows) == {"test_perf.py::test_same", "test_perf.py::test_slower"}, err
    slower = rows["test_perf.py::test_slower"]
    assert slower["verdict"] == "regressed" and slower["benchmark"] == "suite" and slower["unit"] == "s"


def test_folders_of_other_tools_files_are_stored_runs(tmp_path, wallclock, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for side, factor in (("before", 1.0), ("after", 2.0)):
        (tmp_path / side).mkdir()
        for number in range(6):
            results = [{"command": "sleep 1", "times": [factor * (1 + number / 1000 + t / 1e4) for t in range(3)]}]
            (tmp_path / side / f"{number}.json").write_text(json.dumps({"results": results}))
    code, out, _ = wallclock("compare", "before", "after", "--json")
    (row,) = json.loads(out)
    assert code == 0 and row["verdict"] == "regressed" and row["ratio"] == pytest.approx(2, rel=0.01)
    code, out, _ = wallclock("report", "before")
    assert code == 0 and "sleep 1" in " ".join(out.split()) and "process_s" in out


def test_a_shallow_clone_is_told_how_to_have_more(repository, tmp_path, wallclock):
    shallow = tmp_path / "shallow"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{repository}", shallow], check=True)
    code, _, err = wallclock("gate", "git:main~1", ".", "--repository", shallow)
    assert code == 2 and "fetch-depth: 0" in err


def test_one_stored_side_and_one_that_is_not_are_refused(repository, tmp_path, wallclock):
    wallclock("compare", "cmd:true", "cmd:true", "--rounds", "1", "--out", tmp_path)
    code, _, err = wallclock("compare", tmp_path, "before", "--repository", repository)
    assert code == 2 and "measured apart" in err


def start(*arguments):
    """Starts a command in a process of its own, for tests that interrupt or kill it, or run two."""
    command = [sys.executable, "-m", "wallclock", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process, words):
    """Waits until a command has printed a line of progress that begins so."""
    assert any(line.startswith(words) for line in process.stderr)


def test_two_at_once_in_one_repository_do_not_disturb_each_other(repository, tmp_path):
    gate = ("gate", "before", "docs", "--repository", repository, "--rounds", "6", "--out", tmp_path / "runs")
    both = [start(*gate) for _ in range(2)]
    assert [process.communicate(timeout=120) and process.returncode for process in both] == [0, 0]
    assert list(stored(tmp_path / "runs")["verdict"]) == ["equivalent"] * 2


def test_a_worktree_left_by_a_killed_process_is_no_hindrance(repository):
    code = (
        "import os; from pathlib import Path; from wallclock.bench.compare.git import find_commit, worktree\n"
        f"place = Path({str(repository)!r})\n"
        "with worktree(place, find_commit(place, 'before')): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with worktree(repository, parse_subject("before", repository).revision) as place:
        assert (place / "work.sh").exists()


def test_ctrl_c_gives_the_verdict_so_far(tmp_path):
    sides = (f"cmd:sleep 0.02; {says(2)}", f"cmd:sleep 0.03; {says(6)}")
    process = start("compare", *sides, "--rounds", "1000", "--out", tmp_path)
    wait_for(process, "round 8 ")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "regressed" in out and "interrupted" in err
    assert stored(tmp_path).set_index("metric").loc["work_ms", "rounds"] >= 8
    running = psutil.process_iter(["cmdline"])
    assert not [one for one in running if "sleep 0.03" in " ".join(one.info["cmdline"] or ()) and one.is_running()]


def test_a_comparison_goes_on_where_it_was_killed_and_another_does_not(tmp_path, wallclock):
    """No round is lost or counted twice; one that was begun is taken again, whole."""
    sides = [f"cmd:sleep 0.02; {says(value)}" for value in (2, 6)]
    rest = ["--rounds", "12", "--no-warm-up", "--out", tmp_path]
    process = start("compare", *sides, *rest)
    wait_for(process, "round 8 ")
    process.kill()
    process.communicate()
    (path,) = (file.parent for file in tmp_path.rglob("records.jsonl"))
    before = reports.load(path).query("metric == 'work_ms'")
    for head, rounds, why in ((sides[0], "12", "another head"), (sides[1], "11", "another rounds")):
        code, _, err = wallclock("compare", sides[0], head, "--rounds", rounds, *rest[2:], "--resume", path)
        assert code == 2 and f"begun with {why}" in err
    code, _, err = wallclock("compare", path, path, "--resume", path)
    assert code == 2 and "--resume" in err
    code, out, err = wallclock("compare", *sides, *rest, "--resume", path)
    assert code == 0 and "regressed" in out, err
    assert f"round {int(before['round'].max())}" in err or "round 9 of 12" in err
    assert stored(tmp_path).set_index("metric").loc["work_ms", "rounds"] == 12
    taken = reports.load(path).query("metric == 'work_ms'")
    last = taken.drop_duplicates(["arm", "round"], keep="last")
    assert len(last) == 28 and len(taken) - len(last) <= 2  # turns of the round that was begun
    code, _, err = wallclock("compare", *sides, *rest, "--resume", path)
    assert code == 2 and "finished" in err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_counts_tell_apart_what_a_clock_of_a_shared_runner_cannot(tmp_path, commit, wallclock):
    place, loop = tmp_path / "project", "sum(range({}))\n"
    project = '[tool.wallclock.benchmarks.work]\ncommand = "python -I -S work.py"\n'
    commit(place, "before", pyproject_toml=project, work_py=loop.format(100_000))
    commit(place, "docs", README_md="more words")
    commit(place, "slow", work_py=loop.format(110_000))
    gate = ("gate", "--counts", "--repository", place, "--out", tmp_path / "runs")
    code, out, _ = wallclock(*gate, "before", "docs")
    assert code == 0 and "equivalent" in out and "instructions" in out and "process_s" not in out
    code, out, _ = wallclock(*gate, "before", "slow")
    assert code == 1 and "regressed" in out
    code, _, err = wallclock(*gate, "slow", "before")
    assert code == 0 and "1 improved; if the fall was not meant" in err


def test_counting_without_valgrind_says_what_to_install(repository, wallclock, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name, **_: None if name == "valgrind" else name)
    code, _, err = wallclock("gate", "--counts", "before", "slow", "--repository", repository)
    assert code == 2 and "apt install valgrind" in err


def test_what_a_step_does_is_the_same_figure_each_time():
    tiny = 'sprint batch_size=8 model_arguments={"widths":[4,8,8]}'
    first = count_turn(tiny)
    assert first == count_turn(tiny) and set(first) == {"operators", "allocated"}
    more = count_turn(tiny.replace("batch_size=8", "batch_size=16"))
    assert more["operators"] == first["operators"] and more["allocated"][0] > 1.5 * first["allocated"][0]


@pytest.mark.slow
@pytest.mark.timed
@pytest.mark.skipif(shutil.which("hyperfine") is None, reason="hyperfine is not installed")
def test_the_ratio_is_hyperfines_within_the_interval(tmp_path, wallclock):
    """On whole commands. Hyperfine runs one command after the other, so it is asked in short turns, as ours are."""
    commands = [f"{sys.executable} -I -S -c 'sum(range({n}))'" for n in (2_000_000, 3_000_000)]
    wallclock("compare", *(f"cmd:{command}" for command in commands), "--rounds", "25", "--metric", "process_s",
              "--out", tmp_path / "runs")  # fmt: skip
    (row,) = stored(tmp_path / "runs").to_dict("records")
    export, ratios = tmp_path / "hyperfine.json", []
    for _ in range(8):
        subprocess.run(
            ["hyperfine", "-N", "--runs", "4", "--warmup", "1", "--export-json", export, *commands],
            check=True, capture_output=True,
        )  # fmt: skip
        base, head = (np.median(result["times"]) for result in json.loads(export.read_text())["results"])
        ratios.append(head / base)
    noise = 2 * np.std(ratios, ddof=1) / len(ratios) ** 0.5
    assert row["ratio_low"] - noise <= np.median(ratios) <= row["ratio_high"] + noise
    assert 1.2 < row["ratio"] < 1.7  # half as much work again, less what a process takes to start


def test_a_benchmark_that_one_side_does_not_declare_is_added_or_removed(repository, commit, tmp_path, wallclock):
    more = PROJECT + '[tool.wallclock.benchmarks.more]\ncommand = "python more.py"\n'
    commit(repository, "more", pyproject_toml=more, more_py="", work_sh=work(60))
    gate = ("gate", "--repository", repository, "--rounds", "6", "--tolerance", "0.5", "--out")
    code, out, err = wallclock(*gate, tmp_path / "a", "before", "more")
    assert code == 0 and "1 added, 1 equivalent" in err and "only the head declares it" in " ".join(out.split())
    code, _, err = wallclock(*gate, tmp_path / "b", "more", "before")
    assert code == 0 and "1 equivalent, 1 removed" in err
    commit(repository, "only", pyproject_toml=more.replace(PROJECT, ""))
    code, _, err = wallclock(*gate, tmp_path / "c", "before", "only")
    assert code == 3 and "nothing was compared: 1 added" in err


def test_a_failure_is_told_whatever_metric_is_judged(repository, commit, tmp_path, wallclock):
    commit(repository, "judged", pyproject_toml=PROJECT.replace("work_ms", "rate"), work_sh="exit 1")
    code, _, err = wallclock("gate", "judged", "judged", "--repository", repository, "--out", tmp_path)
    assert code == 3 and "1 invalid" in err
