"""The gate and the bisection on this repository: a planted regression is found, and words alone pass."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HELP = ("--benchmark", "help")  # a tenth of a second a process

pytestmark = [pytest.mark.slow, pytest.mark.timed]


def git(repository, *arguments):
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    subprocess.run(["git", "-C", repository, *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def history(tmp_path):
    """A clone with six commits of words, the fourth of which is slower by a third of what `--help` takes."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    place = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, place], check=True)
    git(place, "tag", "before")
    for number in range(1, 7):
        (place / "README.md").write_text(f"words {number}\n")
        if number == 4:
            with open(place / "bench" / "cli" / "options.py", "a") as file:
                file.write("sum(range(4_000_000))\n")
        git(place, "commit", "-qam", f"commit {number}")
        git(place, "tag", f"c{number}")
    return place


def test_words_alone_pass_and_a_planted_regression_does_not(history, tmp_path, wallclock):
    for number in range(1, 4):
        code, _, err = wallclock(
            "gate", f"git:c{number}", "git:before", *HELP, "--repository", history, "--out", tmp_path
        )
        assert code == 0, err
    code, out, err = wallclock("gate", "git:c3", "git:c4", *HELP, "--repository", history, "--out", tmp_path)
    assert code == 1 and "regressed" in out, err


def test_the_planted_commit_is_found(history, tmp_path, wallclock):
    code, out, err = wallclock("bisect", "before", "c6", *HELP, "--repository", history, "--out", tmp_path)
    assert code == 0 and "commit 4" in out, err
