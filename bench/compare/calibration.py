"""Calibration of the verdicts: comparisons with a known true answer, simulated and run on this machine."""

import contextlib
import math
import multiprocessing
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wallclock.bench.measure.environment import provenance
from wallclock.bench.measure.processes import time_process
from wallclock.reports.stats.verdicts import Array, Rule
from wallclock.reports.store.schema import Run, RunStatus, Sample
from wallclock.reports.store.write import RunWriter, new_run_id, utc_now
from wallclock.reports.views.calibration import BENCHMARK, tally_verdicts
from wallclock.reports.views.comparison import AGAIN, BASE, HEAD

NOISES = ("normal", "drift", "two clock speeds", "heavy tails", "autocorrelated", "bursts")
SPREAD = 0.03  # standard deviation of the simulated noise as a share of the time, as on a busy machine
WORKLOAD = "for _ in range({}): pass"  # imports nothing, so that the loop makes up most of the process
TARGET_S = 0.06
IDLE, LOADED = "this machine", "this machine, a core busy"


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """A request for a calibration: how many comparisons of each kind it makes.

    Attributes:
        comparisons: number of comparisons of a program with itself, on this machine.
        planted: number of comparisons for each planted worsening, on this machine.
        loaded: number of comparisons of each kind while another process keeps a core busy.
        simulated: number of comparisons for each kind of simulated noise and each worsening.
        rounds: number of rounds in each comparison, at least 6.
        worsenings: slow-downs planted in the head, as shares of its time.
        rule: turns rounds into verdicts (tolerance, error rate).
        seed: seed of the simulated noise and of the order of turns.
    """

    comparisons: int = 200
    planted: int = 40
    loaded: int = 20
    simulated: int = 10_000
    rounds: int = 12
    worsenings: tuple[float, ...] = (0.03, 0.05, 0.10)
    rule: Rule = field(default_factory=Rule)
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.comparisons, self.planted, self.loaded, self.simulated) < 0 or self.rounds < 6:
            raise ValueError(f"comparisons are counts, and rounds is {self.rounds}; expected 6 or more")


def simulated_times(noise: str, comparisons: int, rounds: int, planted: float, seed: int) -> tuple[Array, Array, Array]:
    """Returns simulated times of base, head and base again, [comparisons, rounds] each, with one kind of noise.

    A round has three consecutive slots, which base, head and the second base take in an order drawn for each round.

    Args:
        noise: one of `NOISES`: "normal"; "drift", where the machine also slows by a fifth from the first slot to the
            last; "two clock speeds", where one turn in four runs 8% slower; "heavy tails", Student's t with 2 degrees
            of freedom; "autocorrelated", with a correlation of 0.8 between neighbouring slots; "bursts", where one slot
            in forty begins five that run 30% slower.
        comparisons: number of comparisons.
        rounds: number of rounds in each comparison.
        planted: share by which the head takes longer than the base.
        seed: seed of the noise and of the order of slots.
    """
    draw = np.random.default_rng([seed, NOISES.index(noise), round(1e6 * planted)])
    shape = (comparisons, rounds, 3)
    slots = draw.normal(0, SPREAD, shape)
    if noise == "drift":
        slots += np.linspace(0, 0.2, 3 * rounds).reshape(1, rounds, 3)
    elif noise == "two clock speeds":
        slots = 0.2 * slots + 0.08 * (draw.random(shape) < 0.25)
    elif noise == "heavy tails":
        slots = SPREAD * draw.standard_t(2, shape)
    elif noise == "autocorrelated":
        fresh = slots.reshape(comparisons, -1)
        for at in range(1, fresh.shape[1]):
            fresh[:, at] = 0.8 * fresh[:, at - 1] + math.sqrt(1 - 0.8**2) * fresh[:, at]
    elif noise == "bursts":
        begun = draw.random((comparisons, 3 * rounds)) < 1 / 40
        struck = [np.pad(begun, ((0, 0), (later, 0)))[:, : 3 * rounds] for later in range(5)]
        slots += 0.3 * np.any(struck, axis=0).reshape(shape)
    order = draw.permuted(np.broadcast_to(np.arange(3), shape), axis=-1)
    base, head, again = (np.take_along_axis(slots, order, axis=-1)[..., arm] for arm in range(3))
    return np.exp(base), (1 + planted) * np.exp(head), np.exp(again)


class CalibrationRun:
    """One calibration, whose samples are recorded in a new run under `out` as they are taken."""

    def __init__(self, request: CalibrationRequest, out: Path, command: str) -> None:
        run = Run(
            run_id=new_run_id("calibration"),
            started_utc=utc_now(),
            command=command,
            request={"benchmark": BENCHMARK, **asdict(request)},
            **provenance("cpu"),
        )
        self.request, self.writer = request, RunWriter.create(out, run)

    def execute(self, observe: Callable[[str], None]) -> RunStatus:
        """Makes all comparisons, simulated ones first, and closes the records; `observe` gets each line of progress.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once the records are closed as "interrupted".
            RuntimeError: if the program that is timed exits with an error.
        """
        with self.writer:
            if self.request.simulated:
                self._simulate(observe)
            if self.request.comparisons or self.request.planted or self.request.loaded:
                self._measure(observe)
            self.writer.finish()
        return "done"

    def _simulate(self, observe: Callable[[str], None]) -> None:
        request = self.request
        for noise in NOISES:
            for planted in sorted({0.0, request.rule.tolerance, *request.worsenings}):
                sides = simulated_times(noise, request.simulated, request.rounds, planted, request.seed)
                for metric, value in tally_verdicts(*sides, planted, request.rule).items():
                    unit = "fraction" if metric.endswith(("power", "detectable")) else "count"
                    self.writer.add(_sample(metric, unit, value, f"{noise}, simulated", planted))
            observe(f"simulated {request.simulated:,} comparisons of each kind: {noise}")

    def _measure(self, observe: Callable[[str], None]) -> None:
        """Measures the comparisons in a shuffled order, so that every kind is spread over the whole time."""
        request = self.request
        loops, more = _size_workload()
        for noise, same, each in (
            (IDLE, request.comparisons, request.planted),
            (LOADED, request.loaded, request.loaded),
        ):
            kinds = [0.0] * same + [w for w in request.worsenings for _ in range(each)]
            random.Random(request.seed).shuffle(kinds)
            with _keep_core_busy() if noise == LOADED and kinds else contextlib.nullcontext():
                for number, planted in enumerate(kinds):
                    self._compare(noise, planted, number, loops, loops + round(planted * more))
                    if number % 20 == 19 or number + 1 == len(kinds):
                        observe(f"{noise}: {number + 1} of {len(kinds)} comparisons of {request.rounds} rounds")

    def _compare(self, noise: str, planted: float, number: int, loops: int, head_loops: int) -> None:
        samples = []
        for round_ in range(self.request.rounds):
            arms = [(BASE, loops), (HEAD, head_loops), (AGAIN, loops)]
            random.Random(f"{self.request.seed} {noise} {number} {round_}").shuffle(arms)
            for slot, (arm, count) in enumerate(arms):
                at = {"arm": arm, "round": round_, "slot": slot, "parameters": {"comparison": number}}
                samples.append(_sample("process_s", "s", _seconds(count), noise, planted, **at))
        self.writer.add(*samples)


def _sample(metric: str, unit: str, value: float, case: str, planted: float, **fields: Any) -> Sample:
    parameters = {"planted": planted} | fields.pop("parameters", {})
    same: dict[str, Any] = {"benchmark": BENCHMARK, "better": "lower", "parameters": parameters}
    return Sample(metric=metric, unit=unit, value=value, case=case, **same, **fields)


def _size_workload() -> tuple[int, float]:
    """Returns two loop counts: for a process of `TARGET_S`, and for a loop that lasts as long as that whole process."""
    empty = statistics.median(_seconds(0) for _ in range(9))
    loops = 1_000_000
    one = (statistics.median(_seconds(loops) for _ in range(9)) - empty) / loops
    loops = round(max(0.01, TARGET_S - empty) / one)
    whole = statistics.median(_seconds(loops) for _ in range(9))
    return loops, whole / one


def _seconds(loops: int) -> float:
    """Returns the seconds that a fresh process with this number of loops takes."""
    command = [sys.executable, "-I", "-S", "-c", WORKLOAD.format(loops)]
    done = time_process(command, directory=Path(), environment={}, timeout_s=60.0)
    if done.code:
        raise RuntimeError(f"the workload ended with {done.code}: {done.errors.strip()}")
    return done.seconds


@contextlib.contextmanager
def _keep_core_busy() -> Iterator[None]:
    """Keeps a core busy with another process while the block runs."""
    neighbour = multiprocessing.get_context("spawn").Process(target=_work, daemon=True)
    neighbour.start()
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.join()


def _work() -> None:
    while True:
        sum(range(10_000_000))
