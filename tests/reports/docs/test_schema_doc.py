"""docs/schema.md is what the schema says, and `--json` prints what it says."""

import dataclasses
import itertools
import json
import typing
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from wallclock.bench.cli.app import app
from wallclock.bench.tasks.registry import TASKS
from wallclock.reports.docs import schema_doc
from wallclock.reports.store.schema import Run, Sample

ROOT = Path(__file__).parents[3]
PUBLISHED = ROOT / "reports" / "published" / "2026-11-26-xeon-2-cores"


def printed_keys(*arguments):
    """Returns the keys of what a command prints with `--json`, run in this process."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return list(json.loads(done.stdout))


def test_the_document_is_not_stale():
    made = (ROOT / "docs" / "schema.md").read_text(encoding="utf-8")
    assert made == schema_doc.markdown(), "uv run python -m wallclock.reports.docs.schema_doc > docs/schema.md"


@pytest.mark.parametrize("kind", [Run, Sample])
def test_every_field_says_what_it_holds(kind):
    hints = typing.get_type_hints(kind, include_extras=True)
    assert all(hints[field.name].__metadata__[0] for field in dataclasses.fields(kind))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("report, quick, suite, run, ablate, judge, calibrate", ["report", PUBLISHED]),
        ("env", ["env"]),
    ],
)
def test_documents_have_the_keys_that_are_documented(name, arguments):
    assert printed_keys(*arguments) == list(schema_doc.DOCUMENTS[name])


def test_list_has_the_keys_that_are_documented():
    tasks = [f"{name}_recipes" for name in TASKS if name != "cifar"]
    documented = [[key] if key != "TASK_recipes" else tasks for key in schema_doc.DOCUMENTS["list"]]
    assert printed_keys("list") == list(itertools.chain(*documented))


def test_a_data_set_is_described_as_documented(real_images):
    assert printed_keys("data", "check", real_images) == list(schema_doc.DOCUMENTS["data check"])


def test_every_command_with_json_is_documented():
    documented = {name for key in (*schema_doc.DOCUMENTS, *schema_doc.ROWS) for name in key.split(", ")}

    def with_json(command, path=()):
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                yield from with_json(inner, (*path, name))
        elif any("--json" in parameter.opts for parameter in command.params):
            yield path

    for path in with_json(typer.main.get_command(app)):
        assert " ".join(path) in documented or path[0] in documented, path
