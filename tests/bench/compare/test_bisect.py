import json

import pytest

from wallclock import reports
from wallclock.bench.compare.bisect import find_candidates

PROJECT = '[tool.wallclock.benchmarks.work]\ncommand = "sh work.sh"\n'


@pytest.fixture
def history(tmp_path, commit):
    """Eight commits, `c1` to `c8`; the sixth is slower."""

    def made(broken=()):
        place = tmp_path / "project"
        for number in range(1, 9):
            value = 5 if number >= 6 else 3  # what it prints is judged: no machine's clock decides what is found
            text = f'echo \'{{"metric": "work_s", "value": {value}, "unit": "s"}}\'\n# {number}\n'
            text += "echo no such luck >&2; exit 1\n" if number in broken else ""
            commit(place, f"c{number}", pyproject_toml=PROJECT, work_sh=text)
        return place

    return made


def test_the_commit_that_made_it_slower_is_found(history, tmp_path, wallclock):
    what = ("--benchmark", "work", "--metric", "work_s", "--repository", history())
    code, out, err = wallclock("bisect", "c1", "main", *what, "--out", tmp_path / "runs", "--json")
    found = json.loads(out)
    assert code == 0 and found["described"][0].endswith(": c6") and len(found["candidates"]) == 1
    assert found["whole"]["verdict"] == "regressed" and found["whole"]["ratio"] == pytest.approx(5 / 3)
    assert [step["mark"] for step in found["steps"]].count("skip") == 0 and len(found["steps"]) == 3
    runs = reports.load_runs(tmp_path / "runs")
    assert len(runs) == 4 and all(request["head"]["revision"] for request in runs["request"])
    assert "regressed, ratio" in err


def test_commits_that_do_not_work_are_skipped_and_what_is_left_is_named(history, tmp_path, wallclock):
    place = history(broken=(5,))
    what = ("--command", "sh work.sh", "--metric", "work_s", "--repository", place)
    code, out, err = wallclock("bisect", "c1", "c8", *what, "--out", tmp_path / "runs")
    assert code == 4 and "one of these" in out and ": c5" in out and ": c6" in out and ": c7" not in out
    assert "no such luck" in err and "skip" in err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["c1", "c4", "--benchmark", "work", "--metric", "work_s"], "there is nothing to find"),
        (["c4", "c1", "--benchmark", "work"], "c1 is no later commit than c4"),
        (["c1", "c9", "--benchmark", "work"], "no git revision 'c9'"),
        (["c1", "c8"], "--benchmark NAME and --command"),
    ],
)
def test_what_cannot_be_found_is_one_line_and_exit_code_2(arguments, why, history, tmp_path, wallclock):
    code, out, err = wallclock("bisect", *arguments, "--repository", history(), "--out", tmp_path / "runs")
    assert code == 2 and out == "" and why in err.splitlines()[-1]


def test_gits_words_are_understood():
    sha = "0123456789" * 4
    assert find_candidates(f"{sha} is the first bad commit\ncommit {sha}\n") == [sha]
    possible = f"# possible first bad commit: [{sha}]"
    log = f"# only skipped commits left to test\n{possible} c6\n{possible} c5"
    assert find_candidates(log) == [sha, sha]
    assert find_candidates("Bisecting: 3 revisions left to test after this (roughly 2 steps)") == []
