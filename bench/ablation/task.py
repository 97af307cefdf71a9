"""A task whose levers `bench.ablation.run` measures: how an ablation of it is begun, and gone on with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wallclock.bench.ablation.run import Ablation, AblationRun, TurnsRequest, rounds_done
from wallclock.bench.measure.timing import Deadline
from wallclock.bench.runs.record import begun, new_record
from wallclock.reports.store.schema import Run
from wallclock.reports.store.write import RunWriter


@dataclass(frozen=True, kw_only=True)
class AblatedTask:
    """What an ablation has to know of a task.

    Attributes:
        request: kind of its requests.
        recipe: kind of its recipes.
        load: returns the data of a recipe and a stored request.
        check: refuses a recipe that cannot run on these data and this device, with ValueError.
        ablation: of a request and its data.
        metric: that each turn records once.
        notes: on a run of a recipe and its data.
    """

    request: type[TurnsRequest]
    recipe: Any
    load: Callable[[Any, dict[str, Any]], Any]
    check: Callable[[Any, Any, torch.device], None]
    ablation: Callable[[Any, Any], Ablation]
    metric: str
    notes: Callable[[Any, Any], tuple[str, ...]]

    def planned(self, request: TurnsRequest, command: str) -> tuple[Ablation, Run]:
        """Returns a request's ablation, and what is known of its run before it is begun.

        Args:
            request: what is asked for.
            command: as typed.

        Raises:
            DataError: if the data cannot be used.
            ValueError: if a variant cannot run on them, or on this device.
        """
        recipe, stored = request.recipe, request.stored()
        data = self.load(recipe, stored)
        for variant in request.variants().values():
            self.check(variant, data, torch.device(request.device))
        name = f"{request.BENCHMARK}-{recipe.name}".replace(" ", "-")
        run = new_record(name, recipe, stored, data, command, *self.notes(recipe, data))
        return self.ablation(request, data), run

    def new_run(
        self, request: TurnsRequest, out: Path, command: str, *, deadline: Deadline | None = None
    ) -> AblationRun:
        """Returns a request as a new run under `out`, ready to be executed; see `planned`."""
        ablation, run = self.planned(request, command)
        return AblationRun(ablation, RunWriter.create(out, run), deadline=deadline)

    def resumed_run(self, path: Path) -> AblationRun:
        """Returns an ablation that was interrupted, stopped or killed, ready to go on with the round that was begun.

        Args:
            path: the run's directory.

        Raises:
            StoreError: see `bench.runs.record.begun`.
            ValueError: the same.
        """
        run, recipe, data = begun(path, self.request.BENCHMARK, self.recipe, self.load)
        ablation = self.ablation(self.request.from_stored(recipe, run.request), data)
        writer = RunWriter.resume(path)
        return AblationRun(ablation, writer, rounds_done=rounds_done(writer, ablation, self.metric))
