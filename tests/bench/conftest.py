"""What the tests of commands share."""

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest
import torch
from recorded_graph import Recording
from tiny import TINY

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


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """A finished run of a tiny recipe, trained once for all tests that read one: its folder, and what was printed."""
    out, err, folder = io.StringIO(), io.StringIO(), tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        command = ["run", "cifar", *TINY, "--set", "epochs=0.4", "--target", "0.05", "--out", str(folder)]
        patch.setattr(sys, "argv", ["wallclock", *command])
        with pytest.raises(SystemExit) as ended:
            main()
    (path,) = folder.iterdir()
    return SimpleNamespace(path=path, code=ended.value.code or 0, out=out.getvalue(), err=err.getvalue())


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
