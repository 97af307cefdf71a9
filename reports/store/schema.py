"""What a record holds: one `Run`, and the `Sample`s measured in it. Standard library only.

Beside its type each field has its description, from which `reports.docs.schema_doc` makes docs/schema.md.
"""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

SCHEMA_VERSION = 1

Better = Literal["lower", "higher"]
Phase = Literal["warm-up", "steady"]
SampleStatus = Literal["ok", "missed", "diverged", "interrupted", "failed"]
RunStatus = Literal["done", "stopped", "interrupted", "diverged", "failed", "running", "unfinished"]
RESUMABLE: tuple[RunStatus, ...] = ("running", "unfinished", "interrupted", "stopped")
# Where and with what a run was measured: samples of two such places are never one measurement.
PLACE = ("host", "cpu", "cpu_cores", "gpu_name", "gpu_driver", "gpu_power_limit_w", "torch", "source_hash")
SLOWED = "the GPU was slowed down"  # beginning of a note about throttling
ParameterValue = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of `runs`: where, when and with what the samples of a run were measured."""

    run_id: Annotated[str, "also the name of its directory"]
    started_utc: Annotated[str, "ISO 8601 with a trailing Z"]
    command: Annotated[str, "the command line as typed"]
    request: Annotated[dict[str, Any], "what was asked for, enough to resume it"] = field(default_factory=dict)
    git_sha: Annotated[str | None, "commit of the checkout; None for an installed package"] = None
    git_dirty: Annotated[bool | None, "whether the checkout had changes"] = None
    source_hash: Annotated[str, "hash of the five packages' Python sources"] = ""
    recipe: Annotated[dict[str, Any], "the resolved recipe, as JSON types"] = field(default_factory=dict)
    recipe_hash: Annotated[str, "equal only for recipes that compute the same"] = ""
    host: Annotated[str, "name of the machine"] = ""
    cpu: Annotated[str, "model of the processor"] = ""
    cpu_cores: Annotated[int, "number of cores that this process may use"] = 0
    memory_bytes: Annotated[int, "memory of the machine"] = 0
    gpu_name: Annotated[str | None, "model of the GPU; None without one, like the next three"] = None
    gpu_driver: Annotated[str | None, "version of the driver"] = None
    gpu_power_limit_w: Annotated[float | None, "power limit in force"] = None
    gpu_clocks_locked: Annotated[bool | None, "whether its clocks are locked; None when unknown"] = None
    python: Annotated[str, "version of Python"] = ""
    torch: Annotated[str | None, "version of PyTorch; None where a run needs none"] = None
    triton: Annotated[str | None, "version of Triton; None where there is none"] = None
    cuda: Annotated[str | None, "version that torch was built with"] = None
    environment: Annotated[dict[str, str], "flags and numeric settings in force"] = field(default_factory=dict)
    notes: Annotated[tuple[str, ...], "remarks about the run, in order, throttling of its GPU among them"] = ()
    schema_version: Annotated[int, "version of this schema"] = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.run_id):
            raise ValueError(f"run id {self.run_id!r}: expected letters, digits, '.', '_' and '-' only")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row of `samples`: one value of one metric."""

    benchmark: Annotated[str, 'what was run, such as "cifar"']
    metric: Annotated[str, 'what was measured, such as "train_eval_s"']
    unit: Annotated[str, "unit of `value`"]
    better: Annotated[Better, "the direction of improvement"]
    value: Annotated[float, "a number; not-a-number and infinity only where `status` says why"]
    case: Annotated[str, "what the benchmark ran, such as a recipe or an operation"] = ""
    parameters: Annotated[dict[str, ParameterValue], "settings of the case; they become columns"] = field(
        default_factory=dict
    )
    variant: Annotated[str, "implementation that was measured"] = ""
    arm: Annotated[str, "side of a comparison"] = ""
    round: Annotated[int | None, "number of the round in which variants take turns"] = None
    slot: Annotated[int | None, "position within the round"] = None
    process: Annotated[int | None, "number of the process, where several measured"] = None
    seed: Annotated[int | None, "seed of the random generators"] = None
    index: Annotated[int | None, "number of a repeated measurement"] = None
    phase: Annotated[Phase, '"warm-up" or "steady"'] = "steady"
    epoch: Annotated[float | None, "passes over the data so far"] = None
    step: Annotated[int | None, "optimiser steps so far"] = None
    target: Annotated[float | None, "value that the run was scored against"] = None
    reached: Annotated[bool | None, "whether the target was reached"] = None
    censored: Annotated[bool | None, "whether `value` is only a bound, because the target was not reached"] = None
    status: Annotated[SampleStatus, '"ok", or why there is no plain value'] = "ok"
    error: Annotated[str | None, "what went wrong, in words"] = None
    sm_clock_mhz: Annotated[float | None, "clock of the GPU at the time; None where it cannot be read"] = None
    temperature_c: Annotated[float | None, "temperature of the GPU, likewise"] = None
    power_w: Annotated[float | None, "power that the GPU drew, likewise"] = None

    def __post_init__(self) -> None:
        for name in ("benchmark", "metric", "unit"):
            if not getattr(self, name):
                raise ValueError(f"a sample needs a {name}, got {getattr(self, name)!r}")
        for name, allowed in (("better", Better), ("phase", Phase), ("status", SampleStatus)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(allowed))}")
        object.__setattr__(self, "value", float(self.value))
        if self.status == "ok" and not math.isfinite(self.value):
            raise ValueError(
                f"{self.metric} is {self.value} with status 'ok'; a value that is no number needs a status"
            )


SAMPLE_COLUMNS = tuple(f.name for f in dataclasses.fields(Sample) if f.name != "parameters")
RUN_COLUMNS = tuple(f.name for f in dataclasses.fields(Run))
