"""Worktrees have what the checkout has: submodules, and the data that git ignores."""

import subprocess

import pytest

from wallclock import reports
from wallclock.bench.compare.git import git, worktree

PROJECT = """
[tool.wallclock]
data = ["data", "deep/er.txt"]
[tool.wallclock.benchmarks.work]
command = "cat data/x deep/er.txt"
"""


@pytest.fixture
def project(tmp_path, commit):
    place = tmp_path / "project"
    commit(place, "one", pyproject_toml=PROJECT, _gitignore="data\ndeep\n")
    (place / "data").mkdir()
    (place / "data" / "x").write_text("heavy")
    (place / "deep").mkdir()
    (place / "deep" / "er.txt").write_text("too")
    return place


def test_declared_data_are_linked_into_both_sides(project, tmp_path, commit, wallclock):
    commit(project, "two", README_md="x")
    code, _, err = wallclock("gate", "one", "two", "--rounds", "1", "--repository", project, "--out", tmp_path / "runs")
    assert code == 0, err
    assert set(reports.load(tmp_path / "runs")["status"]) == {"ok"}
    assert (project / "data" / "x").read_text() == "heavy"  # the links are removed, and not what they point to


def test_data_that_are_not_there_are_named(project, wallclock):
    (project / "deep" / "er.txt").unlink()
    code, _, err = wallclock("gate", "one", "one", "--rounds", "1", "--repository", project)
    assert code == 2 and "er.txt, which pyproject.toml declares as data" in err
    assert git(project, "worktree", "list").count("\n") == 0


def test_submodules_are_checked_out(tmp_path, commit, monkeypatch):
    for number, name in enumerate(("CONFIG_COUNT", "CONFIG_KEY_0", "CONFIG_VALUE_0")):  # git refuses paths by default
        monkeypatch.setenv(f"GIT_{name}", ("1", "protocol.file.allow", "always")[number])
    commit(tmp_path / "part", "one", inner_txt="inside")
    commit(tmp_path / "project", "one", README_md="x")
    place = tmp_path / "project"
    subprocess.run(["git", "-C", place, "submodule", "add", "-q", tmp_path / "part", "part"], check=True)
    commit(place, "two")
    with worktree(place, "two") as tree:
        assert (tree / "part" / "inner.txt").read_text() == "inside"
    assert not tree.exists() and git(place, "worktree", "list").count("\n") == 0
