"""One training over two processes, as torchrun starts them: gloo on this machine's CPU."""

import subprocess
import sys
from pathlib import Path

import pytest

from wallclock import reports
from wallclock.bench.engine.ranks import Ranks, join_ranks

ROOT = Path(__file__).parents[3]
SUMS = """
import torch
from wallclock.bench.engine.ranks import join_ranks
with join_ranks("cpu") as ranks:
    assert ranks.world == 2 and ranks.share(10) == 5
    one, two = torch.full((2, 3), 1.0 + ranks.rank), torch.full((4,), ranks.rank, dtype=torch.int64)
    ranks.add([one, two], mean=False)
    assert one.tolist() == [[3.0] * 3] * 2 and two.tolist() == [1] * 4
    mean = torch.tensor([2.0 * ranks.rank])
    ranks.add([mean], mean=True)
    assert mean.item() == 1.0
    firsts = torch.tensor([7.0 + ranks.rank])
    ranks.copy_first([firsts])
    assert firsts.item() == 7.0
    # Two halves of a batch have the gradient of the whole.
    torch.manual_seed(0)
    net, x = torch.nn.Linear(5, 3).double(), torch.randn(8, 5, dtype=torch.float64)
    net(x).square().mean().backward()
    whole = net.weight.grad.clone()
    net.weight.grad = None
    net(x[ranks.rank::2]).square().mean().backward()
    ranks.add([net.weight.grad], mean=True)
    torch.testing.assert_close(net.weight.grad, whole)
"""
SETTINGS = "batch_size=250", "epochs=3", "resolutions=[]"
RECIPE = ["--recipe", "sprint", "--seeds", "1", "--device", "cpu", *(f"--set={setting}" for setting in SETTINGS)]


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)


def test_alone_nothing_is_shared():
    with join_ranks("cpu") as ranks:
        assert ranks == Ranks() and ranks.first and ranks.share(7) == 7


def test_a_batch_that_cannot_be_shared_names_one_that_can():
    with pytest.raises(ValueError, match="--set batch_size=6"):
        Ranks(0, 2).share(7)


@pytest.mark.slow
def test_sums_means_and_gradients_over_two_processes(tmp_path):
    (tmp_path / "sums.py").write_text(SUMS)
    done = torchrun(tmp_path / "sums.py")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_train_to_the_accuracy_of_one(tmp_path, wallclock, precision):
    command = ["run", "cifar", *RECIPE, f"--set=precision={precision}"]
    done = torchrun("-m", "wallclock", *command, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("records:") == 1
    wallclock(*command, "--out", tmp_path / "one")
    one, two = (reports.load(tmp_path / name) for name in ("one", "two"))
    assert len(reports.load_runs(tmp_path / "two")) == 1 and set(two["ranks"]) == {2} and "ranks" not in one
    means = [frame.loc[frame["metric"] == "final_accuracy", "value"].mean() for frame in (one, two)]
    assert min(means) > 0.9 and abs(means[0] - means[1]) < 0.02
    steps = [frame.loc[frame["metric"] == "accuracy", "step"].max() for frame in (one, two)]
    assert steps[0] == steps[1]
