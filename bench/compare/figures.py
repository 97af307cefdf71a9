"""Figures of one process: what it printed, what Callgrind counted, and the reason if it failed."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from wallclock.bench.compare.git import last_line
from wallclock.bench.measure.processes import ProcessDone

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
