"""What a record holds: one `Run`, and the `Sample`s measured in it. Standard library only."""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

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
    """One row of `runs`: where, when and with what the samples of a run were measured.

    Attributes:
        run_id: also the name of its directory.
        started_utc: ISO 8601 with a trailing Z.
        command: the command line as typed.
        request: what was asked for, enough to resume it.
        git_sha: commit of the checkout; None for an installed package.
        git_dirty: whether the checkout had changes.
        source_hash: hash of the five packages' Python sources.
        recipe: the resolved recipe, as JSON types.
        recipe_hash: equal only for recipes that compute the same.
        host: name of the machine.
        cpu: model of the processor.
        cpu_cores: number of cores that this process may use.
        memory_bytes: memory of the machine.
        gpu_name: model of the GPU; None without one, like the next three.
        gpu_driver: version of the driver.
        gpu_power_limit_w: power limit in force.
        gpu_clocks_locked: whether its clocks are locked; None when unknown.
        python: version of Python.
        torch: version of PyTorch; None where a run needs none.
        triton: version of Triton; None where there is none.
        cuda: version that torch was built with.
        environment: flags and numeric settings in force.
        notes: remarks about the run, in order, throttling of its GPU among them.
        schema_version: version of this schema.
    """

    run_id: str
    started_utc: str
    command: str
    request: dict[str, Any] = field(default_factory=dict)
    git_sha: str | None = None
    git_dirty: bool | None = None
    source_hash: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_hash: str = ""
    host: str = ""
    cpu: str = ""
    cpu_cores: int = 0
    memory_bytes: int = 0
    gpu_name: str | None = None
    gpu_driver: str | None = None
    gpu_power_limit_w: float | None = None
    gpu_clocks_locked: bool | None = None
    python: str = ""
    torch: str | None = None
    triton: str | None = None
    cuda: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.run_id):
            raise ValueError(f"run id {self.run_id!r}: expected letters, digits, '.', '_' and '-' only")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row of `samples`: one value of one metric.

    Attributes:
        benchmark: what was run, such as "cifar".
        metric: what was measured, such as "train_eval_s".
        unit: unit of `value`.
        better: the direction of improvement.
        value: a number; not-a-number and infinity only where `status` says why.
        case: what the benchmark ran, such as a recipe or an operation.
        parameters: settings of the case; they become columns.
        variant: implementation that was measured.
        arm: side of a comparison.
        round: number of the round in which variants take turns.
        slot: position within the round.
        process: number of the process, where several measured.
        seed: seed of the random generators.
        index: number of a repeated measurement.
        phase: "warm-up" or "steady".
        epoch: passes over the data so far.
        step: optimiser steps so far.
        target: value that the run was scored against.
        reached: whether the target was reached.
        censored: whether `value` is only a bound, because the target was not reached.
        status: "ok", or why there is no plain value.
        error: what went wrong, in words.
        sm_clock_mhz: clock of the GPU at the time; None where it cannot be read.
        temperature_c: temperature of the GPU, likewise.
        power_w: power that the GPU drew, likewise.
    """

    benchmark: str
    metric: str
    unit: str
    better: Better
    value: float
    case: str = ""
    parameters: dict[str, ParameterValue] = field(default_factory=dict)
    variant: str = ""
    arm: str = ""
    round: int | None = None
    slot: int | None = None
    process: int | None = None
    seed: int | None = None
    index: int | None = None
    phase: Phase = "steady"
    epoch: float | None = None
    step: int | None = None
    target: float | None = None
    reached: bool | None = None
    censored: bool | None = None
    status: SampleStatus = "ok"
    error: str | None = None
    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None

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
