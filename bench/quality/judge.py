"""`wallclock judge`: compares the images of a trained generative network with real ones, to judge more than speed."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wallclock.bench.engine.checkpoint import CHECKPOINT, read_checkpoint
from wallclock.bench.measure.environment import provenance
from wallclock.bench.quality import Figures, Judge, problems
from wallclock.bench.quality.features import SPRINT, feature_extractor, train_network
from wallclock.bench.tasks.cyclegan import run as cyclegan
from wallclock.bench.tasks.cyclegan.trainer import CycleGanTrainer
from wallclock.bench.tasks.wgan import run as wgan
from wallclock.bench.tasks.wgan.networks import noise_generator
from wallclock.bench.tasks.wgan.trainer import WganTrainer
from wallclock.loaders.batches import Split
from wallclock.loaders.data.synthetic import synthetic_split
from wallclock.loaders.pipelines.shuffled import pixels
from wallclock.models.recipes.cyclegan import CycleGanRecipe
from wallclock.models.recipes.wgan import WganRecipe
from wallclock.reports.store.layout import StoreError
from wallclock.reports.store.read import load_runs
from wallclock.reports.store.schema import Run, Sample
from wallclock.reports.store.write import RunWriter, new_run_id, utc_now

BENCHMARK = "quality"
WEIGHTS = "features.safetensors"
MADE_TOGETHER = 100
MOST_REAL = 5000  # limit for training images and for held-out images, since all pairwise distances are computed
HIGHER = ("precision", "recall", "density", "coverage", "memorisation_ratio", "nearest_sample_ratio", "pairwise_ratio")


@dataclass(frozen=True)
class Judged:
    """One set of samples, and the real images that it is compared with.

    Attributes:
        name: name of the set, such as "samples" or "A to B".
        samples_NHWC: generated images, uint8 [N, S, S, 3].
        train_NHWC: images that the network was trained on, uint8 [N', S, S, 3].
        held_out_NHWC: images of the same kind that it has never seen, uint8 [N'', S, S, 3].
    """

    name: str
    samples_NHWC: torch.Tensor
    train_NHWC: torch.Tensor
    held_out_NHWC: torch.Tensor


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
    """Measures the quality of a run's last checkpoint and records it as a run of its own.

    Args:
        path: directory of a run of `wallclock run wgan` or `run cyclegan`, with its checkpoint.
        weights: file of the feature extractor's weights; None trains this suite's own network and stores it in `path`.
        extractor: name of the extractor in torch-fidelity that `weights` belong to.
        samples: number of images that a WGAN generates; a CycleGAN translates its test images.
        device: the device that generates the images and computes their features.
        out: folder in which the new run's own directory is created.
        command: the command line as the user typed it, for the records.
        observe: called with one line of text for each problem found, and before a network is trained.

    Returns:
        The directory of the new run.

    Raises:
        StoreError: if there is no such run or checkpoint.
        ValueError: if the run is of another benchmark, or torch-fidelity is missing.
    """
    row = load_runs(path).iloc[0]
    request, checkpoint = dict(row["request"]), Path(path) / CHECKPOINT
    benchmark = request.get("benchmark")
    if benchmark not in SETS:
        raise ValueError(f"{path} is a run of {benchmark}; give one of `wallclock run wgan` or `run cyclegan`")
    if not checkpoint.exists():
        raise StoreError(f"{path} has no {CHECKPOINT}; give the run itself, not a copy of its records")
    stored, metadata = read_checkpoint(checkpoint)
    resolved = json.loads(metadata["recipe"])
    case, labelled, sets = SETS[benchmark](resolved, request, stored, samples, device)
    if weights is None:
        weights = Path(path) / WEIGHTS
        if not weights.exists():
            observe(f"trains a network for features; it will be at {weights}")
            train_network(labelled or synthetic_split(), weights, device=device)
    features = feature_extractor(weights, name=extractor, device=device)
    run = Run(
        run_id=new_run_id(f"{BENCHMARK}-{case}"),
        started_utc=utc_now(),
        command=command,
        request={"benchmark": BENCHMARK, "judged": str(row["run_id"]), "extractor": extractor},
        recipe=resolved,
        recipe_hash=str(row["recipe_hash"]),
        **provenance(device.type),
    )
    with RunWriter.create(out, run) as writer:
        for one in sets:
            held = Judge(one.train_NHWC, one.held_out_NHWC, features=features, device=device)
            figures = held.figures(one.samples_NHWC)
            writer.add(*_samples(one, figures, case, benchmark, extractor, metadata))
            for problem in problems(figures):
                observe(f"{one.name}: {problem}")
                writer.note(f"{one.name}: {problem}")
        writer.finish()
    return writer.path


def _samples(
    one: Judged, figures: Figures, case: str, benchmark: str, extractor: str, metadata: dict[str, str]
) -> list[Sample]:
    position = json.loads(metadata["position"])
    step = position.get("iteration", position.get("total_critic_steps"))
    parameters: dict[str, Any] = {"network": benchmark, "of": one.name, "extractor": extractor}
    parameters["images"] = len(one.samples_NHWC)
    return [
        Sample(
            benchmark=BENCHMARK,
            case=case,
            metric=name,
            unit="ratio" if name.endswith("ratio") else "score",
            better="higher" if name in HIGHER else "lower",
            value=value,
            step=step,
            parameters=parameters,
        )  # fmt: skip
        for name, value in figures.items()
    ]


def _wgan_sets(
    resolved: Any, request: dict[str, Any], stored: dict[str, torch.Tensor], count: int, device: torch.device
) -> tuple[str, Split | None, list[Judged]]:
    recipe = WganRecipe.from_resolved(resolved)
    split = wgan.load_split(request["data"], recipe.image_size, request["only_class"])
    recipe = recipe.without(*recipe.levers())
    trainer = WganTrainer(recipe, split, device=device, seed=0)
    _load_weights(trainer.generator, stored, "generator")
    trainer.generator.eval()
    noise = noise_generator(device, 3)
    made = []
    with torch.no_grad():
        for first in range(0, count, MADE_TOGETHER):
            z = torch.randn(
                min(MADE_TOGETHER, count - first), recipe.noise_channels, 1, 1, device=device, generator=noise
            )
            made.append(pixels(trainer.generator(z)).cpu())
    train, test = (part.images_NHWC[:MOST_REAL] for part in (split.train, split.test))
    labelled = split if len(split.train.classes) > 1 else None
    return recipe.name, labelled, [Judged("samples", torch.cat(made), train, test)]


def _cyclegan_sets(
    resolved: Any, request: dict[str, Any], stored: dict[str, torch.Tensor], count: int, device: torch.device
) -> tuple[str, Split | None, list[Judged]]:
    recipe = CycleGanRecipe.from_resolved(resolved)
    data = cyclegan.load_data(request["data"], recipe.load_size, recipe.image_size)
    recipe = recipe.without(*recipe.levers())
    trainer = CycleGanTrainer(recipe, data, device=device, seed=0)
    sets = []
    margin = (recipe.load_size - recipe.image_size) // 2
    inside = slice(margin, margin + recipe.image_size)
    for name, source, target, title in (("g_a", 0, 1, "A to B"), ("g_b", 1, 0, "B to A")):
        _load_weights(trainer.networks[name], stored, name)
        trained_on = data.train[target][:MOST_REAL, inside, inside]
        sets.append(Judged(title, trainer.translated(name, data.test[source][:]), trained_on, data.test[target][:]))
    return recipe.name, None, sets


def _load_weights(net: torch.nn.Module, stored: dict[str, torch.Tensor], name: str) -> None:
    weights = {key.removeprefix(f"{name}."): t for key, t in stored.items() if key.startswith(f"{name}.")}
    net.load_state_dict(weights)


# For each benchmark: a function that returns the run's case, its images if they are labelled, and its sets to judge.
SETS = {"wgan": _wgan_sets, "cyclegan": _cyclegan_sets}
