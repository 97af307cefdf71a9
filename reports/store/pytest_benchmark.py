"""Reader of `pytest --benchmark-json` files as runs, whose samples stand beside those of our own commands."""

import hashlib
import json
from pathlib import Path
from typing import Any

from wallclock.reports.store.layout import StoreError
from wallclock.reports.store.schema import Run, Sample


def read(path: Path) -> tuple[Run, list[Sample]]:
    """Returns the run in a JSON file of pytest-benchmark, and its samples.

    A scalar in a test's `extra_info` becomes a parameter, except "benchmark", "case" and "variant", which name the
    sample; by default its case is the test's name.

    Raises:
        StoreError: if the file is damaged, or of another kind.
    """
    content = path.read_bytes()
    try:
        document = json.loads(content)
        machine, commit = document["machine_info"], document.get("commit_info") or {}
        samples = [sample for test in document["benchmarks"] for sample in _samples(test)]
        stamp = document["datetime"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise StoreError(f"{path} is not a whole file of pytest --benchmark-json ({why}); write it anew") from None
    cpu = machine.get("cpu") or {}
    run = Run(
        run_id=f"pytest-benchmark-{hashlib.sha256(content).hexdigest()[:12]}",
        started_utc=f"{stamp[:19]}Z",
        command="pytest --benchmark-json",
        request={"benchmark": "pytest-benchmark", "version": document.get("version", "")},
        git_sha=commit.get("id"),
        git_dirty=commit.get("dirty"),
        host=machine.get("node", ""),
        cpu=cpu.get("brand_raw") or machine.get("processor", ""),
        cpu_cores=int(cpu.get("count") or 0),
        python=machine.get("python_version", ""),
        gpu_name=machine.get("gpu_name"),
        torch=machine.get("torch"),
        source_hash=machine.get("source_hash", ""),
    )
    return run, samples


def _samples(test: dict[str, Any]) -> list[Sample]:
    extra = test.get("extra_info") or {}
    named = {"benchmark": "pytest-benchmark", "case": test["name"], "variant": ""}
    named |= {name: str(extra[name]) for name in named if name in extra}
    parameters = {k: v for k, v in extra.items() if k not in named and isinstance(v, str | int | float | bool)}
    return [
        Sample(
            metric="latency", unit="s", better="lower", value=seconds, index=index, parameters=parameters, **named
        )
        for index, seconds in enumerate(test["stats"]["data"])
    ]  # fmt: skip
