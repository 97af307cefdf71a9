"""Both sides of a race: a recipe, and a program that is made like airbench94_muon.py but for its network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wallclock.bench.compare.race import main

ROOT = Path(__file__).resolve().parents[3]
PEER = """
import sys
with open(sys.argv[0]) as f:
    code = f.read()
import torch
from torch import nn

@torch.compile
def doubled(x):
    return 2 * x

class CifarNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 10)
        self.half()

def print_training_details(variables, is_final_entry):
    print("|", variables.get("epoch"), "|")

def main(run, model):
    assert "assert" in code and doubled(torch.ones(1)).item() == 2
    train = torch.load("cifar10/train.pt", map_location=torch.device("cuda"))
    test = torch.load("cifar10/test.pt", map_location=torch.device("cuda"))
    assert train["images"].dtype == torch.uint8 and train["images"].shape[1:] == (32, 32, 3)
    assert len(train["images"]) == len(train["labels"]) > len(test["images"])
    images = train["images"].cuda().half()
    model.head(images[:1].mean((1, 2)))
    starter, ender = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    starter.record()
    noise = torch.rand(1).item()
    torch.ones(2000, 2000) @ torch.ones(2000, 2000)
    ender.record()
    torch.cuda.synchronize()
    time_seconds = 1e-3 * starter.elapsed_time(ender)
    epoch, tta_val_acc = 0, None
    print_training_details(locals(), is_final_entry=False)
    epoch, tta_val_acc = "eval", noise
    print_training_details(locals(), is_final_entry=True)
    return tta_val_acc

if __name__ == "__main__":
    raise SystemExit("200 runs are not what is asked for")
"""


def race(*arguments, environment=None):
    command = [sys.executable, "-m", "wallclock.bench.compare.race", *map(str, arguments)]
    command += ["--data", "synthetic", "--device", "cpu"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)


def figures(output):
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


@pytest.fixture
def peer(tmp_path):
    path = tmp_path / "peer.py"
    path.write_text(PEER)
    return path


def test_a_program_runs_on_a_cpu_with_its_data_its_clock_and_its_accuracy(peer):
    done = race(peer, "--runs", "2")
    assert done.returncode == 0, done.stderr
    time, accuracy, later, other = figures(done.stdout)
    assert time["metric"] == later["metric"] == "train_eval_s" and 0 < time["value"] < 60
    assert accuracy["metric"] == "final_accuracy" and accuracy["better"] == "higher"
    assert 0 <= accuracy["value"] != other["value"] <= 1  # each run has a seed of its own
    assert peer.read_text() == PEER


@pytest.mark.slow
def test_a_program_is_compiled_on_a_cpu_after_a_run_on_few_images(peer):
    peer.write_text(PEER.replace("def main(run, model):", "def main(run, model):\n    print('run', run)"))
    done = race(peer, "--compile")
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("run warmup") < done.stdout.index("run 0")
    assert [figure["metric"] for figure in figures(done.stdout)] == ["train_eval_s", "final_accuracy"]


@pytest.mark.slow
def test_a_round_has_its_own_seed(peer, monkeypatch):
    import os

    first, second = (
        figures(race(peer, environment={**os.environ, "WALLCLOCK_ROUND": number}).stdout)[1]["value"]
        for number in ("0", "1")
    )
    assert first != second


def test_a_recipe_is_trained_whole(monkeypatch, capsys):
    tiny = ("epochs=0.1", "batch_size=100", "resolutions=[]", "tta=null", "precision=fp32")
    widths = 'model_arguments={"widths":[8,8,8]}'
    monkeypatch.setattr(sys, "argv", ["race", "sprint", *tiny, widths, "--data", "synthetic", "--device", "cpu"])
    main()
    time, accuracy = figures(capsys.readouterr().out)
    assert time["value"] > 0 and 0.05 <= accuracy["value"] <= 1


@pytest.mark.parametrize(
    ("side", "why"),
    [
        (["spring"], "sprint"),
        (["sprint", "epoch=1"], "did you mean 'epochs'"),
        (["nowhere.py"], "nowhere.py"),
        ([str(ROOT / "bench" / "suite.py")], "no airbench94_muon.py"),
    ],
)
def test_what_cannot_race_says_why(side, why, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["race", *side, "--data", "synthetic", "--device", "cpu"])
    monkeypatch.chdir(ROOT)  # a program is run where its data are, and finds stand-ins for CUDA in torch
    for owner, name in ((torch, "compile"), (torch.cuda, "Event"), (torch.cuda, "synchronize")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    with pytest.raises((ValueError, OSError), match=why):
        main()


@pytest.mark.slow
def test_why_is_one_line():
    done = race("spring")
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert "sprint" in done.stderr and "Traceback" not in done.stderr
