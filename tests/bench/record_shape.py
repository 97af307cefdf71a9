"""The shape of records: keys, recipes, metrics and units of a folder of runs, without their figures.

`python tests/bench/record_shape.py RUNS > tests/bench/quick_records.json` stores it, to hold later versions to it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

# Of a sample, all that says what it is a value of; where and when it was taken, and the value, differ from run to run.
NAMES = ("benchmark", "case", "variant", "arm", "metric", "unit", "better", "phase", "status", "target", "parameters")


def record_shape(folder: Path) -> list[dict[str, Any]]:
    """Returns the runs below a folder in order of their names, each without what differs from run to run."""
    shapes = [_run_shape(path.parent) for path in sorted(Path(folder).rglob("samples.parquet"))]
    return sorted(shapes, key=lambda shape: shape["name"])


def _run_shape(run: Path) -> dict[str, Any]:
    record = pq.read_table(run / "run.parquet").to_pylist()[0]
    samples = pq.read_table(run / "samples.parquet").to_pylist()
    request = json.loads(record["request"])
    return {
        "name": record["run_id"].split("-", 1)[1].rpartition("-")[0],
        "columns": sorted({*record, *(column for sample in samples for column in sample)}),
        "request": sorted(request),
        "benchmark": request["benchmark"],
        "recipe": json.loads(record["recipe"]),
        "environment": sorted(json.loads(record["environment"])),
        "samples": sorted({json.dumps([sample[column] for column in NAMES]) for sample in samples}),
    }


if __name__ == "__main__":
    json.dump(record_shape(Path(sys.argv[1])), sys.stdout, indent=1, sort_keys=True)
