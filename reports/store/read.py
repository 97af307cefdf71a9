"""Reads the store: runs and samples, finished or not, as tidy pandas frames."""

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from wallclock.reports.store import other_tools
from wallclock.reports.store.layout import (
    RECORDS,
    RUN_TABLE,
    SAMPLE_TABLE,
    OnDamage,
    Paths,
    StoreError,
    being_written,
    run_directories,
)
from wallclock.reports.store.schema import PLACE, RESUMABLE, RUN_COLUMNS, SAMPLE_COLUMNS, SCHEMA_VERSION, Run, Sample

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

# Columns of the run that a samples frame also has, besides the settings of its environment.
CARRIED = ("run_status", "started_utc", "recipe_hash", "git_sha", *PLACE)
StoredRun = tuple[dict[str, Any], "pa.Table | None"]
_JSON_COLUMNS = ("request", "recipe", "environment", "notes")


def read_lines(records: Path) -> tuple[list[dict[str, Any]], int]:
    """Returns the complete records of a run's JSON lines, and their bytes; a torn last line is left out.

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
    """Returns the run that the JSON lines describe, with all notes.

    Raises:
        StoreError: if the first line is no run of a known schema version.
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
        StoreError: if the run is finished, or the directory holds none.
    """
    records = Path(path) / RECORDS
    if records.exists():
        return run_from(read_lines(records)[0], records)
    if (Path(path) / SAMPLE_TABLE).exists():
        raise StoreError(f"{path} is finished; start a new run")
    raise StoreError(f"{path} holds no run; name a run's directory")


def _ending(lines: list[dict[str, Any]], records: Path) -> tuple[str, str | None]:
    last = next((line for line in reversed(lines) if line["kind"] in ("end", "resume")), None)
    if last is not None and last["kind"] == "end":
        return last["status"], last.get("error")
    if being_written(records):
        return "running", "the tables hold what it has measured so far"
    what = lines[0]["request"].get("benchmark") if lines and lines[0].get("request") else None
    return "unfinished", "its process was killed; " + ("run it again" if what == "static" else "go on with --resume")


def _run_from_lines(records: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    return _run_row(run_from(lines, records), *_ending(lines, records))


def _run_row(run: Run, status: str, error: str | None) -> dict[str, Any]:
    fields = asdict(run) | {"run_status": status, "error": error}
    return {k: json.dumps(v, sort_keys=True) if k in _JSON_COLUMNS else v for k, v in fields.items()}


def _samples_from_lines(lines: list[dict[str, Any]]) -> "pa.Table":
    import pyarrow as pa

    defaults = {"phase": "steady", "status": "ok", "case": "", "variant": "", "arm": ""}
    rows = [
        {**defaults, **line, "parameters": json.dumps(line.get("parameters", {}), sort_keys=True)}
        for line in lines
        if line["kind"] == "sample"
    ]
    kinds = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    kind_of = {
        name: next((kinds[part] for part in (hint, *get_args(hint)) if part in kinds), pa.string())
        for name, hint in get_type_hints(Sample).items()
    }
    schema = pa.schema([(name, kind_of[name]) for name in (*SAMPLE_COLUMNS, "parameters")])
    return pa.Table.from_pylist(rows, schema=schema)


def write_tables(directory: Path) -> None:
    """Turns a run's JSON lines into Parquet, and removes the lines once both tables are on the disk.

    Raises:
        OSError: if the disk is full; the JSON lines then remain.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines, _ = read_lines(directory / RECORDS)
    run = pa.Table.from_pylist([_run_from_lines(directory / RECORDS, lines)])
    tables = {RUN_TABLE: run, SAMPLE_TABLE: _samples_from_lines(lines)}
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


def _read_table(path: Path) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)
        table.schema.names  # noqa: B018  # decoded here, and damaged names are no text
    except (OSError, ValueError, pa.ArrowException) as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
        raise StoreError(f"{path} {why}; restore it from a copy, or remove the directory") from None
    return table


def _read_run(directory: Path, *, with_samples: bool) -> StoredRun:
    if directory.suffix == ".json" and directory.is_file():
        run, samples = other_tools.read(directory)
        found = [{"kind": "sample", **{k: v for k, v in asdict(s).items() if v is not None}} for s in samples]
        return _run_row(run, "done", None), _samples_from_lines(found) if with_samples else None
    if (directory / RECORDS).exists():  # also when the process died between the tables and the lines' removal
        lines, _ = read_lines(directory / RECORDS)
        return _run_from_lines(directory / RECORDS, lines), _samples_from_lines(lines) if with_samples else None
    table = _read_table(directory / SAMPLE_TABLE) if with_samples else None
    return _read_table(directory / RUN_TABLE).to_pylist()[0], table


def _with_parameters(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Adds a column for each parameter; parses each distinct set of parameters once."""
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


def _read_all(paths: Paths, on_damage: OnDamage, *, with_samples: bool) -> tuple[list[StoredRun], list[str]]:
    """Returns the runs, each once even if its directory was copied, and messages about those left out."""
    whole: dict[str, StoredRun] = {}
    skipped = []
    for directory in run_directories(paths):
        try:
            run, samples = _read_run(directory, with_samples=with_samples)
        except StoreError as error:
            if on_damage == "raise":
                raise
            skipped.append(str(error))
            continue
        known = whole.get(run["run_id"])
        if known is not None:
            skipped.append(f"{directory} is a copy of run {run['run_id']}, which counts once")
        if known is None or (known[0]["run_status"] in RESUMABLE and run["run_status"] not in RESUMABLE):
            whole[run["run_id"]] = run, samples
    if not whole:
        raise StoreError("; ".join(skipped))
    return list(whole.values()), skipped


def load_runs(paths: Paths, *, on_damage: OnDamage = "raise") -> "pd.DataFrame":
    """Returns one row for each run, with the columns of `reports.store.schema.Run`, `run_status` and `error`.

    Args:
        paths: run directories, or folders that hold run directories at any depth.
        on_damage: "skip" leaves damaged runs out and lists them in `frame.attrs["skipped"]`.

    Raises:
        StoreError: if there is no run, one is damaged, or all are damaged with "skip".
    """
    return _run_frame(*_read_all(paths, on_damage, with_samples=False))


def load(paths: Paths, *, on_damage: OnDamage = "raise") -> "pd.DataFrame":
    """Returns the samples of all runs, one row each, with parameters and settings of the environment as columns.

    A parameter with the name of another column becomes `parameter_<name>`, such a setting `environment_<name>`.
    Arguments and errors are those of `load_runs`.

    Returns:
        Columns of `reports.store.schema.Sample`, `run_id`, and the run's `CARRIED` columns and environment.
    """
    return _sample_frame(*_read_all(paths, on_damage, with_samples=True))


def load_both(paths: Paths, *, on_damage: OnDamage) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Returns the frames of `load` and `load_runs` from one reading of the files, or two if some are skipped."""
    stored, skipped = _read_all(paths, on_damage, with_samples=True)
    # A run of which only the samples are damaged is still one of the runs.
    runs = load_runs(paths, on_damage=on_damage) if skipped else _run_frame(stored, skipped)
    return _sample_frame(stored, skipped), runs


def _run_frame(stored: list[StoredRun], skipped: list[str]) -> "pd.DataFrame":
    import pandas as pd

    rows = [run | {name: json.loads(run[name]) for name in _JSON_COLUMNS} for run, _ in stored]
    frame = pd.DataFrame(rows, columns=[*RUN_COLUMNS, "run_status", "error"])
    frame.attrs["skipped"] = skipped
    return frame


def _sample_frame(stored: list[StoredRun], skipped: list[str]) -> "pd.DataFrame":
    import pandas as pd
    import pyarrow as pa

    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frames = [samples.to_pandas(types_mapper=nullable.get) for _, samples in stored if samples is not None]
    frame = _with_parameters(pd.concat(frames, ignore_index=True))
    rows, lengths = [run for run, _ in stored], [len(samples) for samples in frames]
    columns = {name: [row.get(name) for row in rows] for name in ("run_id", *CARRIED)}
    environments = [settings(json.loads(row["environment"])) for row in rows]
    for name in dict.fromkeys(key for environment in environments for key in environment):
        taken = name in frame.columns or name in columns
        columns[f"environment_{name}" if taken else name] = [environment.get(name) for environment in environments]
    carried = {name: _repeated(values, lengths).set_axis(frame.index) for name, values in columns.items()}
    frame = pd.concat([frame, pd.DataFrame(carried, index=frame.index)], axis=1)
    frame.attrs["skipped"] = skipped
    return frame


def settings(environment: dict[str, str]) -> dict[str, str]:
    """Returns the settings that affect a run's results: all but the system's build and the choice among GPUs."""
    return {name: value for name, value in environment.items() if name not in ("platform", "CUDA_VISIBLE_DEVICES")}


def _repeated(values: list[Any], lengths: list[int]) -> "pd.Series[Any]":
    """Returns a categorical column with each run's value as text, repeated for each of its samples."""
    import numpy as np
    import pandas as pd

    texts = [value if value is None else str(value) for value in values]
    distinct = pd.Index(dict.fromkeys(text for text in texts if text is not None), dtype="str")
    codes = np.repeat([-1 if text is None else distinct.get_loc(text) for text in texts], lengths)
    return pd.Series(pd.Categorical.from_codes(codes, distinct))
