"""What each lever of a WGAN recipe gives: the plain loop, all levers, and all but one, in turns within one run."""

import functools
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.environment import Telemetry
from bench.interleaving import interleaved
from bench.numerics import numerics
from bench.tasks.wgan import begun, load_split, new_sample, new_writer
from bench.tasks.wgan_plain import plain_loop
from bench.tasks.wgan_steps import Step
from bench.tasks.wgan_training import WganTrainer, check_runnable
from bench.timing import Deadline, cpu_s, now_s, synchronize
from loaders.batches import Dataset, Split
from models.recipes.wgan import CriticSteps, Stage, WganRecipe
from reports.reading import load, read_unfinished
from reports.schema import RunStatus, Sample
from reports.store import RunWriter

BENCHMARK = "wgan ablation"
BASELINE, ALL = "baseline", "all levers"
REQUEST_KEYS = ("data", "only_class", "device", "seed", "rounds", "cycles")
IMAGES = 4096  # that a turn's batches are drawn from; each process holds them
# The first critic loss, before any update, of the same weights, images and noise: what another order of sums in float32
# may make of it; on a GPU PyTorch's convolutions round their inputs to TensorFloat-32's 11 bits, the plain loop's too.
LOSS_TOLERANCE = {"cpu": 1e-3, "cuda": 5e-2}
FIT = 0.8  # of the cores that a turn of a CPU should have had; loops of one thread and waits for memory take some


@dataclass(frozen=True, kw_only=True)
class AblationRequest:
    """What is asked of one ablation.

    Attributes:
        recipe: with all overrides applied; its levers are what is left out one by one.
        data: as `WganRequest`.
        only_class: as `WganRequest`.
        device: "cpu" or "cuda".
        seed: of all contenders.
        rounds: in which each contender has one turn.
        cycles: of a turn: so many generator steps, with the usual critic steps before each.

    Raises:
        ValueError: if a number is out of range.
    """

    recipe: WganRecipe
    data: str
    only_class: str = ""
    device: str
    seed: int = 0
    rounds: int = 12
    cycles: int = 1

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.cycles < 1:
            raise ValueError(f"rounds is {self.rounds}, cycles {self.cycles}; expected at least 1")

    def stored(self) -> dict[str, Any]:
        """Returns what a record keeps of the request, so that the run can be resumed."""
        return {"benchmark": BENCHMARK, **{key: getattr(self, key) for key in REQUEST_KEYS}}

    def variants(self) -> dict[str, WganRecipe]:
        """Returns the recipe of each contender: the plain loop's, all levers, all but each, and, at float32, bf16 too.

        Every cycle takes the recipe's usual number of critic steps, and the stage does not end.
        """
        steady = replace(
            self.recipe,
            critic_steps=CriticSteps(usual=self.recipe.critic_steps.usual, long_until=0, long_every=0),
            stages=(Stage(epochs=1e6, lr=self.recipe.stages[0].lr, long_start=False),),
        )
        variants = {BASELINE: steady.without(*steady.levers()), ALL: steady}
        if steady.precision == "fp32":
            variants[f"{ALL}, bf16"] = replace(steady, precision="bf16")
        levers = steady.levers()
        if len(levers) > 1:
            variants |= {f"without {lever.rpartition('.')[2]}": steady.without(lever) for lever in levers}
        return variants


@dataclass(frozen=True)
class TurnDone:
    """What one turn took.

    Attributes:
        critic_s: of the critic's steps.
        generator_s: of the generator's.
        cpu_s: of all threads of the process.
        critic_losses: of each step.
    """

    critic_s: float
    generator_s: float
    cpu_s: float
    critic_losses: tuple[float, ...]


@dataclass(frozen=True)
class WganContender:
    """Trains one variant, a turn at a time; see `bench.interleaving`.

    Attributes:
        recipe: of the variant.
        plain: by the plain loop.
        images_NHWC: uint8 [N, S, S, 3].
        device: "cpu" or "cuda".
        seed: as the other contenders'.
        cycles: of a turn.
    """

    recipe: WganRecipe
    plain: bool
    images_NHWC: npt.NDArray[np.uint8]
    device: str
    seed: int
    cycles: int

    def __call__(self, stack: ExitStack) -> Callable[[], TurnDone]:
        """Gets ready: networks on the device, nothing compiled."""
        device = torch.device(self.device)
        stack.enter_context(numerics(seed=self.seed, keep_heap=self.recipe.implementations.keep_heap))
        labels = torch.zeros(len(self.images_NHWC), dtype=torch.int64)
        dataset = Dataset("part", torch.from_numpy(self.images_NHWC), labels, ("all",), "")
        if self.plain:
            steps = plain_loop(self.recipe, dataset, device=device, seed=self.seed)
        else:
            steps = WganTrainer(self.recipe, dataset, device=device, seed=self.seed).train()
        return functools.partial(self._turn, steps, device)

    def _turn(self, steps: Iterator[Step], device: torch.device) -> TurnDone:
        critic_s, generator_s, begun_cpu_s = 0.0, 0.0, cpu_s()
        losses: list[torch.Tensor] = []
        for _ in range(self.cycles):
            synchronize(device)
            begun_s = now_s()
            losses += [next(steps).loss for _ in range(self.recipe.critic_steps.usual)]
            synchronize(device)
            between_s = now_s()
            assert next(steps).kind == "generator", "a cycle of an ablation is never cut short"
            synchronize(device)
            critic_s, generator_s = critic_s + between_s - begun_s, generator_s + now_s() - between_s
        return TurnDone(critic_s, generator_s, cpu_s() - begun_cpu_s, tuple(torch.stack(losses).tolist()))


class AblationRun:
    """One run of a request: turns, recorded as they come.

    Args:
        request: what to run.
        split: from `load_split`.
        writer: where records go.
        rounds_done: that the records hold already, whole.
        deadline: no turn is begun after it.
    """

    def __init__(
        self,
        request: AblationRequest,
        split: Split,
        writer: RunWriter,
        *,
        rounds_done: int = 0,
        deadline: Deadline | None = None,
    ) -> None:
        self.request, self.split, self.writer, self.rounds_done = request, split, writer, rounds_done
        self.deadline = deadline or Deadline(None)

    def execute(self, observe: Callable[[str], None]) -> RunStatus:
        """Runs what is left and ends the records; the first round is warm-up, for all alike.

        Args:
            observe: is told each turn in a line.

        Returns:
            How it ended: "failed" if a variant that must compute the same does not.

        Raises:
            KeyboardInterrupt: after the records have been ended as interrupted.
            ContenderFailed: if a variant cannot run; what was measured is recorded.
        """
        request, variants = self.request, self.request.variants()
        device = torch.device(request.device)
        images = _images(request, self.split)
        contenders = {
            name: WganContender(recipe, name == BASELINE, images, request.device, request.seed, request.cycles)
            for name, recipe in variants.items()
        }
        with self.writer, Telemetry(device.index or 0 if device.type == "cuda" else None) as telemetry:
            first_losses: dict[str, float] = {}
            shares: list[float] = []
            rounds = request.rounds + 1 + bool(self.rounds_done)  # each start has a warm-up of its own
            for taken in interleaved(contenders, rounds, first=self.rounds_done, seed=request.seed):
                done, recipe = taken.result, variants[taken.name]
                phase = "steady" if taken.round > self.rounds_done else "warm-up"
                at = {"round": taken.round, "slot": taken.slot, "phase": phase, **telemetry.read()}
                self.writer.add(*self._samples(taken.name, recipe, done, at))
                steps = len(done.critic_losses)
                shares.append(done.cpu_s / (done.critic_s + done.generator_s) / torch.get_num_threads())
                rate = steps / (done.critic_s + done.generator_s)
                observe(f"round {taken.round} of {rounds - 1}, {taken.name}: {rate:.3g} critic it/s")
                if taken.round == self.rounds_done:
                    first_losses[taken.name] = done.critic_losses[0]
                    if len(first_losses) == len(variants) and (wrong := self._compared(first_losses, variants)):
                        self.writer.finish("failed", wrong)
                        return "failed"
                if self.deadline.expired():
                    self.writer.note(f"stopped in round {taken.round}: the budget is spent")
                    self.writer.finish("stopped")
                    return "stopped"
            if device.type == "cpu" and (share := statistics.median(shares)) < FIT:
                self.writer.note(
                    f"the turns had {100 * share:.0f}% of {torch.get_num_threads()} cores: others were at work, and "
                    "the CPU time of a cycle says more than the rates; measure again on an idle machine"
                )
            self.writer.finish()
        return "done"

    def _compared(self, losses: dict[str, float], variants: dict[str, WganRecipe]) -> str:
        """Records how far each variant's first loss is from the plain loop's; returns which is wrong, if one is."""
        wrong = ""
        for name, loss in losses.items():
            error = abs(loss - losses[BASELINE]) / max(abs(losses[BASELINE]), 1e-12)
            exact = not variants[name].changes()
            failed = exact and not error <= LOSS_TOLERANCE[self.request.device]
            if failed:
                wrong = f"{name} does not compute what the plain loop does: its first critic loss is off by {error:.1e}"
            why = {"status": "failed", "error": wrong} if failed else {}
            value = error if math.isfinite(error) else math.nan
            self.writer.add(self._sample(name, variants[name], "first_loss_error", "fraction", value, **why))
        return wrong

    def _samples(self, name: str, recipe: WganRecipe, done: TurnDone, at: dict[str, Any]) -> list[Sample]:
        steps, seconds = len(done.critic_losses), done.critic_s + done.generator_s
        figures = {
            ("critic_iterations_per_s", "it/s"): steps / seconds,
            ("images_per_s", "images/s"): steps * recipe.batch_size / seconds,
            ("critic_step_s", "s"): done.critic_s / steps,
            ("generator_step_s", "s"): done.generator_s / self.request.cycles,
            ("cycle_cpu_s", "s"): done.cpu_s / self.request.cycles,
        }
        return [self._sample(name, recipe, metric, unit, value, **at) for (metric, unit), value in figures.items()]

    def _sample(self, name: str, recipe: WganRecipe, metric: str, unit: str, value: float, **fields: Any) -> Sample:
        parameters = {"levers": recipe.variant, "changes_mathematics": bool(recipe.changes())}
        given = {"variant": name, "seed": self.request.seed, "parameters": parameters} | fields
        sample = new_sample(recipe, self.split, self.request.device, metric, unit, value, **given)
        return replace(sample, benchmark=BENCHMARK)


def new_run(request: AblationRequest, out: Path, command: str, *, deadline: Deadline | None = None) -> AblationRun:
    """Returns a request as a new run under `out`, ready to be executed; see `bench.tasks.wgan.new_run`."""
    split = load_split(request.data, request.recipe.image_size, request.only_class)
    for recipe in request.variants().values():
        check_runnable(recipe, split, torch.device(request.device))
    _images(request, split)
    writer = new_writer(request.recipe, request.stored(), split, out, command)
    return AblationRun(request, split, writer, deadline=deadline)


def _images(request: AblationRequest, split: Split) -> npt.NDArray[np.uint8]:
    """The images of a turn's batches: whole cycles, so that no epoch ends within one."""
    cycle = request.recipe.critic_steps.usual * request.recipe.batch_size
    count = min(IMAGES, len(split.train)) // cycle * cycle
    if not count:
        raise ValueError(
            f"{min(IMAGES, len(split.train))} images do not fill the {request.recipe.critic_steps.usual} batches of "
            f"{request.recipe.batch_size} of one cycle; use --set batch_size=64 or less, or more data"
        )
    return split.train.images_NHWC[:count].numpy()


def is_ablation(path: Path) -> bool:
    """Says whether an unfinished run is an ablation.

    Raises:
        StoreError: if it is finished, or there is none.
    """
    return read_unfinished(path).request.get("benchmark") == BENCHMARK


def resumed_run(path: Path) -> AblationRun:
    """Returns an ablation that was interrupted, stopped or killed, ready to go on with the round that was begun.

    Args:
        path: the run's directory.

    Raises:
        StoreError: see `bench.tasks.wgan.begun`.
        ValueError: the same.
    """
    stored, recipe, split = begun(path, BENCHMARK)
    request = AblationRequest(recipe=recipe, **{key: stored[key] for key in REQUEST_KEYS})
    writer = RunWriter.resume(path)
    samples = load(path)
    counts = samples[samples["metric"] == "critic_step_s"].groupby("round")["variant"].nunique()
    done = int((counts == len(request.variants())).sum())
    return AblationRun(request, split, writer, rounds_done=done)
