"""Layout of a run's records on the disk: file names, run directories, and the error of an unusable record."""

import fcntl
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

RECORDS = "records.jsonl"
RUN_TABLE = "run.parquet"
SAMPLE_TABLE = "samples.parquet"
TRACEBACK = "traceback.txt"
PICTURES = "pictures"
OnDamage = Literal["raise", "skip"]
# Keys by which the JSON files of other tools are known; `reports.store.other_tools` reads them.
TOOLS = {
    "pytest-benchmark": {"machine_info", "benchmarks"},
    "google-benchmark": {"context", "benchmarks"},
    "asv": {"commit_hash", "result_columns", "results"},
    "hyperfine": {"results"},
}
Paths = Path | str | Sequence[Path | str]  # run directories, or folders that hold some at any depth


class StoreError(ValueError):
    """A record cannot be written or read; the message names the file and the next step."""


def being_written(records: Path) -> bool:
    """Returns whether a process holds a run's JSON lines open for writing."""
    try:
        with open(records, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # removed meanwhile, or a file system without locks
        return False
    return False


def written_by(document: object) -> str:
    """Returns the name of the tool in `TOOLS` that wrote a JSON document; empty if none of them did."""
    keys = document.keys() if isinstance(document, dict) else set[str]()
    return next((tool for tool, own in TOOLS.items() if own <= keys), "")


def files_of_tools(folder: Path) -> list[Path]:
    """Returns the JSON files at any depth of a folder that one of `TOOLS` wrote."""
    found = []
    for path in folder.rglob("*.json"):
        try:
            if written_by(json.loads(path.read_bytes())):
                found.append(path.resolve())
        except (OSError, ValueError):  # another file, which nobody asked for
            continue
    return found


def run_directories(paths: Paths) -> list[Path]:
    """Returns the run directories at or below the paths, or the JSON files of other tools, oldest first.

    Raises:
        StoreError: if a path does not exist or no run is found.
    """
    given = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    found: set[Path] = set()
    for path in given:
        if not path.exists():
            raise StoreError(f"no such path: {path}; name a run's directory, or one that holds runs")
        if path.suffix == ".json":
            found.add(path.resolve())
            continue
        start = path.parent if path.is_file() else path
        own = {match.parent.resolve() for name in (RECORDS, SAMPLE_TABLE) for match in start.rglob(name)}
        found |= own or {*files_of_tools(start)}
    if not found:
        raise StoreError(f"no runs in {', '.join(map(str, given))}; make one with `wallclock run` or `wallclock quick`")
    return sorted(found, key=lambda p: (p.name, str(p)))
