"""Makes docs/schema.md from the schema: `python -m wallclock.reports.docs.schema_doc > docs/schema.md`."""

import dataclasses
import string
import types
import typing
from collections.abc import Iterable
from typing import Any

from wallclock.reports.store.read import CARRIED
from wallclock.reports.store.schema import PLACE, RESUMABLE, SCHEMA_VERSION, Run, RunStatus, Sample, SampleStatus
from wallclock.reports.views.registry import VIEWS

TEXT = """\
# What a record holds, and what `--json` prints

Made from the schema by `uv run python -m wallclock.reports.docs.schema_doc > docs/schema.md`; a test fails when it is
stale.

The schema's version is $version. A run is a directory: `records.jsonl` while it goes on, one object a line, `kind`
first (`run` once, `sample`, `note`, `resume` as they come, `end` last); then `run.parquet` of one row, and
`samples.parquet`. `reports.load(path)` gives the samples of any number of runs as one frame, with parameters as
columns, and of the run $carried.

## A run

$run

Its status is one of $statuses; $resumable can go on with `--resume`.
Samples whose $place differ are never one measurement.

## A sample

$sample

A status other than `ok` ($befell) says why a value is missing, infinite, or only a bound.

## Documents

With `--json` every command but `serve` prints JSON and nothing else to standard output. Missing numbers are `null`.
Columns may be added; those that are there keep their names and units.

$documents
"""

# What `--json` prints, by command; lists hold one object a row.
REPORT = {
    "runs": "a row a run: `run_id`, `run_status`, `error`, `notes`",
    **{name: holds for view in VIEWS for name, (_, holds) in view.summaries.items()},
}
DOCUMENTS: dict[str, dict[str, str]] = {
    "report, quick, suite, run, ablate, judge, calibrate": REPORT,
    "list": {
        "recipes": "by name: every field, as the records store it",
        "TASK_recipes": "by name: likewise, for each other task, such as `wgan_recipes`",
        "quick": "by job: what it does",
        "suite": "by job: what it does",
    },
    "env": {
        "machine": "the machine in one line",
        "capabilities": "a row each: `name`, `available`, `detail`, `install`",
    },
    "data check": {
        "name": "what an accuracy on it is called; `cifar10` only if it is that, pixel for pixel",
        "format": "format of the files",
        "train_images": "number of training images",
        "test_images": "number of test images",
        "train_hash": "sha256 of shape, pixels and labels",
        "test_hash": "sha256 of the test images, likewise",
        "classes": "names of the classes, in the order of the labels",
    },
    "data fetch, data convert": {"data": "what `--data` takes"},
    "translate": {
        "images": "how many were translated",
        "unreadable": "files that could not be read",
        "folder": "where the translations are",
    },
    "tune": {
        "study": "folder of the study",
        "target": "accuracy on the tuning split",
        "reach": "probability that a single run has to reach it with",
        "trials": "a row a trial, the best first: `seconds`, `accuracy`, `reaches`, `why`, `values`",
        "next": "commands that tell whether the best one holds",
    },
    "bisect": {
        "candidates": "commits that may be the first slow one; a single one where it is found",
        "whole": "the bad commit against the good one, a row as `compare` prints it",
        "steps": "a row a commit: `revision`, `mark`, `row`",
        "described": "the verdict in words, a line each",
    },
}
ROWS = {  # commands whose document is a list of rows
    "compare, gate": "a row a benchmark: `ratio`, `ratio_low`, `ratio_high`, `detectable`, `verdict`, `reason`",
    "history": "a row a series: `first`, `latest`, `since_first`, and `changes` with their commits",
}


def fields(kind: type[Any]) -> str:
    """Returns a Markdown table of a dataclass's fields: name, type, and description."""
    hints = typing.get_type_hints(kind, include_extras=True)
    rows = (
        f"| `{each.name}` | {_type(hints[each.name].__origin__)} | {hints[each.name].__metadata__[0]} |"
        for each in dataclasses.fields(kind)
    )
    return "\n".join(["| field | type | what it holds |", "|---|---|---|", *rows])


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "text: " + ", ".join(f"`{value}`" for value in typing.get_args(hint))
    names = {str: "text", int: "integer", float: "number", bool: "yes or no", dict: "object", tuple: "list"}
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (typing.get_origin(hint) or hint,)
    return " or ".join("nothing" if kind is types.NoneType else names[kind] for kind in kinds)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def markdown() -> str:
    """Returns the whole text of docs/schema.md."""
    documents = []
    for command, keys in DOCUMENTS.items():
        documents += [f"### {command}\n", "| key | what it holds |", "|---|---|"]
        documents += [*(f"| `{key}` | {what} |" for key, what in keys.items()), ""]
    documents += [f"### {command}\n\nA list: {what}.\n" for command, what in ROWS.items()]
    return string.Template(TEXT).substitute(
        version=SCHEMA_VERSION,
        carried=_quoted(CARRIED),
        run=fields(Run),
        statuses=_quoted(typing.get_args(RunStatus)),
        resumable=_quoted(RESUMABLE),
        place=_quoted(PLACE),
        sample=fields(Sample),
        befell=_quoted(typing.get_args(SampleStatus)[1:]),
        documents="\n".join(documents).rstrip(),
    )


if __name__ == "__main__":
    print(markdown(), end="")
