"""Benchmarks: commands that both sides of a comparison run, as a project declares them in its pyproject.toml."""

import difflib
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Counted = Literal["callgrind", "printed", "never"]
PROJECT = "pyproject.toml"
KEYS = ("command", "timeout_s", "tolerance", "metrics", "build", "sources", "counted")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A command that both sides of a comparison run.

    Attributes:
        name: name of the benchmark in the records.
        command: shell command; lines that it prints as `{"metric": ..., "value": ..., "unit": ...}` are recorded.
        timeout_s: seconds after which the command is killed and counts as failed.
        tolerance: change that still counts as equal, as a share; None uses the tolerance of the comparison.
        metrics: names of the metrics that are judged; empty judges the command's time and everything that it prints.
        build: shell command that is run once in each side's tree before the rounds; empty for none.
        sources: glob patterns of the benchmark's own files; where they differ between the sides, the result is invalid.
        counted: what `--counts` compares: "callgrind" for the instructions that Callgrind counts, "printed" for the
            counts that the command prints (such a benchmark is never timed), "never" to time the benchmark alone.
        declared: whether a project's pyproject.toml declares the benchmark; False if the command line gives it.
    """

    name: str
    command: str
    timeout_s: float = 600.0
    tolerance: float | None = None
    metrics: tuple[str, ...] = ()
    build: str = ""
    sources: tuple[str, ...] = ()
    counted: Counted = "callgrind"
    declared: bool = False

    def __post_init__(self) -> None:
        if self.counted not in get_args(Counted):
            raise ValueError(f"benchmark '{self.name}': counted is '{self.counted}'; it is one of {get_args(Counted)}")


def read_benchmarks(directory: Path, only: Sequence[str] = ()) -> list[Benchmark]:
    """Returns the benchmarks that a project declares in `[tool.wallclock.benchmarks]` of its pyproject.toml.

    Args:
        directory: folder that holds the project's pyproject.toml.
        only: names of the benchmarks to return; empty for all.

    Raises:
        ValueError: if the project declares no benchmark, `only` names an unknown one, or a declaration is malformed.
    """
    declared = read_settings(directory).get("benchmarks", {})
    if not declared:
        raise ValueError(
            f'{directory / PROJECT} declares no benchmark; add [tool.wallclock.benchmarks.NAME] with command = "...", '
            "or give --command"
        )
    for name in only:
        if name not in declared:
            hint = did_you_mean(name, declared)
            raise ValueError(f"no benchmark '{name}'; {hint and hint + ' '}there are {', '.join(declared)}")
    return [_benchmark(name, table) for name, table in declared.items() if not only or name in only]


def did_you_mean(text: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Returns the question "did you mean NAME?" for the name in `known` most like `text`; empty if none is close."""
    near = difflib.get_close_matches(text, list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]}?" if near else ""


def read_settings(directory: Path) -> dict[str, Any]:
    """Returns the table `[tool.wallclock]` of a project's pyproject.toml; empty if the file or the table is missing.

    Raises:
        ValueError: if the file is not valid TOML.
    """
    try:
        text = (directory / PROJECT).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    return parse_settings(text, str(directory / PROJECT))


def parse_settings(text: str, where: str) -> dict[str, Any]:
    """Returns the table `[tool.wallclock]` from the text of a pyproject.toml; `where` names the file in errors."""
    try:
        return tomllib.loads(text).get("tool", {}).get("wallclock", {})
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where}: {error}") from None


def _benchmark(name: str, table: dict[str, Any]) -> Benchmark:
    if unknown := [key for key in table if key not in KEYS]:
        raise ValueError(f"benchmark '{name}' has an unknown key '{unknown[0]}'; there are {', '.join(KEYS)}")
    if not table.get("command"):
        raise ValueError(f"benchmark '{name}' has no command; add command = \"...\"")
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    return Benchmark(name=name, declared=True, **fields)
