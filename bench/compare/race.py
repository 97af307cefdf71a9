"""One side of a race to an accuracy: a recipe of ours, or a program like airbench94_muon.py, trained whole.

    python -m wallclock.bench.compare.race sprint --data DATA
    python -m wallclock.bench.compare.race peers/cifar10-airbench/airbench94_muon.py --data DATA

prints the time and the accuracy of each run, as lines that `wallclock compare` reads. The time is `train_eval_s`, which
is defined as airbench defines its own: it includes whitening, training and the final augmented evaluation, and excludes
loading, moving and compiling beforehand as well as evaluations during the training.
"""

import argparse
import json
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from wallclock.bench.compare.rounds import ROUND
from wallclock.bench.measure.environment import resolve_device
from wallclock.bench.measure.numerics import numerics
from wallclock.bench.measure.timing import RunClocks, now_s
from wallclock.bench.tasks.cifar.run import load_split
from wallclock.bench.tasks.cifar.trainer import Finished, Trainer, check_runnable
from wallclock.loaders.batches import Split
from wallclock.models.recipes import get_recipe
from wallclock.models.recipes.override import override

WARM_UP_IMAGES = 4000  # two of airbench's batches

# Replacements in the text of a GPU program that runs on a CPU; bfloat16, which CPUs multiply, replaces half precision.
FOR_A_CPU = {
    ".cuda()": "",
    'torch.device("cuda")': 'torch.device("cpu")',
    'device="cuda"': 'device="cpu"',
    ".half()": ".bfloat16()",
    "torch.half": "torch.bfloat16",
    ".pin_memory()": "",
}


def run_recipe(text: str, split: Split, device: str, seeds: range) -> Iterator[tuple[float, float]]:
    """Yields the time in seconds and the accuracy, as a fraction, of each run of a recipe, one for each seed.

    `text` is the recipe's name, then the fields to set, such as `sprint epochs=8`; `device` is "cpu" or "cuda".

    Raises:
        ValueError: if there is no such recipe or field, or the recipe cannot run on this device or data.
    """
    name, *changes = text.split()
    recipe = override(get_recipe(name, device), *changes)
    place = torch.device(device)
    check_runnable(recipe, split, place)
    for seed in seeds:
        with numerics(seed=seed, keep_heap=recipe.implementations.keep_heap):
            trainer = Trainer(recipe, split, device=place, seed=seed, clocks=RunClocks(place))
            for event in trainer.train(look=False):
                if isinstance(event, Finished):
                    yield event.train_eval_s, event.accuracy


class _HostEvent:
    """Replacement for `torch.cuda.Event` in a program that runs on a CPU; it reads the host's clock."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._at_s = 0.0

    def record(self) -> None:
        self._at_s = now_s()

    def elapsed_time(self, later: "_HostEvent") -> float:
        return 1e3 * (later._at_s - self._at_s)


def _leave_eager(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Replaces `torch.compile`, as a call or a decorator, and returns the function uncompiled."""
    return function if function is not None else _leave_eager


def _for_a_cpu(source: str, *, compiled: bool) -> str:
    """Returns a GPU program's text changed for a CPU, and replaces the CUDA functions that it calls in torch."""
    for gpu, cpu in FOR_A_CPU.items():
        source = source.replace(gpu, cpu)
    stand_ins: list[tuple[Any, str, Any]] = [(torch.cuda, "Event", _HostEvent)]
    stand_ins += [(torch.cuda, "synchronize", lambda: None)]
    for owner, name, stand_in in stand_ins + ([] if compiled else [(torch, "compile", _leave_eager)]):
        setattr(owner, name, stand_in)
    return source


def run_program(
    path: Path, split: Split, device: str, seeds: range, *, compiled: bool = False
) -> Iterator[tuple[float, float]]:
    """Yields the time in seconds and the accuracy, as a fraction, of each run of a program like airbench94_muon.py.

    On a GPU the unchanged program runs as its authors start it: compiled, after a warm-up run on random labels. On a
    CPU its text is changed by `FOR_A_CPU`; it runs eagerly without warm-up, or compiled after a warm-up on few images.

    Args:
        path: the program; defines `CifarNet`, `main(run, model)`, `print_training_details(variables, is_final_entry)`.
        split: the images; they are written to `cifar10/` in the format in which the program reads them.
        device: "cpu" or "cuda".
        seeds: one seed for each run.
        compiled: whether the program is compiled on a CPU; on a GPU it always is.

    Raises:
        ValueError: if the program lacks one of these three definitions.
    """
    source = path.read_text(encoding="utf-8")
    details: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        program, images = Path(place) / path.name, Path(place) / "cifar10"
        program.write_text(_for_a_cpu(source, compiled=compiled) if device == "cpu" else source, encoding="utf-8")
        _write_tensors(split, images)
        os.chdir(place)
        sys.argv = [str(program)]  # the program opens this file to log its own text
        made = runpy.run_path(str(program), run_name="peer")
        main, print_details = made.get("main"), made.get("print_training_details")
        if main is None or print_details is None or "CifarNet" not in made:
            raise ValueError(f"{path} has not CifarNet, main and print_training_details; it is no airbench94_muon.py")

        def keep_details(variables: dict[str, Any], **rest: Any) -> None:
            details.append(dict(variables))
            print_details(variables, **rest)

        main.__globals__["print_training_details"] = keep_details
        model = made["CifarNet"]().to(device, memory_format=torch.channels_last)
        if device == "cuda":
            model.compile(mode="max-autotune")
            main("warmup", model)
        elif compiled:  # few batches suffice to compile for every shape of the run
            model.compile()
            few = Split(split.train.subset(slice(0, WARM_UP_IMAGES)), split.test.subset(slice(0, WARM_UP_IMAGES // 2)))
            _write_tensors(few, images)
            main("warmup", model)
            _write_tensors(split, images)
        for seed in seeds:
            torch.manual_seed(seed)
            details.clear()
            main(seed, model)
            yield float(details[-1]["time_seconds"]), float(details[-1]["tta_val_acc"])


def _write_tensors(split: Split, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, part in (("train", split.train), ("test", split.test)):
        kept = {"images": part.images_NHWC.cpu(), "labels": part.labels.cpu(), "classes": list(part.classes)}
        torch.save(kept, folder / f"{name}.pt")


def main() -> None:
    """Runs the side that the command line names, and prints the time and the accuracy of each run."""
    parser = argparse.ArgumentParser(prog="python -m wallclock.bench.compare.race", description=__doc__.split("\n")[0])
    parser.add_argument("side", nargs="+", help="a recipe and fields to set, or the path of a program")
    parser.add_argument("--data", required=True, help="as `wallclock run cifar` takes it")
    parser.add_argument(
        "--runs", type=int, default=1, help="number of runs in this process; on a GPU they share one compilation"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile a program on a CPU too; on a GPU it always is compiled"
    )
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    device = resolve_device(asked.device)
    split, first = load_split(asked.data, "test"), asked.runs * int(os.environ.get(ROUND, "0"))
    path, seeds = Path(asked.side[0]), range(first, first + asked.runs)
    if path.suffix == ".py":
        runs = run_program(path, split, device, seeds, compiled=asked.compile)
    else:
        runs = run_recipe(" ".join(asked.side), split, device, seeds)
    for seconds, accuracy in runs:
        print(json.dumps({"metric": "train_eval_s", "value": seconds, "unit": "s"}))
        accuracy_line = {"metric": "final_accuracy", "value": accuracy, "unit": "fraction", "better": "higher"}
        print(json.dumps(accuracy_line), flush=True)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"wallclock: {error}")
