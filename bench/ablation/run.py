"""What each lever of a recipe gives: the plain loop, all levers, and all but each, in turns within one run."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import torch

from wallclock.bench.ablation.kernel_share import Alone
from wallclock.bench.ablation.variants import Variants
from wallclock.bench.measure.telemetry import Telemetry
from wallclock.bench.measure.timing import Deadline
from wallclock.bench.measure.turns import Contender, interleaved
from wallclock.reports.store.read import load
from wallclock.reports.store.schema import RunStatus, Sample
from wallclock.reports.store.write import RunWriter
from wallclock.reports.views.ablation import ALONE, AS_IS, BASELINE

# The first loss, before any update, of the same weights, images and noise: what another order of sums in float32 may
# make of it; on a GPU PyTorch's convolutions round their inputs to TensorFloat-32's 11 bits, the plain loop's too.
LOSS_TOLERANCE = {"cpu": 1e-3, "cuda": 5e-2}
FIT = 0.8  # of the cores that a turn of a CPU should have had; loops of one thread and waits for memory take some


@dataclass(frozen=True)
class TurnDone:
    """What one turn took.

    Attributes:
        seconds: by the clock.
        cpu_s: of all threads of the process.
        first_loss: of its first step.
        figures: metric, unit and value of what is recorded; the first is the rate.
    """

    seconds: float
    cpu_s: float
    first_loss: float
    figures: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True, kw_only=True)
class TurnsRequest:
    """What is asked of one ablation; each task has its own.

    Attributes:
        BENCHMARK: name of it in the records.
        recipe: with all overrides applied; see `models.recipes.levers`.
        data: as the task's run takes it.
        device: "cpu" or "cuda".
        seed: of all contenders.
        rounds: in which each contender has one turn.
        turn_length: steps of a turn, as the task counts them.
        choice: which variants there are.

    Raises:
        ValueError: if a number is out of range.
    """

    BENCHMARK: ClassVar[str]

    recipe: Any
    data: str
    device: str
    seed: int = 0
    rounds: int = 12
    turn_length: int = 1
    choice: Variants = Variants()

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.turn_length < 1:
            raise ValueError(f"rounds is {self.rounds}, turn_length {self.turn_length}; expected at least 1")

    def stored(self) -> dict[str, Any]:
        """Returns what a record keeps of the request, so that the run can be resumed."""
        own = {name: getattr(self, name) for name in self._plain_fields()}
        return {"benchmark": self.BENCHMARK, **own, "variants": self.choice.stored()}

    @classmethod
    def from_stored(cls, recipe: Any, stored: dict[str, Any]) -> Self:
        """Returns the request of which `stored` is what a record keeps."""
        own = {name: stored[name] for name in cls._plain_fields()}
        return cls(recipe=recipe, choice=Variants.from_stored(stored["variants"]), **own)

    @classmethod
    def _plain_fields(cls) -> list[str]:
        return [f.name for f in fields(cls) if f.name not in ("recipe", "choice")]

    def variants(self) -> dict[str, Any]:
        """Returns the recipe of each contender; see `bench.ablation.variants`."""
        return self.choice.of(self.steady(self.recipe))

    @staticmethod
    def steady(recipe: Any) -> Any:
        """Returns the recipe with every turn alike, and no end."""
        return recipe


Counted = Sequence[tuple[str, str, Mapping[str, float]]]  # metric, unit, and of each variant its value
Turns = Callable[[str, Any], Contender]  # of a variant's name and recipe; the turns return `TurnDone`


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One ablation of one task.

    Attributes:
        variants: recipe of each contender; see `bench.ablation.variants`.
        contender: makes one.
        sample: makes a sample from recipe, metric, unit, value and further fields.
        device: "cpu" or "cuda".
        seed: of all contenders.
        rounds: in which each has one turn, besides a warm-up.
        alone: what times a kernel's part of a step with it and without, by the variant that shows what the kernel
            gives; a turn returns `bench.ablation.kernel_share.Alone`.
        counted: what is known of each variant without running it.
    """

    variants: Mapping[str, Any]
    contender: Turns
    sample: Callable[..., Sample]
    device: str
    seed: int
    rounds: int
    alone: Mapping[str, Contender] = field(default_factory=dict)
    counted: Counted = ()

    def sample_of(self, name: str, metric: str, unit: str, value: float, **more: Any) -> Sample:
        """Returns a sample of a variant, by its name."""
        recipe = self.variants[name]
        parameters = {"levers": recipe.variant, "changes_mathematics": bool(recipe.changes())}
        parameters |= more.pop("parameters", {})
        return self.sample(recipe, metric, unit, value, variant=name, seed=self.seed, parameters=parameters, **more)

    def counted_samples(self) -> list[Sample]:
        """Returns what is counted of each variant."""
        return [
            self.sample_of(name, metric, unit, value)
            for metric, unit, values in self.counted
            for name, value in values.items()
        ]


class AblationRun:
    """One run: turns, recorded as they come.

    Args:
        ablation: what to run.
        writer: where records go.
        rounds_done: that the records hold already, whole.
        deadline: no turn is begun after it.
    """

    def __init__(
        self, ablation: Ablation, writer: RunWriter, *, rounds_done: int = 0, deadline: Deadline | None = None
    ) -> None:
        self.ablation, self.writer, self.rounds_done = ablation, writer, rounds_done
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
        ablation, device = self.ablation, torch.device(self.ablation.device)
        contenders = {name: ablation.contender(name, recipe) for name, recipe in ablation.variants.items()}
        with self.writer, Telemetry.of(device, self.writer.note) as telemetry:
            if not self.rounds_done:
                self.writer.add(*ablation.counted_samples())
            first_losses: dict[str, float] = {}
            shares: list[float] = []
            rounds = ablation.rounds + 1 + bool(self.rounds_done)  # each start has a warm-up of its own
            alone = {f"{name}, alone": contender for name, contender in ablation.alone.items()}
            for taken in interleaved(contenders | alone, rounds, first=self.rounds_done, seed=ablation.seed):
                phase = "steady" if taken.round > self.rounds_done else "warm-up"
                at: dict[str, Any] = {"round": taken.round, "slot": taken.slot, "phase": phase, **telemetry.read()}
                if taken.name in alone:
                    self._record_alone(taken.name.removesuffix(", alone"), taken.result, at, observe)
                    continue
                done: TurnDone = taken.result
                self.writer.add(*(ablation.sample_of(taken.name, *figure, **at) for figure in done.figures))
                shares.append(done.cpu_s / done.seconds / torch.get_num_threads())
                _, unit, rate = done.figures[0]
                observe(f"round {taken.round} of {rounds - 1}, {taken.name}: {rate:.3g} {unit}")
                if taken.round == self.rounds_done:
                    first_losses[taken.name] = done.first_loss
                    if len(first_losses) == len(contenders) and (wrong := self._compared(first_losses)):
                        self.writer.finish("failed", wrong)
                        return "failed"
                if self.deadline.expired():
                    self.writer.note(f"stopped in round {taken.round}: the budget is spent")
                    self.writer.finish("stopped")
                    return "stopped"
            if device.type == "cpu" and (share := statistics.median(shares)) < FIT:
                self.writer.note(
                    f"the turns had {100 * share:.0f}% of {torch.get_num_threads()} cores: others were at work, and "
                    "the CPU time says more than the rates; measure again on an idle machine"
                )
            self.writer.finish()
        return "done"

    def _record_alone(self, variant: str, alone: Alone, at: dict[str, Any], observe: Callable[[str], None]) -> None:
        if not alone.plain_s:  # no layer of this network does what the kernel does
            return
        for metric, seconds in zip(ALONE, (alone.seconds, alone.plain_s), strict=True):
            self.writer.add(self.ablation.sample_of(variant, metric, "s", seconds, **at))
        observe(
            f"round {at['round']}, kernel of '{variant}' alone: {1e3 * alone.seconds:.3g} ms, "
            f"{1e3 * alone.plain_s:.3g} ms without it"
        )

    def _compared(self, losses: dict[str, float]) -> str:
        """Records how far each variant's first loss is from the plain loop's; returns which is wrong, if one is."""
        wrong = ""
        if AS_IS in losses:  # a grid's variants are other recipes
            return wrong
        for name, loss in losses.items():
            error = abs(loss - losses[BASELINE]) / max(abs(losses[BASELINE]), 1e-12)
            exact = not self.ablation.variants[name].changes()
            failed = exact and not error <= LOSS_TOLERANCE[self.ablation.device]
            if failed:
                wrong = f"{name} does not compute what the plain loop does: its first loss is off by {error:.1e}"
            why = {"status": "failed", "error": wrong} if failed else {}
            value = error if math.isfinite(error) else math.nan
            self.writer.add(self.ablation.sample_of(name, "first_loss_error", "fraction", value, **why))
        return wrong


def rounds_done(writer: RunWriter, ablation: Ablation, metric: str) -> int:
    """Returns how many rounds the records of a run hold whole.

    Args:
        writer: of the run.
        ablation: that goes on.
        metric: that each turn records once.
    """
    samples = load(writer.path)
    counts = samples[samples["metric"] == metric].groupby("round")["variant"].nunique()
    return int((counts == len(ablation.variants)).sum())
