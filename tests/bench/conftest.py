"""What the tests of commands share."""

import subprocess
import sys

import pytest
import torch
from recorded_graph import Recording

from wallclock.bench.cli.app import main
from wallclock.bench.engine.cuda_graphs import WARMUP_STEPS, StepGraphs
from wallclock.loaders.data.synthetic import synthetic_split


@pytest.fixture
def wallclock(monkeypatch, capsys):
    """Runs a command in this process: (exit code, output, errors)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["wallclock", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    yield run
    torch.set_num_threads(before)


@pytest.fixture
def commit():
    """Commits files, given by their names with `_` for `.`, to a repository that it makes first; tags the commit."""

    def made(repository, tag, **files):
        def git(*arguments):
            who = ("-c", "user.name=t", "-c", "user.email=t@t")
            subprocess.run(["git", "-C", repository, *who, *arguments], check=True, capture_output=True)

        if not repository.exists():
            repository.mkdir()
            git("init", "-q", "-b", "main")
        for name, text in files.items():
            (repository / name.replace("_", ".")).write_text(text)
        git("add", "-A")
        git("commit", "-qm", tag)
        git("tag", tag)

    return made


@pytest.fixture
def recorded_graphs(monkeypatch):
    """Graphs where there is no GPU: steps that warm up, and replays of one step's operations on the memory it used."""

    def capture(graphs, step):
        for _ in range(WARMUP_STEPS):
            step()
        with Recording() as recording:
            loss = step()
        return recording.replay, loss

    monkeypatch.setattr(StepGraphs, "_capture", capture)


@pytest.fixture(scope="session")
def small_split():
    """Embedded images, few."""
    return synthetic_split(train=1000, test=300)
