"""Records of a recipe's runs: written when a run begins, and checked when it is resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wallclock.bench.measure.environment import provenance, resolve_device
from wallclock.bench.measure.numerics import numerics
from wallclock.bench.runs.request import Request
from wallclock.bench.runs.resume import begun_run, check_same_place
from wallclock.reports.store.layout import StoreError
from wallclock.reports.store.schema import Run
from wallclock.reports.store.write import new_run_id, utc_now


def new_record(name: str, recipe: Any, stored: dict[str, Any], data: Any, command: str, *notes: str) -> Run:
    """Returns the record of a new run before it begins: its request, its recipe and its provenance.

    The run's id begins with `name`; `stored` is the request as records keep it, `command` the command line as typed.
    """
    return Run(
        run_id=new_run_id(name),
        started_utc=utc_now(),
        command=command,
        request={**stored, "content_hash": data.content_hash},
        recipe=recipe.resolved(),
        recipe_hash=recipe.hash(),
        notes=notes,
        **measured_at(stored["device"], keep_heap=recipe.implementations.keep_heap),
    )


def change_notes(recipe: Any) -> tuple[str, ...]:
    """Returns a note for each lever whose losses differ from the plain loop's."""
    return tuple(f"this changes what is computed: {change}" for change in recipe.changes())


def begun(path: Path, kind: type[Request], recipe: type[Any], load: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Returns the request of an unfinished run in the directory `path`, and the data that `load` returns for it.

    `kind` is the class of the request, `recipe` that of its recipe.

    Raises:
        StoreError: if the run is finished, being written, or was begun with another recipe or version, on other data or
            another machine: one run is one measurement.
        ValueError: if its device is missing.
    """
    run = begun_run(path, kind.BENCHMARK)
    request = kind.from_stored(recipe.from_resolved(run.recipe), run.request)
    if request.recipe.hash() != run.recipe_hash:
        raise StoreError(f"{path} was made with a recipe this version reads otherwise; start a new run")
    resolve_device(request.device)
    data = load(request)
    here = measured_at(request.device, keep_heap=request.recipe.implementations.keep_heap)
    check_same_place(run, here, path, data)
    return request, data


def measured_at(device: str, *, keep_heap: bool, seeded: bool = False) -> dict[str, Any]:
    """Returns the provenance of a run, with the numeric settings that it is measured under.

    `seeded` says whether the seed of these settings decides a result; otherwise samples or cases name their own seeds.
    """
    fields = provenance(device)
    with numerics(seed=0, keep_heap=keep_heap) as settings:
        fields["environment"] |= settings
    if not seeded:
        del fields["environment"]["seed"]
    return fields
