"""Benchmarks: commands that both sides of a comparison run, as a project declares them in its pyproject.toml."""

import difflib
import math
import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from wallclock.models.recipes.levers import unknown

Counted = Literal["callgrind", "printed", "never"]
PROJECT = "pyproject.toml"
PYTEST = 'python -m pytest {} -q --benchmark-only --benchmark-json="$WALLCLOCK_JSON"'


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A command that both sides of a comparison run.

    Attributes:
        name: name of the benchmark in the records.
        command: shell command; lines that it prints as `{"metric": ..., "value": ..., "unit": ...}` are recorded, and
            what it writes to $WALLCLOCK_JSON as pytest-benchmark or another known tool does.
        pytest: path of tests that use pytest-benchmark, for which the command is made; empty for none.
        timeout_s: seconds after which the command is killed and counts as failed.
        tolerance: change that still counts as equal, as a share; None uses the tolerance of the comparison.
        metrics: names of the metrics that are judged; empty judges the command's time and everything that it prints.
        build: shell command that is run once in each side's tree before the rounds; empty for none.
        sources: glob patterns of the benchmark's own files; where they differ between the sides, the result is invalid.
        counted: what `--counts` compares: "callgrind" for the instructions that Callgrind counts, "printed" for the
            counts that the command prints (such a benchmark is never timed), "never" to time the benchmark alone.
        only_on: the side, base or head, that alone declares the benchmark; empty if both do or the command line gives
            it.
        of_head: the head's own declaration where it differs from the base's, which this one is; None if it does not.
    """

    name: str
    command: str
    pytest: str = ""
    timeout_s: float = 600.0
    tolerance: float | None = None
    metrics: tuple[str, ...] = ()
    build: str = ""
    sources: tuple[str, ...] = ()
    counted: Counted = "callgrind"
    only_on: str = ""
    of_head: "Benchmark | None" = None

    def changes(self) -> str:
        """Returns what the head declares otherwise, in words; empty if nothing."""
        told = []
        for key in KEYS if self.of_head else ():
            before, after = getattr(self, key), getattr(self.of_head, key)
            told += [f"{key} was {before!r} and is {after!r}"] if before != after else []
        return ", ".join(told)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


Check = tuple[Callable[[Any], bool], str]  # whether a value will do, and what is expected
KEYS: dict[str, Check] = {
    "command": (_is_text, "a shell command"),
    "pytest": (_is_text, "a path of tests that use pytest-benchmark"),
    "timeout_s": (lambda value: _is_number(value) and 0 < value < math.inf, "a number of seconds, such as 60"),
    "tolerance": (lambda value: _is_number(value) and 0 <= value < 1, "a share below 1, such as 0.05 for 5%"),
    "metrics": (_is_list, 'a list of names, such as ["step_s"]'),
    "build": (_is_text, "a shell command"),
    "sources": (_is_list, 'a list of patterns, such as ["benchmarks/*.py"]'),
    "counted": (lambda value: value in get_args(Counted), f"one of {', '.join(get_args(Counted))}"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a project declares in the table `[tool.wallclock]` of its pyproject.toml.

    Attributes:
        tolerance: tolerance of comparisons, as a share.
        data: paths that git ignores and each side's worktree needs, to which it gets links.
        benchmarks: the declared benchmarks by name.
    """

    tolerance: float = 0.02
    data: tuple[str, ...] = ()
    benchmarks: Mapping[str, Benchmark] = field(default_factory=dict)

    def named(self, name: str) -> Benchmark:
        """Returns the benchmark with that name; raises ValueError if none has it."""
        if name not in self.benchmarks:
            raise ValueError(unknown("benchmark", name, self.benchmarks))
        return self.benchmarks[name]


def did_you_mean(text: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Returns the question "did you mean NAME?" for the name in `known` most like `text`; empty if none is close."""
    near = difflib.get_close_matches(text, list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]}?" if near else ""


def read_settings(directory: Path) -> Settings:
    """Returns what a folder's pyproject.toml declares; nothing if there is no such file.

    Raises:
        ValueError: if the file is not valid TOML, or the table is malformed.
    """
    try:
        text = (directory / PROJECT).read_text(encoding="utf-8")
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{directory / PROJECT} cannot be read: {error}") from None
    return parse_settings(text, str(directory / PROJECT))


def parse_settings(text: str, where: str) -> Settings:
    """Returns what the text of a pyproject.toml declares; `where` names the file in errors."""
    try:
        table: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where}: {error}") from None
    for name in ("tool", "wallclock"):
        table = table.get(name, {})
        if not isinstance(table, dict):
            raise ValueError(f"{where}: {name} is {table!r}; expected a table")
    checks = {
        "tolerance": KEYS["tolerance"],
        "data": (_is_list, 'a list of paths, such as ["data/"]'),
        "benchmarks": (_is_table, "tables [tool.wallclock.benchmarks.NAME]"),
    }
    _check(table, checks, f"{where}: [tool.wallclock]")
    made = {name: _benchmark(name, fields, where) for name, fields in table.get("benchmarks", {}).items()}
    return Settings(**table | {"benchmarks": made, "data": tuple(table.get("data", ()))})


def _check(table: dict[str, Any], checks: Mapping[str, Check], where: str) -> None:
    """Raises ValueError if a table has a key that is not in `checks`, or a value that does not pass its check."""
    for key, value in table.items():
        if key not in checks:
            raise ValueError(f"{where}: {unknown('key', key, checks)}")
        fits, expected = checks[key]
        if not fits(value):
            raise ValueError(f"{where}: {key} is {value!r}; expected {expected}")


def _benchmark(name: str, fields: Any, where: str) -> Benchmark:
    of = f"{where}: benchmark '{name}'"
    if not isinstance(fields, dict):
        raise ValueError(f"{of} is {fields!r}; expected a table [tool.wallclock.benchmarks.{name}]")
    _check(fields, KEYS, of)
    if ("command" in fields) == ("pytest" in fields):
        raise ValueError(f'{of} has no command; add command = "...", or pytest = "tests/perf", and not both')
    if "pytest" in fields:
        fields = {**fields, "command": PYTEST.format(shlex.quote(fields["pytest"]))}
    whole: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Benchmark(name=name, **whole)
