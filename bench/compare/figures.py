"""Figures of one process: what it printed, what Callgrind counted, and the reason if it failed."""

import json
import math
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wallclock.bench.compare.git import last_line
from wallclock.bench.measure.processes import ProcessDone
from wallclock.reports.store.other_tools import read

OWN = ("process_s", "process_cpu_s", "process_peak_bytes", "instructions")  # metrics of the whole process


def read_figures(output: str) -> Iterator[dict[str, Any]]:
    """Yields the figures that a program printed, as fields of `Sample`.

    Args:
        output: the program's output; a line such as `{"metric": "step_s", "value": 0.125, "unit": "s"}` is a figure.
            Its `better` is "lower" or "higher", by default "higher" for units ending in "/s". Other lines are skipped.

    Raises:
        ValueError: if a figure lacks a finite value or a unit, has a name in `OWN`, or its `better` is another text.
    """
    for line in output.splitlines():
        if not line.lstrip().startswith("{"):
            continue
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict) or "metric" not in record:
            continue
        value: Any = record.get("value")
        unit, why = record.get("unit"), ""
        if not _is_finite(value):
            why = "a value is a finite number"
        elif record["metric"] in OWN:
            why = "wallclock measures a figure of that name itself; give yours another"
        elif not unit or not isinstance(unit, str):
            why = 'a figure needs a unit, such as "s"'
        elif (better := record.get("better", "higher" if unit.endswith("/s") else "lower")) not in ("lower", "higher"):
            why = "better is 'lower' or 'higher'"
        if why:
            raise ValueError(f"it printed {line.strip()[:120]}: {why}")
        yield {"metric": str(record["metric"]), "value": float(value), "unit": unit, "better": better}


def read_tool_figures(path: Path) -> list[dict[str, Any]]:
    """Returns the figures in the JSON that a benchmarking tool wrote, as fields of `Sample`; none of an empty file.

    Each of its benchmarks is a metric of its own, by its name and parameters; its value is the median of its samples.

    Raises:
        StoreError: if no known tool wrote the file; see `reports.store.other_tools`.
    """
    if not path.stat().st_size:
        return []
    values: dict[tuple[str, str, str], list[float]] = {}
    for sample in read(path)[1]:
        words = sample.case, sample.variant, *(f"{k}={v}" for k, v in sample.parameters.items())
        name = " ".join(filter(None, (*words, "" if sample.metric == "latency" else sample.metric)))
        values.setdefault((name, sample.unit, sample.better), []).append(sample.value)
    return [
        {"metric": name, "value": statistics.median(found), "unit": unit, "better": better}
        for (name, unit, better), found in values.items()
    ]


def _is_finite(value: Any) -> bool:
    """Returns whether a value is a number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # JSON's whole numbers have any number of digits
        return False


def count_instructions(errors: str) -> float:
    """Returns the instructions that Callgrind counted in a process and its children, from what it wrote to stderr."""
    return float(sum(map(int, re.findall(r"^==\d+== Collected : (\d+)", errors, re.MULTILINE))))


def failure_of(done: ProcessDone, timeout_s: float) -> str:
    """Returns one line that says why a process failed; empty if it succeeded."""
    if done.timed_out:
        return f"timeout: it took longer than {timeout_s:g} s"
    if done.code:
        how = f"exit {done.code}" if done.code > 0 else f"killed by signal {-done.code}"
        return f"{how}: {last_line(done.errors, done.output) or 'it says nothing'}"
    return ""
