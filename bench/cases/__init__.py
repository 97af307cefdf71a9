"""Cases: operations and loading pipelines measured separately, in steady state."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wallclock.bench.runs.cases import CaseRun


def case_run(benchmark: str) -> "type[CaseRun[Any]]":
    """Returns the class of a benchmark's runs: the `RUN` in the module `run` of its folder, which imports torch."""
    return import_module(f"{__name__}.{benchmark}.run").RUN
