"""Reading the store: runs and samples as tidy pandas frames, finished or not."""

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reports.schema import RUN_COLUMNS, SAMPLE_COLUMNS, SCHEMA_VERSION, Run
from reports.store import RECORDS, RUN_TABLE, SAMPLE_TABLE, StoreError, run_directories

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

# Columns of the run that a samples frame carries along.
CARRIED = ("run_status", "started_utc", "recipe_hash", "host", "cpu", "gpu_name", "torch", "git_sha", "source_hash")
_JSON_COLUMNS = ("request", "recipe", "environment", "notes")
_INTEGERS = ("round", "slot", "process", "seed", "index", "step")
_FLOATS = ("value", "epoch", "target", "sm_clock_mhz", "temperature_c", "power_w")
_BOOLEANS = ("reached", "censored")


def read_lines(records: Path) -> tuple[list[dict[str, Any]], int]:
    """Returns the whole lines of a run's JSON lines, and the bytes they take; a torn last line is left out.

    Raises:
        StoreError: if a line before the last is damaged.
    """
    try:
        content = records.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {records}: {error.strerror}; check the disk and its permissions") from None
    end = content.rfind(b"\n") + 1
    lines = []
    for number, line in enumerate(content[:end].split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or "kind" not in record:
                raise ValueError("no kind")
        except ValueError:
            raise StoreError(
                f"{records} line {number} is damaged; restore the file from a copy, or cut that line"
            ) from None
        lines.append(record)
    return lines, end


def run_from(lines: list[dict[str, Any]], records: Path) -> Run:
    """Returns the run that the lines describe, with all notes.

    Raises:
        StoreError: if the first line is not one of a known schema version.
    """
    head = lines[0] if lines else {}
    if head.get("kind") != "run":
        raise StoreError(f"{records} has no run line; its process died before it wrote one, so delete the directory")
    if head.get("schema_version", 0) > SCHEMA_VERSION:
        raise StoreError(
            f"{records} has schema {head['schema_version']}, newer than {SCHEMA_VERSION}; upgrade wallclock"
        )
    notes = [*head.get("notes", ()), *(line["text"] for line in lines if line["kind"] == "note")]
    known = {f.name for f in fields(Run)}
    return Run(**{**{k: v for k, v in head.items() if k in known}, "notes": tuple(notes)})


def read_unfinished(path: Path) -> Run:
    """Returns the run in the directory `path`, if it can be resumed.

    Raises:
        StoreError: if it is finished, or there is none.
    """
    records = Path(path) / RECORDS
    if records.exists():
        return run_from(read_lines(records)[0], records)
    if (Path(path) / SAMPLE_TABLE).exists():
        raise StoreError(f"{path} is finished; start a new run")
    raise StoreError(f"{path} holds no run; name a run's directory")


def _ending(lines: list[dict[str, Any]]) -> tuple[str, str | None]:
    last = next((line for line in reversed(lines) if line["kind"] in ("end", "resume")), None)
    if last is None or last["kind"] == "resume":
        return "unfinished", "its process was killed; go on with --resume"
    return last["status"], last.get("error")


def _sample_schema() -> "pa.Schema":
    import pyarrow as pa

    def of(name: str) -> "pa.DataType":
        if name in _INTEGERS:
            return pa.int64()
        if name in _FLOATS:
            return pa.float64()
        return pa.bool_() if name in _BOOLEANS else pa.string()

    return pa.schema([(name, of(name)) for name in (*SAMPLE_COLUMNS, "parameters")])


def _tables_from_lines(directory: Path) -> tuple["pa.Table", "pa.Table"]:
    import pyarrow as pa

    lines, _ = read_lines(directory / RECORDS)
    run = asdict(run_from(lines, directory / RECORDS))
    run["run_status"], run["error"] = _ending(lines)
    run = {k: json.dumps(v, sort_keys=True) if k in _JSON_COLUMNS else v for k, v in run.items()}
    defaults = {"phase": "steady", "status": "ok", "case": "", "variant": "", "arm": ""}
    rows = [
        {**defaults, **line, "parameters": json.dumps(line.get("parameters", {}), sort_keys=True)}
        for line in lines
        if line["kind"] == "sample"
    ]
    return pa.Table.from_pylist([run]), pa.Table.from_pylist(rows, schema=_sample_schema())


def write_tables(directory: Path) -> None:
    """Turns a run's JSON lines into Parquet; the lines go only when both tables are on the disk.

    Raises:
        OSError: if the disk is full; nothing is lost then.
    """
    import pyarrow.parquet as pq

    tables = dict(zip((RUN_TABLE, SAMPLE_TABLE), _tables_from_lines(directory), strict=True))
    try:
        for name, table in tables.items():
            with open(directory / f"{name}.part", "wb") as file:
                pq.write_table(table, file, write_page_checksum=True)
                file.flush()
                os.fsync(file.fileno())
    except OSError:
        for name in tables:
            (directory / f"{name}.part").unlink(missing_ok=True)
        raise
    for name in tables:
        os.replace(directory / f"{name}.part", directory / name)
    (directory / RECORDS).unlink()


def _read_tables(directory: Path) -> tuple["pa.Table", "pa.Table"]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if (directory / RECORDS).exists():  # also when the process died between the tables and the lines' removal
        return _tables_from_lines(directory)
    tables = []
    for name in (RUN_TABLE, SAMPLE_TABLE):
        try:
            tables.append(pq.read_table(directory / name, page_checksum_verification=True))
            tables[-1].validate(full=True)
            tables[-1].schema.names  # noqa: B018  # decoded here, and damaged names are no text
        except (OSError, ValueError, pa.ArrowException) as error:
            why = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
            raise StoreError(f"{directory / name} {why}; restore it from a copy, or remove the directory") from None
    return tables[0], tables[1]


def _with_parameters(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Adds a column for each parameter, read once per distinct set of parameters."""
    import pandas as pd

    texts = frame.pop("parameters").astype("category")
    sets = [json.loads(text) for text in texts.cat.categories]
    codes = texts.cat.codes.to_numpy()
    columns = {}
    for name in dict.fromkeys(key for parameters in sets for key in parameters):
        taken = name in frame.columns or name in CARRIED or name == "run_id"
        values = pd.Series([parameters.get(name) for parameters in sets])
        columns[f"parameter_{name}" if taken else name] = values.take(codes).set_axis(frame.index)
    return pd.concat([frame, pd.DataFrame(columns, index=frame.index)], axis=1)


def _read_all(
    paths: Path | str | Sequence[Path | str], on_damage: Literal["raise", "skip"]
) -> tuple[list[tuple["pa.Table", "pa.Table"]], list[str]]:
    tables, skipped = [], []
    for directory in run_directories(paths):
        try:
            tables.append(_read_tables(directory))
        except StoreError as error:
            if on_damage == "raise":
                raise
            skipped.append(str(error))
    return tables, skipped


def _run_frame(run: "pa.Table") -> "pd.DataFrame":
    frame = run.to_pandas()
    for name in _JSON_COLUMNS:
        frame[name] = [json.loads(text) for text in frame[name]]
    return frame.reindex(columns=[*RUN_COLUMNS, "run_status", "error"])


def load_runs(
    paths: Path | str | Sequence[Path | str], *, on_damage: Literal["raise", "skip"] = "raise"
) -> "pd.DataFrame":
    """Returns one row a run, with the columns of `reports.schema.Run`, `run_status` and `error`.

    Args:
        paths: run directories, or folders that hold some at any depth.
        on_damage: "skip" leaves damaged runs out and lists them in `frame.attrs["skipped"]`.

    Raises:
        StoreError: if there is no run, or one is damaged.
    """
    import pandas as pd

    tables, skipped = _read_all(paths, on_damage)
    frames = [_run_frame(run) for run, _ in tables]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*RUN_COLUMNS, "run_status"])
    frame.attrs["skipped"] = skipped
    return frame


def load(paths: Path | str | Sequence[Path | str], *, on_damage: Literal["raise", "skip"] = "raise") -> "pd.DataFrame":
    """Returns the samples of all runs, one row each, with parameters as columns.

    A parameter whose name is that of another column becomes `parameter_<name>`.

    Args:
        paths: run directories, or folders that hold some at any depth.
        on_damage: "skip" leaves damaged runs out and lists them in `frame.attrs["skipped"]`.

    Returns:
        Columns of `reports.schema.Sample`, `run_id`, and of the run those in `CARRIED`.

    Raises:
        StoreError: if there is no run, or one is damaged.
    """
    import pandas as pd
    import pyarrow as pa

    tables, skipped = _read_all(paths, on_damage)
    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frames = []
    for run, samples in tables:
        frame = samples.to_pandas(types_mapper=nullable.get)
        row = run.to_pylist()[0]
        for name in ("run_id", *CARRIED):
            frame[name] = pd.Series([row.get(name)] * len(frame), index=frame.index, dtype="str").astype("category")
        frames.append(frame)
    if not frames:
        frames.append(_sample_schema().empty_table().to_pandas(types_mapper=nullable.get).assign(run_id=""))
    for name in ("run_id", *CARRIED):
        with contextlib.suppress(KeyError, AttributeError):
            categories = pd.Index(dict.fromkeys(c for f in frames for c in f[name].cat.categories), dtype="str")
            for frame in frames:
                frame[name] = frame[name].cat.set_categories(categories)
    frame = _with_parameters(pd.concat(frames, ignore_index=True))
    frame.attrs["skipped"] = skipped
    return frame
