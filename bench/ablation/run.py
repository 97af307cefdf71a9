"""Measures the gain of each lever: the plain loop, all levers, and all but each, in turns within one run."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

import torch

from wallclock.bench.ablation.kernel_share import Alone, kernels_alone
from wallclock.bench.ablation.request import AblationRequest
from wallclock.bench.ablation.turns import TurnDone, Turns
from wallclock.bench.measure.turns import Contender, interleaved
from wallclock.bench.runs.task import Task
from wallclock.bench.runs.training import Ended, Observer, TrainingRun, new_sample
from wallclock.reports.store.read import load
from wallclock.reports.store.schema import Sample
from wallclock.reports.views.ablation import ALONE, AS_IS, BASELINE

# Relative error allowed in the first loss, before any update, of equal weights, images and noise: sums in float32 may
# have another order; on a GPU PyTorch's convolutions, the plain loop's too, round inputs to TensorFloat-32's 11 bits.
LOSS_TOLERANCE = {"cpu": 1e-3, "cuda": 5e-2}
FIT = 0.8  # share of the cores that a turn on a CPU should keep busy; single threads and waits for memory take the rest


class Ablation:
    """The contenders of one ablation, and the samples of their figures; `data` are what the task's `load` returned.

    Attributes:
        variants: the recipe of each contender by name; see `bench.ablation.variants`.
        turns: the turns of the task for this request.
    """

    def __init__(self, task: Task, request: AblationRequest, data: Any) -> None:
        self.task, self.request, self.data = task, request, data
        self.variants = request.variants()
        self.turns: Turns = task.training().turns(request, data)

    def contenders(self) -> dict[str, Contender]:
        """Returns the contender of each variant, by name."""
        return {name: self.turns.contender(name, recipe) for name, recipe in self.variants.items()}

    def kernels(self) -> Mapping[str, Contender]:
        """Returns the contenders that time a kernel's part of a step, by the variant that shows the kernel's gain."""
        request = self.request
        return kernels_alone(request.recipe, self.variants, self.turns.stand, device=request.device, seed=request.seed)

    def sample(self, name: str, metric: str, unit: str, value: float, **more: Any) -> Sample:
        """Returns a sample of the variant called `name`."""
        recipe = self.variants[name]
        case = {"levers": recipe.variant, "changes_mathematics": bool(recipe.changes())}
        more["parameters"] = case | more.get("parameters", {})
        more |= {"variant": name, "seed": self.request.seed}
        return new_sample(self.task, self.request, recipe, self.data, metric, unit, value, **more)

    def counted_samples(self) -> list[Sample]:
        """Returns samples of the figures that are known without running a variant."""
        return [
            self.sample(name, metric, unit, value)
            for metric, unit, values in self.turns.counted(self.variants)
            for name, value in values.items()
        ]


class AblationRun(TrainingRun):
    """A run of turns, recorded as they come; a resumed run repeats the round that was unfinished."""

    request: AblationRequest

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ablation = Ablation(self.task, self.request, self.data)
        self.rounds_done = 0  # whole rounds that the records of a resumed run hold
        if self.resumed:
            samples = load(self.writer.path)
            turns = samples[samples["metric"] == self.ablation.turns.STEP_METRIC]
            counts = turns.groupby("round")["variant"].nunique()
            self.rounds_done = int((counts == len(self.ablation.variants)).sum())

    @classmethod
    def check(cls, task: Task, request: AblationRequest, data: Any) -> None:
        """Refuses data that are too few for a turn, with ValueError."""
        Ablation(task, request, data)

    def train(self, observe: Observer) -> Ended:
        """Takes the turns that are left; the first round is warm-up for every contender.

        Returns:
            "failed", with the reason, if a variant's first loss must equal the plain loop's and does not.

        Raises:
            ContenderFailed: if a variant cannot run; what was measured is recorded.
        """
        ablation, seed = self.ablation, self.request.seed
        contenders = ablation.contenders()
        if not self.rounds_done:
            self.writer.add(*ablation.counted_samples())
        first_losses: dict[str, float] = {}
        shares: list[float] = []
        rounds = self.request.rounds + 1 + bool(self.rounds_done)  # each start has a warm-up of its own
        alone = {f"{name}, alone": contender for name, contender in ablation.kernels().items()}
        for taken in interleaved(contenders | alone, rounds, first=self.rounds_done, seed=seed):
            phase = "steady" if taken.round > self.rounds_done else "warm-up"
            at: dict[str, Any] = {"round": taken.round, "slot": taken.slot, "phase": phase, **self.telemetry.read()}
            if taken.name in alone:
                self._record_alone(taken.name.removesuffix(", alone"), taken.result, at, observe)
                continue
            done: TurnDone = taken.result
            self.writer.add(*(ablation.sample(taken.name, *figure, **at) for figure in done.figures))
            shares.append(done.cpu_s / done.seconds / torch.get_num_threads())
            _, unit, rate = done.figures[0]
            observe(f"round {taken.round} of {rounds - 1}, {taken.name}: {rate:.3g} {unit}")
            if taken.round == self.rounds_done:
                first_losses[taken.name] = done.first_loss
                if len(first_losses) == len(contenders) and (wrong := self._compare(first_losses)):
                    return "failed", wrong
            if self.deadline.expired():
                self.writer.note(f"stopped in round {taken.round}: the budget is spent")
                return "stopped", None
        if self.device.type == "cpu" and (share := statistics.median(shares)) < FIT:
            self.writer.note(
                f"the turns had {100 * share:.0f}% of {torch.get_num_threads()} cores: others were at work, and "
                "the CPU time says more than the rates; measure again on an idle machine"
            )
        return "done", None

    def _record_alone(self, variant: str, alone: Alone, at: dict[str, Any], observe: Observer) -> None:
        if not alone.plain_s:  # no layer of this network does what the kernel does
            return
        for metric, seconds in zip(ALONE, (alone.seconds, alone.plain_s), strict=True):
            self.writer.add(self.ablation.sample(variant, metric, "s", seconds, **at))
        observe(
            f"round {at['round']}, kernel of '{variant}' alone: {1e3 * alone.seconds:.3g} ms, "
            f"{1e3 * alone.plain_s:.3g} ms without it"
        )

    def _compare(self, losses: Mapping[str, float]) -> str:
        """Records how far each variant's first loss is from the plain loop's; returns a message if one is wrong."""
        wrong = ""
        if AS_IS in losses:  # a grid's variants are other recipes
            return wrong
        for name, loss in losses.items():
            error = abs(loss - losses[BASELINE]) / max(abs(losses[BASELINE]), 1e-12)
            exact = not self.ablation.variants[name].changes()
            failed = exact and not error <= LOSS_TOLERANCE[self.device.type]
            if failed:
                wrong = f"{name} does not compute what the plain loop does: its first loss is off by {error:.1e}"
            why = {"status": "failed", "error": wrong} if failed else {}
            value = error if math.isfinite(error) else math.nan
            self.writer.add(self.ablation.sample(name, "first_loss_error", "fraction", value, **why))
        return wrong
