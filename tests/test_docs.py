"""Commands that README, docs and the workflow print exist, with the options that they give."""

import io
import re
from pathlib import Path

import pytest
import typer
from rich.console import Console

import reports
from bench.cli import app
from reports import tables
from reports.comparison import comparison_rows, comparison_summary

ROOT = Path(__file__).parents[1]
TEXTS = (
    *("README.md", ".github/workflows/wallclock.yml", "reports/published/README.md"),
    *("docs/ci.md", "docs/recipes.md", "docs/kernels.md", "docs/records.md"),
)


def commands(text):
    for line in text.splitlines():
        for found in re.findall(r"uv run wallclock ([^`\n#|&]*)", line):
            yield found.strip()


@pytest.mark.parametrize("name", TEXTS)
def test_commands_and_options_exist(name):
    tree = typer.main.get_command(app)
    seen = 0
    for line in commands((ROOT / name).read_text()):
        words, command = line.split(), tree
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, f"{name}: wallclock {line}"
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in words:
            option = word.partition("=")[0]
            assert not option.startswith("--") or option in known, f"{name}: {option} in wallclock {line}"
        seen += 1
    assert seen


def test_every_command_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    missing = [
        name for name in typer.main.get_command(app).commands if not re.search(rf"(wallclock|`) ?{name}\b", readme)
    ]
    assert not missing


def test_the_verdict_that_is_explained_is_a_stored_one():
    published = ROOT / "reports" / "published" / "2026-11-26-xeon-2-cores"
    summary = comparison_summary(reports.load(published), reports.load_runs(published))
    console = Console(width=80, file=io.StringIO())
    console.print(tables.terminal(comparison_rows(summary)))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines() if "──" not in line]
    assert len(lines) == 4 and "\n".join(lines) in (ROOT / "README.md").read_text()
