"""Runs and samples to record, and a root that holds some."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wallclock.reports import Run, RunWriter, Sample
from wallclock.reports.store.write import new_run_id


def _run(**fields: Any) -> Run:
    given = {"run_id": new_run_id("sprint"), "started_utc": "2026-11-23T10:00:00Z", "command": "wallclock run cifar"}
    return Run(**{**given, **fields})


def _sample(**fields: Any) -> Sample:
    return Sample(
        **{"benchmark": "cifar", "metric": "train_eval_s", "unit": "s", "better": "lower", "value": 1.0, **fields}
    )


@pytest.fixture
def make_run() -> Callable[..., Run]:
    return _run


@pytest.fixture
def make_sample() -> Callable[..., Sample]:
    return _sample


@pytest.fixture
def cifar_root(tmp_path: Path) -> Path:
    """A root with a finished run of `sprint`: seeds 0 to 4 at 10 to 14 s, seed 3 misses 90%; with a phase pass."""
    root = tmp_path / "runs"
    parameters = {"dataset": "cifar10-jpeg", "batch_size": 500}
    with RunWriter.create(root, _run(host="here", recipe={"name": "sprint"}, environment={"OMP": "2"})) as writer:
        for seed in range(5):
            same = {"case": "sprint", "variant": "eager", "seed": seed, "parameters": parameters}
            hit = seed != 3
            scored = {"target": 0.9, "reached": hit, "censored": not hit, "status": "ok" if hit else "missed"}
            final = 0.905 + 0.001 * seed if hit else 0.89
            for epoch, value in ((1, 0.5), (2, final)):
                at = {"epoch": epoch, "step": 100 * epoch}
                writer.add(_sample(metric="accuracy", unit="fraction", better="higher", value=value, **at, **same))
                writer.add(_sample(metric="elapsed_train_eval_s", value=epoch * (10 + seed) / 2, **at, **same))
                writer.add(_sample(metric="train_loss", unit="nats", value=2.0 / epoch, **at, **same))
            writer.add(
                _sample(metric="final_accuracy", unit="fraction", better="higher", value=final, **scored, **same)
            )
            writer.add(_sample(value=10.0 + seed, **scored, **same))
        for index in range(4):
            for name, value in (("data", 0.001), ("forward", 0.01), ("backward", 0.02), ("optimiser", 0.002)):
                phase = {**parameters, "phase_name": name, "images": 500}
                where = {"case": "sprint", "variant": "eager", "index": index, "parameters": phase}
                writer.add(_sample(metric="phase_time", value=value, **where))
        where["parameters"] = {**parameters, "phase_name": "evaluation", "images": 1000}
        writer.add(_sample(metric="phase_time", value=0.04, **where))
        where = {"case": "sprint", "variant": "eager", "parameters": parameters}
        writer.add(_sample(metric="phase_overhead", unit="fraction", value=0.02, **where))
    return root
