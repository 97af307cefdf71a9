"""Layout of a run's records on the disk: file names, run directories, and the error of an unusable record."""

import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

RECORDS = "records.jsonl"
RUN_TABLE = "run.parquet"
SAMPLE_TABLE = "samples.parquet"
TRACEBACK = "traceback.txt"
PICTURES = "pictures"
OnDamage = Literal["raise", "skip"]
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


def run_directories(paths: Paths) -> list[Path]:
    """Returns the run directories at or below the paths, and the given JSON files (of pytest-benchmark), oldest first.

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
        for name in (RECORDS, SAMPLE_TABLE):
            found.update(match.parent.resolve() for match in start.rglob(name))
    if not found:
        raise StoreError(f"no runs in {', '.join(map(str, given))}; make one with `wallclock run` or `wallclock quick`")
    return sorted(found, key=lambda p: (p.name, str(p)))
