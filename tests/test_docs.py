"""Commands that README, docs and the workflow print exist, with the options that they give."""

import io
import re
from pathlib import Path

import pytest
import typer
from rich.console import Console

from wallclock import reports
from wallclock.bench.cli.app import app
from wallclock.reports.format import text as tables
from wallclock.reports.views.ablation import AS_IS, ablation_summary
from wallclock.reports.views.comparison import BASE, HEAD, comparison_rows, comparison_summary

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


RACED = ROOT / "reports" / "published" / "2026-11-30-xeon-2-cores"


def test_the_race_is_a_stored_one():
    """Each round of docs/records.md: time and accuracy of either side, and the ratio of the times."""
    samples = reports.load(RACED / "20261130T125932Z-comparison-1e9652e0")
    race = samples[samples["metric"].isin(["train_eval_s", "final_accuracy"])].pivot(
        index="round", columns=["arm", "metric"], values="value"
    )

    def row(name, times, accuracies):
        sides = [f"{times[arm]:,.0f} s, {100 * accuracies[arm]:.2f}%" for arm in (BASE, HEAD)]
        return " | ".join([f"| {name}", *sides, f"{times[HEAD] / times[BASE]:.2f} |"])

    times, accuracies = (race.xs(metric, axis=1, level="metric") for metric in ("train_eval_s", "final_accuracy"))
    rows = [row(number + 1, times.loc[number], accuracies.loc[number]) for number in race.index]
    rows.append(row("mean", times.mean(), accuracies.mean()))
    assert len(rows) >= 4 and "\n".join(rows) in (ROOT / "docs" / "records.md").read_text()


def test_the_peer_compiled_is_a_stored_figure():
    """Its compiled clock over its eager one in each round, as docs/records.md tells it."""
    samples = reports.load(RACED / "20261130T161523Z-comparison-7b4f1a59")
    clock = samples[samples["metric"] == "train_eval_s"].pivot(index="round", columns="arm", values="value").dropna()
    *first, last = (f"{ratio:.2f}" for ratio in clock[HEAD] / clock[BASE])
    assert len(clock) >= 3
    assert f"took {', '.join(first)} and {last} times as long" in " ".join(
        (ROOT / "docs" / "records.md").read_text().split()
    )


def test_the_faster_report_is_a_stored_verdict():
    """The ratio and the interval that CHANGELOG.md gives."""
    folder = RACED / "20261130T202009Z-comparison-29cce701"
    row = comparison_summary(reports.load(folder), reports.load_runs(folder)).iloc[0]
    assert row["verdict"] == "improved"
    told = f"takes {row['ratio']:.3f} times as long [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]"
    assert told in " ".join((ROOT / "CHANGELOG.md").read_text().split())


def test_what_each_lever_gives_is_stored():
    """The rows of docs/records.md are the variants of both ablations, each with its rate and interval."""
    levers = ablation_summary(reports.load(RACED))
    stored = {
        (
            row["variant"],
            f"{row['over_baseline']:.2f}",
            f"{row['over_baseline_low']:.2f} to {row['over_baseline_high']:.2f}",
        )
        for row in levers[levers["variant"] != AS_IS].to_dict("records")
    }
    records = (ROOT / "docs" / "records.md").read_text()
    shown = re.findall(r"^\| ([^|]+) \| [^|]+ \| (\d\.\d\d) \| (\d\.\d\d to \d\.\d\d) \|$", records, re.MULTILINE)
    assert len(shown) >= 8 and {*shown} == stored
