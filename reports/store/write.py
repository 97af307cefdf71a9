"""The append-only store: one directory for each run, JSON lines while it runs, Parquet when it ends.

`records.jsonl` has one object on each line, with `kind` first: `run` comes first, `end` last, and `sample`, `note` and
`resume` as they happen.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from traceback import format_exception
from types import TracebackType
from typing import Any

from wallclock.reports.store.layout import RECORDS, TRACEBACK, StoreError
from wallclock.reports.store.read import read_lines, read_unfinished, write_tables
from wallclock.reports.store.schema import RESUMABLE, Run, RunStatus, Sample


def new_run_id(name: str) -> str:
    """Returns a unique id that sorts by time, such as `20261123T101500Z-sprint-1f2e3d4c`."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name) or "run"
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{slug}-{secrets.token_hex(4)}"


def utc_now() -> str:
    """Returns the current time in the form of the records."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


class RunWriter:
    """A writer of one run's records; as a context manager it ends the run as "failed" if an exception passes through.

    Added records reach the operating system in one write before the call returns, so that SIGKILL loses nothing. The
    records are locked while open: a second writer on the same run is refused.

    Attributes:
        path: the run's directory.
        run: the run, as in the first line of the records.
    """

    def __init__(self, path: Path, run: Run, descriptor: int) -> None:
        self.path, self.run, self._descriptor = path, run, descriptor

    @classmethod
    def create(cls, root: Path, run: Run) -> "RunWriter":
        """Starts a run in a new directory `root/run.run_id`.

        Raises:
            StoreError: if the directory exists or cannot be written.
        """
        path = Path(root) / run.run_id
        try:
            path.mkdir(parents=True)
            descriptor = os.open(path / RECORDS, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except FileExistsError as error:
            raise StoreError(
                f"{error.filename} exists and is not a new run's directory; choose another --out"
            ) from None
        except OSError as error:
            raise StoreError(f"cannot write to {root}: {error.strerror}; choose another --out") from None
        writer = cls(path, run, descriptor)
        writer._lock()
        writer._append({"kind": "run", **dataclasses.asdict(run)})
        return writer

    @classmethod
    def resume(cls, path: Path) -> "RunWriter":
        """Reopens an unfinished run, and drops a line that was cut off when its process died.

        Raises:
            StoreError: if the run is finished, being written by another process, or unreadable.
        """
        run, records = read_unfinished(path), Path(path) / RECORDS
        writer = cls(Path(path), run, os.open(records, os.O_RDWR | os.O_APPEND))
        try:
            writer._lock()
            os.ftruncate(writer._descriptor, read_lines(records)[1])
            writer.run = read_unfinished(path)  # again: its last writer may have ended it before the lock
            writer._append({"kind": "resume", "at_utc": utc_now()})
        except StoreError:
            writer._close()
            raise
        return writer

    def add(self, *samples: Sample) -> None:
        """Appends samples, all of them or none.

        Raises:
            StoreError: if the disk is full; earlier records stay readable.
        """
        records = []
        for sample in samples:
            fields = {f.name: getattr(sample, f.name) for f in dataclasses.fields(sample)}
            records.append({"kind": "sample", **{k: v for k, v in fields.items() if v is not None and v != ""}})
        self._append(*records)

    def note(self, text: str) -> None:
        """Appends a remark about the run."""
        self._append({"kind": "note", "text": text})

    def finish(self, status: RunStatus = "done", error: str | None = None) -> None:
        """Ends the run, which keeps its JSON lines if it can be resumed, and becomes Parquet otherwise.

        `error` is the reason in words, unless the status is "done".
        """
        try:
            self._append({"kind": "end", "status": status, "error": error, "at_utc": utc_now()})
            if status not in RESUMABLE:
                write_tables(self.path)
        except OSError as failure:  # the JSON lines are complete, and can be read like the tables
            if failure.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StoreError(_disk_full(self.path)) from None
        finally:
            self._close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            raise StoreError(
                f"{self.path} is being written by another process; wait for it, or start a new run"
            ) from None

    def _append(self, *records: dict[str, Any]) -> None:
        if self._descriptor < 0:
            raise StoreError(f"{self.path.name} is finished; nothing can be added")
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        before = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, lines)
            if written < len(lines):  # a file system fills up in the middle of a line
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._descriptor, before)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreError(_disk_full(self.path)) from None
            raise StoreError(f"cannot write {self.path / RECORDS}: {error.strerror}; check the disk") from None

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor < 0:
            return
        with contextlib.suppress(StoreError, OSError):  # a full disk must not hide the exception that is on its way
            if isinstance(error, KeyboardInterrupt):
                self.finish("interrupted", "Ctrl-C")
            elif isinstance(error, StoreError):
                self._close()  # nothing more can be written; the run can go on when that is mended
            elif error is not None:
                error.add_note(f"what was measured is in {self.path}, with the traceback")
                self.finish("failed", f"{type(error).__name__}: {error}")
                (self.path / TRACEBACK).write_text("".join(format_exception(error)), encoding="utf-8")
            else:
                self.finish()
        self._close()


def _disk_full(path: Path) -> str:
    return (
        f"the disk of {path} is full; all that was recorded before is kept. Make room, then go on with --resume {path}"
    )
