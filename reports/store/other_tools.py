"""Readers of the JSON files of other benchmarking tools, as runs whose samples stand beside those of our own commands.

They are pytest-benchmark (`--benchmark-json`, `--benchmark-autosave`), hyperfine (`--export-json`), asv (a file of its
folder `results`) and google-benchmark (`--benchmark_out`). One file is one run.
"""

import hashlib
import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wallclock.reports.store.layout import StoreError, written_by
from wallclock.reports.store.schema import Run, Sample

Read = tuple[dict[str, Any], list[Sample]]  # fields of the run, and its samples
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
NO_RAW = "only a median is stored of each test; pytest --benchmark-save-data keeps every round"


def read(path: Path) -> tuple[Run, list[Sample]]:
    """Returns the run in a JSON file of a known tool, and its samples.

    Raises:
        StoreError: if the file is damaged, or of no known tool.
    """
    content = path.read_bytes()
    try:
        document = json.loads(content)
        tool = written_by(document)
        fields, samples = READERS[tool](document)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        why = f"{type(error).__name__}: {error}"
        raise StoreError(f"{path} is no whole file of {', '.join(READERS)} ({why}); write it anew") from None
    if not samples:
        raise StoreError(f"{path} holds no benchmark; {tool} wrote it without any")
    modified = f"{datetime.fromtimestamp(path.stat().st_mtime, UTC):%Y-%m-%dT%H:%M:%SZ}"
    known: dict[str, Any] = {"started_utc": modified, "command": tool, "request": {"benchmark": tool}}
    return Run(run_id=f"{tool}-{hashlib.sha256(content).hexdigest()[:12]}", **known | fields), samples


def _pytest_benchmark(document: dict[str, Any]) -> Read:
    """Reads pytest-benchmark.

    A scalar in a test's `extra_info` becomes a parameter, except "benchmark", "case" and "variant", which name the
    sample; by default its case is the test's full name.
    """
    machine, commit = document["machine_info"], document.get("commit_info") or {}
    cpu, raw = machine.get("cpu") or {}, True
    samples = []
    for test in document["benchmarks"]:
        extra = test.get("extra_info") or {}
        named = {"benchmark": "pytest-benchmark", "case": test.get("fullname") or test["name"], "variant": ""}
        named |= {name: str(extra[name]) for name in named if name in extra}
        parameters = {k: v for k, v in extra.items() if k not in named and isinstance(v, str | int | float | bool)}
        raw &= "data" in test["stats"]
        for index, seconds in enumerate(test["stats"].get("data") or [test["stats"]["median"]]):
            samples.append(_latency(seconds, index=index, parameters=parameters, **named))
    run = {
        "started_utc": f"{document['datetime'][:19]}Z",
        "command": "pytest --benchmark-json",
        "request": {"benchmark": "pytest-benchmark", "version": document.get("version", "")},
        "git_sha": commit.get("id"),
        "git_dirty": commit.get("dirty"),
        "host": machine.get("node", ""),
        "cpu": cpu.get("brand_raw") or machine.get("processor", ""),
        "cpu_cores": int(cpu.get("count") or 0),
        "python": machine.get("python_version", ""),
        "gpu_name": machine.get("gpu_name"),
        "torch": machine.get("torch"),
        "source_hash": machine.get("source_hash", ""),
        "notes": () if raw else (NO_RAW,),
    }
    return run, samples


def _hyperfine(document: dict[str, Any]) -> Read:
    """Reads hyperfine: each process of a command is a sample, and the command is the case."""
    samples = []
    for result in document["results"]:
        parameters = {str(k): str(v) for k, v in (result.get("parameters") or {}).items()}
        for index, seconds in enumerate(result.get("times") or [result["median"]]):
            of = {"benchmark": "hyperfine", "case": result["command"], "metric": "process_s", "parameters": parameters}
            samples.append(_latency(seconds, index=index, **of))
    return {}, samples


def _google_benchmark(document: dict[str, Any]) -> Read:
    """Reads google-benchmark: a sample for each repetition, or the median where only aggregates are stored."""
    context, tests = document["context"], document["benchmarks"]
    measured = [test for test in tests if test.get("run_type", "iteration") == "iteration"]
    samples = []
    for test in measured or [test for test in tests if test.get("aggregate_name") == "median"]:
        of = {"benchmark": "google-benchmark", "case": test.get("run_name") or test["name"]}
        scale, index = SECONDS[test.get("time_unit", "ns")], test.get("repetition_index")
        samples.append(_latency(scale * test["real_time"], index=index, **of))
        samples.append(_latency(scale * test["cpu_time"], index=index, metric="cpu_s", **of))
    begun = datetime.fromisoformat(context["date"]).astimezone(UTC)
    run = {
        "started_utc": f"{begun:%Y-%m-%dT%H:%M:%SZ}",
        "command": str(context.get("executable", "google-benchmark")),
        "host": context.get("host_name", ""),
        "cpu_cores": int(context.get("num_cpus") or 0),
    }
    return run, samples


def _asv(document: dict[str, Any]) -> Read:
    """Reads asv, version 2 of its results: the samples of each combination of parameters, or else its result.

    Names that begin with `mem` or `peakmem` are bytes; `track` has no unit here, since asv keeps it in another file.
    """
    columns, machine, samples = document["result_columns"], document.get("params") or {}, list[Sample]()
    for name, row in document["results"].items():
        found = dict(zip(columns, row, strict=False))
        kind = name.rpartition(".")[2].partition("_")[0]
        unit = {"mem": "bytes", "peakmem": "bytes", "track": "unit"}.get(kind, "s")
        sets = list(itertools.product(*(found.get("params") or [])))
        for place, result in enumerate(found.get("result") or []):
            if result is None:  # it failed
                continue
            raw = (found.get("samples") or [None] * len(sets or [()]))[place]
            parameters = {f"param{number}": str(value) for number, value in enumerate(sets[place] if sets else ())}
            for index, value in enumerate(raw or [result]):
                of = {"benchmark": "asv", "case": name, "parameters": parameters, "index": index}
                samples.append(_latency(value, **of, **({} if unit == "s" else {"metric": kind, "unit": unit})))
    begun = datetime.fromtimestamp(document["date"] / 1000, UTC)
    run = {
        "started_utc": f"{begun:%Y-%m-%dT%H:%M:%SZ}",
        "command": "asv run",
        "git_sha": document["commit_hash"],
        "host": machine.get("machine", ""),
        "cpu": machine.get("cpu", ""),
        "cpu_cores": int(machine.get("num_cpu") or 0),
        "python": str(document.get("python", "")),
        "environment": {"asv_env": str(document.get("env_name", ""))},
    }
    return run, samples


def _latency(value: float, **fields: Any) -> Sample:
    usual: dict[str, Any] = {"metric": "latency", "unit": "s", "better": "lower"}
    return Sample(value=float(value), **usual | fields)


READERS: dict[str, Callable[[dict[str, Any]], Read]] = {
    "pytest-benchmark": _pytest_benchmark,
    "google-benchmark": _google_benchmark,
    "asv": _asv,
    "hyperfine": _hyperfine,
}
