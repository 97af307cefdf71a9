"""Runs an ablation's rounds on many machines as Ray tasks, each with one whole GPU or a set number of CPUs.

A cell is one round: all variants take turns on one node, so that figures are compared within a machine. The cells of
each node are a run of their own in the store, with that node's provenance. A cell whose node or worker dies is done
again elsewhere, and marked; it is recorded once it is whole, so that none is lost or counted twice.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wallclock.bench.ablation.run import Ablation
from wallclock.bench.measure.environment import provenance
from wallclock.bench.measure.turns import Contender, Taken, interleaved
from wallclock.bench.runs.ray_calls import call_everywhere, connect
from wallclock.reports.store.schema import Run, RunStatus
from wallclock.reports.store.write import RunWriter, new_run_id, utc_now


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """The result of one round on one node: the turn of each variant that counts (`taken`).

    `node` is Ray's id of the node, `place` its provenance, as fields of `reports.Run`.
    """

    node: str
    place: dict[str, Any]
    taken: tuple[Taken, ...]


def take_round(contenders: Mapping[str, Contender], device: str, number: int, seed: int) -> Cell:
    """Takes one round, in fresh processes of the node that this runs on: a warm-up, and the turn that counts.

    `number` is that of the round; with `seed` it decides the order of turns.
    """
    import ray

    turns = list(interleaved(contenders, 2, seed=seed + 1000 * number))
    taken = tuple(dataclasses.replace(turn, round=number) for turn in turns if turn.round == 1)
    return Cell(node=ray.get_runtime_context().get_node_id(), place=provenance(device), taken=taken)


class ClusterRun:
    """One ablation, whose rounds run on the nodes of a Ray cluster.

    Each node adds its provenance and an id to `run`, and writes under `out`. `cpus` is the number of CPUs for each
    cell, where it needs no GPU.
    """

    def __init__(self, ablation: Ablation, run: Run, out: Path, *, cpus: int) -> None:
        self.ablation, self.run, self.out, self.cpus = ablation, run, out, cpus
        self.writers: dict[str, RunWriter] = {}

    def execute(self, observe: Callable[[str], None]) -> RunStatus:
        """Runs all rounds and closes the records; `observe` is called with a line for each round.

        Raises:
            KeyboardInterrupt: after the records have been closed as interrupted.
            ContenderFailed: if a variant cannot run, or a cell's workers died too often.
            ValueError: if the cluster has no node that could hold a cell.
        """
        request = self.ablation.request
        connect(request.device, self.cpus)
        import ray

        contenders: Any = ray.put(self.ablation.contenders())

        def done(number: int, attempt: int, cell: Cell) -> None:
            self._record(cell, attempt)
            rate = statistics.median(turn.result.figures[0][2] for turn in cell.taken)
            observe(f"round {number} on {cell.place['host']}: {len(cell.taken)} variants, median {rate:.3g}")

        status: RunStatus = "failed"
        try:
            call_everywhere(
                take_round,
                [(contenders, request.device, number, request.seed) for number in range(request.rounds)],
                device=request.device,
                cpus=self.cpus,
                done=done,
                died=lambda number, how: observe(f"round {number}: {how}, done again elsewhere"),
            )
            status = "done"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            for writer in self.writers.values():
                writer.finish(status, None if status == "done" else "the other cells were given up")
        return status

    def _record(self, cell: Cell, attempt: int) -> None:
        """Records a cell in the run of its node, which is created for its first cell."""
        if cell.node not in self.writers:
            notes = (f"node {cell.node}",)
            run = dataclasses.replace(
                self.run, run_id=new_run_id("ablation"), started_utc=utc_now(), notes=notes, **cell.place
            )
            self.writers[cell.node] = RunWriter.create(self.out, run)
            self.writers[cell.node].add(*self.ablation.counted_samples())
        marks = {"parameters": {"attempt": attempt}} if attempt > 1 else {}
        for turn in cell.taken:
            at: dict[str, Any] = {"round": turn.round, "slot": turn.slot, **marks}
            samples = (self.ablation.sample(turn.name, *figure, **at) for figure in turn.result.figures)
            self.writers[cell.node].add(*samples)
