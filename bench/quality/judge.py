"""`wallclock judge`: compares the images of a trained generative network with real ones, to judge more than speed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wallclock.bench.engine.checkpoint import CHECKPOINT, read_checkpoint, weights_of
from wallclock.bench.measure.environment import provenance
from wallclock.bench.quality import Judge, problems
from wallclock.bench.quality.features import SPRINT, feature_extractor, train_network
from wallclock.bench.tasks.registry import TASKS
from wallclock.loaders.batches import Split
from wallclock.loaders.data.synthetic import synthetic_split
from wallclock.reports.store.layout import StoreError
from wallclock.reports.store.read import load_runs
from wallclock.reports.store.schema import Run, Sample
from wallclock.reports.store.write import RunWriter, new_run_id, utc_now

BENCHMARK = "quality"
WEIGHTS = "features.safetensors"
MOST_REAL = 5000  # limit for training images and for held-out images, since all pairwise distances are computed
HIGHER = ("precision", "recall", "density", "coverage", "memorisation_ratio", "nearest_sample_ratio", "pairwise_ratio")


def judge(
    path: Path,
    *,
    weights: Path | None,
    extractor: str = SPRINT,
    samples: int,
    device: torch.device,
    out: Path,
    command: str,
    observe: Callable[[str], None],
) -> Path:
    """Measures the quality of a run's last checkpoint, and records it as a run of its own; returns its directory.

    Args:
        path: directory of a run of `wallclock run wgan` or `run cyclegan`, with its checkpoint.
        weights: file of the feature extractor's weights; None trains this suite's own network and stores it in `path`.
        extractor: name of the extractor in torch-fidelity that `weights` belong to.
        samples: number of images that a WGAN generates; a CycleGAN translates its test images.
        device: the device that generates the images and computes their features.
        out: folder in which the new run's own directory is created.
        command: the command line as the user typed it, for the records.
        observe: called with one line of text for each problem found, and before a network is trained.

    Raises:
        StoreError: if there is no such run or checkpoint.
        ValueError: if the run is of another benchmark, or torch-fidelity is missing.
    """
    row = load_runs(path).iloc[0]
    stored, checkpoint = dict(row["request"]), Path(path) / CHECKPOINT
    benchmark = stored.get("benchmark")
    able = {task.name: task for task in TASKS.values() if task.training().judged}
    if benchmark not in able:
        runs = " or ".join(f"`wallclock run {name}`" for name in able)
        raise ValueError(f"{path} is a run of {benchmark}; give one of {runs}")
    if not checkpoint.exists():
        raise StoreError(f"{path} has no {CHECKPOINT}; give the run itself, not a copy of its records")
    task, training = able[benchmark], able[benchmark].training()
    tensors, metadata = read_checkpoint(checkpoint)
    resolved = json.loads(metadata["recipe"])
    recipe = task.recipe.from_resolved(resolved)
    data = training.load(task.request.from_stored(recipe, stored))
    trainer = training.turns.TRAINER(recipe.without(*recipe.levers()), data, device=device, seed=0)
    trainer.position = type(trainer.position)(**json.loads(metadata["position"]))
    for name, net in trainer.networks.items():
        net.load_state_dict(weights_of(tensors, name))
    if weights is None:
        weights = Path(path) / WEIGHTS
        if not weights.exists():
            observe(f"trains a network for features; it will be at {weights}")
            labelled = isinstance(data, Split) and len(data.train.classes) > 1
            train_network(data if labelled else synthetic_split(), weights, device=device)
    features = feature_extractor(weights, name=extractor, device=device)
    run = Run(
        run_id=new_run_id(f"{BENCHMARK}-{recipe.name}"),
        started_utc=utc_now(),
        command=command,
        request={"benchmark": BENCHMARK, "judged": str(row["run_id"]), "extractor": extractor},
        recipe=resolved,
        recipe_hash=str(row["recipe_hash"]),
        **provenance(device.type),
    )
    with RunWriter.create(out, run) as writer:
        for one in training.judged(trainer, data, samples, MOST_REAL):
            held = Judge(one.train_NHWC, one.held_out_NHWC, features=features, device=device)
            figures = held.figures(one.samples_NHWC)
            parameters = {"network": benchmark, "of": one.name, "extractor": extractor}
            parameters["images"] = len(one.samples_NHWC)
            common: dict[str, Any] = {"benchmark": BENCHMARK, "case": recipe.name, "parameters": parameters}
            for name, value in figures.items():
                better: Any = "higher" if name in HIGHER else "lower"
                unit = "ratio" if name.endswith("ratio") else "score"
                writer.add(Sample(metric=name, unit=unit, better=better, value=value, step=trainer.step, **common))
            for problem in problems(figures):
                observe(f"{one.name}: {problem}")
                writer.note(f"{one.name}: {problem}")
        writer.finish()
    return writer.path
