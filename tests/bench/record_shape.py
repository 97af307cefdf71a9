"""The shape of records: keys, recipes, metrics and units of a folder of runs, without their figures.

`python tests/bench/record_shape.py RUNS > tests/bench/quick_records.json` stores it, to hold later versions to it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

# All that says what a sample is a value of; the value, and when it was taken, differ from run to run.
NAMES = ("benchmark", "case", "variant", "arm", "metric", "unit", "better", "phase", "status", "target")
# float32 where the CPU emulates bfloat16; as many workers as cores allow; the operators that took longest.
BY_MACHINE = ("precision", "workers", "operator", "calls")


def record_shape(folder: Path) -> list[dict[str, Any]]:
    """Returns the runs below a folder in order of their names, each without what differs from run to run."""
    shapes = [_run_shape(path.parent) for path in sorted(Path(folder).rglob("samples.parquet"))]
    return sorted(shapes, key=lambda shape: (shape["name"], shape["samples"]))


def _run_shape(run: Path) -> dict[str, Any]:
    record = pq.read_table(run / "run.parquet").to_pylist()[0]
    samples = pq.read_table(run / "samples.parquet").to_pylist()
    request, recipe, environment = (json.loads(record[key]) for key in ("request", "recipe", "environment"))
    return {
        "name": record["run_id"].split("-", 1)[1].rpartition("-")[0],
        "run_columns": sorted(record),
        "sample_columns": sorted(samples[0]),
        "request": sorted(request),
        "environment": sorted(name for name in environment if not name.isupper()),  # variables of the shell are
        "recipe": {key: value for key, value in recipe.items() if key not in BY_MACHINE},
        "samples": sorted({_sample_name(sample) for sample in samples}),
    }


def _sample_name(sample: dict[str, Any]) -> str:
    parameters = json.loads(sample["parameters"])
    named = [str(sample[name]) for name in NAMES if sample[name] not in (None, "")]
    return "; ".join([*named, *(f"{key}={value}" for key, value in parameters.items() if key not in BY_MACHINE)])


if __name__ == "__main__":
    json.dump(record_shape(Path(sys.argv[1])), sys.stdout, indent=1)
