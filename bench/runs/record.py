"""Runs of a recipe: what is recorded when one is begun, and what must hold for it to go on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from wallclock.bench.measure.environment import provenance, resolve_device
from wallclock.bench.measure.numerics import numerics
from wallclock.bench.runs.resume import begun_run, check_same_place
from wallclock.models.recipes.cyclegan import CycleGanRecipe
from wallclock.models.recipes.levers import Levered
from wallclock.models.recipes.recipe import Recipe
from wallclock.models.recipes.wgan import WganRecipe
from wallclock.reports.store.schema import Run
from wallclock.reports.store.write import StoreError, new_run_id, utc_now


class Hashed(Protocol):
    """Data with a hash of all that is in them."""

    @property
    def content_hash(self) -> str:
        """Hexadecimal."""
        ...


R = TypeVar("R", Recipe, WganRecipe, CycleGanRecipe)
D = TypeVar("D", bound=Hashed)


def new_record(name: str, recipe: R, stored: dict[str, Any], data: Hashed, command: str, *notes: str) -> Run:
    """Returns what is known of a new run before it is begun: what was asked, of which recipe, where.

    Args:
        name: what the run's id begins with.
        recipe: that is to be run.
        stored: the request, as records keep it, with "device".
        data: that it is run on.
        command: as typed.
        notes: on it.
    """
    return Run(
        run_id=new_run_id(name),
        started_utc=utc_now(),
        command=command,
        request={**stored, "content_hash": data.content_hash},
        recipe=recipe.resolved(),
        recipe_hash=recipe.hash(),
        notes=notes,
        **_provenance(recipe, stored["device"]),
    )


def change_notes(recipe: Levered) -> tuple[str, ...]:
    """Returns a note for each lever whose losses are not the plain loop's."""
    return tuple(f"this changes what is computed: {change}" for change in recipe.changes())


def begun(path: Path, benchmark: str, kind: type[R], load: Callable[[R, dict[str, Any]], D]) -> tuple[Run, R, D]:
    """Returns an unfinished run, its recipe, and its data.

    Args:
        path: the run's directory.
        benchmark: that its request names.
        kind: of the recipe.
        load: returns the data of a recipe and a stored request.

    Raises:
        StoreError: if the run is finished, being written, or was begun with another recipe or version, on other data or
            another machine: one run is one measurement.
        ValueError: if its device is not there.
    """
    run = begun_run(path, benchmark)
    recipe = kind.from_resolved(run.recipe)
    if recipe.hash() != run.recipe_hash:
        raise StoreError(f"{path} was made with a recipe this version reads otherwise; start a new run")
    stored = run.request
    resolve_device(stored["device"])
    data = load(recipe, stored)
    if data.content_hash != stored["content_hash"]:
        raise StoreError(f"{path} was made with other data than {stored['data']} holds now; start a new run")
    check_same_place(run, _provenance(recipe, stored["device"]), path)
    return run, recipe, data


def _provenance(recipe: R, device: str) -> dict[str, Any]:
    fields = provenance(torch.device(device).type)
    with numerics(seed=0, keep_heap=recipe.implementations.keep_heap) as settings:
        fields["environment"] |= settings
    del fields["environment"]["seed"]  # each sample names its own
    return fields
