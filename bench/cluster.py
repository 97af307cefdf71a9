"""An ablation's rounds over many machines, as Ray tasks: each has one whole GPU, or a set number of CPUs.

A cell is a round: all variants in turns, on one node, so that what is compared was measured in one place. Each node's
cells are a run of their own in the store, with that node's provenance. A cell whose node or worker dies is done again
elsewhere, and marked; it is recorded when it is whole, and so never lost and never counted twice.
"""

import dataclasses
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.ablation import Ablation
from bench.environment import package_version, provenance
from bench.interleaving import DIED, Contender, ContenderFailed, Taken, interleaved
from reports.schema import Run, RunStatus
from reports.store import RunWriter, new_run_id, utc_now

ATTEMPTS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """What one task brings back.

    Attributes:
        node: Ray's name of the node.
        place: its provenance, fields of `reports.Run`.
        taken: of each variant the turn that counts.
    """

    node: str
    place: dict[str, Any]
    taken: tuple[Taken, ...]


def unavailable() -> str:
    """Returns why cells cannot be sent to other machines; empty if they can."""
    return "" if package_version("ray") else "Ray is not installed; uv sync --extra ray"


def measured(contenders: Mapping[str, Contender], device: str, number: int, seed: int) -> Cell:
    """Takes one round, in fresh processes of the node that this runs on: a warm-up, and the turn that counts.

    Args:
        contenders: of the ablation.
        device: "cpu" or "cuda".
        number: of the round.
        seed: of the order.
    """
    import ray

    turns = list(interleaved(contenders, 2, seed=seed + 1000 * number))
    taken = tuple(dataclasses.replace(turn, round=number) for turn in turns if turn.round == 1)
    return Cell(node=ray.get_runtime_context().get_node_id(), place=provenance(device), taken=taken)


class ClusterRun:
    """One ablation, its rounds sent to whatever nodes the Ray cluster has.

    Args:
        ablation: what to run.
        run: of the records, but for place and id.
        out: folder that holds runs.
        cpus: of a cell, where it needs no GPU.
    """

    def __init__(self, ablation: Ablation, run: Run, out: Path, *, cpus: int) -> None:
        if why_not := unavailable():
            raise ValueError(why_not)
        self.ablation, self.run, self.out, self.cpus = ablation, run, out, cpus
        self.writers: dict[str, RunWriter] = {}

    def execute(self, observe: Callable[[str], None]) -> RunStatus:
        """Runs all rounds and ends the records.

        Args:
            observe: is told each round in a line.

        Raises:
            KeyboardInterrupt: after the records have been ended as interrupted.
            ContenderFailed: if a variant cannot run, or a cell's workers died too often.
            ValueError: if the cluster has no node that could hold a cell.
        """
        import ray

        if not ray.is_initialized():
            ray.init(address="auto" if _cluster_runs() else None, log_to_driver=False, include_dashboard=False)
        gpus = 1 if self.ablation.device == "cuda" else 0
        self._check_room(ray, gpus)
        ablation = self.ablation
        contenders: Any = ray.put(
            {name: ablation.contender(name, recipe) for name, recipe in ablation.variants.items()}
        )
        task = ray.remote(max_retries=0, num_gpus=gpus, num_cpus=1 if gpus else self.cpus)(measured)
        status: RunStatus = "failed"
        waiting: dict[Any, tuple[int, int]] = {}  # of each cell under way its round and attempt

        def send(number: int, attempt: int) -> None:
            waiting[task.remote(contenders, ablation.device, number, ablation.seed)] = number, attempt

        for number in range(ablation.rounds):
            send(number, 1)
        try:
            while waiting:
                (ready,), _ = ray.wait(list(waiting), num_returns=1)
                number, attempt = waiting.pop(ready)
                try:
                    cell: Cell = ray.get(ready)
                except ray.exceptions.RayError as error:
                    why = str(error).strip().splitlines()[-1]
                    raised = isinstance(error, ray.exceptions.RayTaskError)
                    if raised and DIED not in why:  # what was run, not what ran it
                        raise ContenderFailed(f"round {number}: {why}") from None
                    if attempt == ATTEMPTS:
                        raise ContenderFailed(f"round {number}: a worker died {ATTEMPTS} times; {why}") from None
                    observe(f"round {number}: {type(error).__name__}, done again elsewhere")
                    send(number, attempt + 1)
                    continue
                self._record(cell, attempt)
                rate = statistics.median(turn.result.figures[0][2] for turn in cell.taken)
                observe(f"round {number} on {cell.place['host']}: {len(cell.taken)} variants, median {rate:.3g}")
            status = "done"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            for waited in waiting:
                ray.cancel(waited, force=True)
            for writer in self.writers.values():
                writer.finish(status, None if status == "done" else "the other cells were given up")
        return status

    def _check_room(self, ray: Any, gpus: int) -> None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        needed = {"GPU": gpus} if gpus else {"CPU": self.cpus}
        if not any(all(node.get(name, 0) >= amount for name, amount in needed.items()) for node in nodes):
            told = ", ".join(f"{amount:g} {name}" for name, amount in needed.items())
            raise ValueError(f"no node of the cluster has {told} for a cell; see `ray status`, or give --cpus")

    def _record(self, cell: Cell, attempt: int) -> None:
        """Records a cell in the run of its node, which begins with the first."""
        if cell.node not in self.writers:
            run = dataclasses.replace(
                self.run,
                run_id=new_run_id("ablation"),
                started_utc=utc_now(),
                notes=(f"node {cell.node}",),
                **cell.place,
            )
            self.writers[cell.node] = RunWriter.create(self.out, run)
            self.writers[cell.node].add(*self.ablation.flop_samples())
        marks = {"parameters": {"attempt": attempt}} if attempt > 1 else {}
        for turn in cell.taken:
            at: dict[str, Any] = {"round": turn.round, "slot": turn.slot, **marks}
            self.writers[cell.node].add(
                *(self.ablation.sample_of(turn.name, *figure, **at) for figure in turn.result.figures)
            )


def _cluster_runs() -> bool:
    """Whether this machine belongs to a cluster that has been started; without one, Ray starts a node of its own."""
    return "RAY_ADDRESS" in os.environ or Path("/tmp/ray/ray_current_cluster").exists()
