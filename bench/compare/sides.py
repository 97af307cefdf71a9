"""Sides of a comparison: stored runs, git revisions, working trees, recipes, and shell commands."""

import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from wallclock.bench.compare.benchmarks import (
    PROJECT,
    Benchmark,
    Settings,
    did_you_mean,
    parse_settings,
    read_settings,
)
from wallclock.bench.compare.git import find_commit, git, last_line, list_branches, why_no_commit, worktree
from wallclock.bench.compare.imports import REPORT, own_packages, package_folders
from wallclock.reports.store.layout import RECORDS, SAMPLE_TABLE, files_of_tools
from wallclock.reports.views.comparison import BASE, HEAD

Kind = Literal["run", "git", "tree", "recipe", "cmd"]
SHELL = "/bin/sh"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One side of a comparison, as the user named it.

    Attributes:
        kind: kind of side: stored runs, a git revision, a working tree, a recipe, or a shell command.
        text: name of the side, without the prefix that gives its kind.
        revision: hash of the commit of a git revision, or of a tree's HEAD; empty for other kinds.
    """

    kind: Kind
    text: str
    revision: str = ""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a comparison, ready to run.

    Attributes:
        subject: kind, name and commit of the side.
        directory: working directory of the side's processes.
        commands: shell command of each benchmark, by the benchmark's name.
        folders: folders of the sources that are compared, which come first on Python's path; none for commands.
        broken: reason why a benchmark cannot run on this side, by the benchmark's name.
    """

    subject: Subject
    directory: Path
    commands: Mapping[str, str]
    folders: tuple[Path, ...] = ()
    broken: Mapping[str, str] = field(default_factory=dict)

    def environment(self, imports: str = "") -> dict[str, str]:
        """Returns the environment of the side's processes, in which `python` is the interpreter of this process.

        Args:
            imports: file to which each Python process writes from where it imported the side's packages; "" for none.
        """
        kept = dict(os.environ)
        # Bytecode may be written: else each round would compile a fresh worktree, but not a tree that has bytecode.
        kept.pop("PYTHONDONTWRITEBYTECODE", None)
        kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
        if self.folders:
            first = [REPORT] if imports else []
            path = [*map(str, [*first, *self.folders]), *filter(None, [kept.get("PYTHONPATH")])]
            kept |= {"PYTHONPATH": os.pathsep.join(path)}
            kept |= {"WALLCLOCK_IMPORTS": imports, "WALLCLOCK_PACKAGES": ",".join(self.packages)} if imports else {}
        return kept

    @cached_property
    def packages(self) -> list[str]:
        """Names of the side's own packages."""
        return own_packages(list(self.folders))


def parse_subject(text: str, directory: Path) -> Subject:
    """Returns the side that a text names, by its prefix (`run:`, `git:`, `tree:`, `recipe:`, `cmd:`) or else by trial.

    Args:
        text: path of stored runs, path of a tree such as `.`, a recipe such as `sprint` or
            `wgan/lesson precision=bf16`, a git revision, or a shell command; without a prefix tried in this order.
        directory: folder in which paths, revisions and commands are looked up.

    Raises:
        ValueError: if the text names no side.
    """
    prefix, colon, rest = text.partition(":")
    if not (rest if colon and prefix in get_args(Kind) else text).strip():
        raise ValueError("a subject is empty; name a stored run, a git revision, a recipe or a command")
    if colon and prefix in get_args(Kind):
        return _subject(prefix, rest.strip(), directory)  # type: ignore[arg-type]
    from wallclock.bench.tasks.registry import TASKS
    from wallclock.models.recipes import RECIPES

    words = text.split()
    path = directory / text
    if (path.suffix == ".json" and path.is_file()) or _holds_runs(path):
        return _subject("run", text, directory)
    if path.is_dir():
        return _subject("tree", text, directory)
    if words[0].partition("/")[0] in TASKS or words[0] in RECIPES:
        return _subject("recipe", text, directory)
    if find_commit(directory, text):
        return _subject("git", text, directory)
    if shutil.which(words[0]) or (len(words) > 1 and (directory / words[0]).exists()):
        return _subject("cmd", text, directory)
    hint = did_you_mean(text, [*RECIPES, *list_branches(directory)], cutoff=0.6)
    raise ValueError(
        f"'{text}' is no stored run, git revision, recipe or command here; "
        + (hint or why_no_commit(directory) or "say which with run:, git:, tree:, recipe: or cmd: before it")
    )


def _holds_runs(path: Path) -> bool:
    if not path.is_dir() or any((path / name).exists() for name in (PROJECT, ".git")):
        return False  # a project's folder is a tree even if it holds runs
    return any(next(path.rglob(name), None) for name in (RECORDS, SAMPLE_TABLE)) or bool(files_of_tools(path))


def _subject(kind: Kind, text: str, directory: Path) -> Subject:
    revision = ""
    if kind == "git":
        revision = find_commit(directory, text)
        if not revision:
            hints = did_you_mean(text, list_branches(directory)), why_no_commit(directory)
            raise ValueError("; ".join([f"no git revision '{text}' in {directory}", *filter(None, hints)]))
    elif kind == "tree":
        revision = find_commit(directory / text, "HEAD")
    return Subject(kind=kind, text=text, revision=revision)


def settings_of(subject: Subject, directory: Path) -> Settings:
    """Returns what the pyproject.toml of a git revision or a tree declares; of another side, that of `directory`.

    Raises:
        ValueError: if the file is malformed.
    """
    if subject.kind != "git":
        return read_settings(directory / subject.text if subject.kind == "tree" else directory)
    try:
        text = git(directory, "show", f"{subject.revision}:./{PROJECT}")
    except ValueError:  # the revision has no such file
        return Settings()
    return parse_settings(text, f"{subject.text}:{PROJECT}")


@contextlib.contextmanager
def prepare_side(
    subject: Subject, benchmarks: Sequence[Benchmark], directory: Path, data: Sequence[str] = ()
) -> Iterator[Side]:
    """Yields a side that is ready to run; a revision is checked out and built in a temporary worktree.

    Commands and recipes run in `directory`, the repository.
    """
    commands = {b.name: b.command for b in benchmarks}
    if subject.kind in ("cmd", "recipe"):
        command = subject.text if subject.kind == "cmd" else recipe_command(subject.text)
        yield Side(subject=subject, directory=directory, commands=dict.fromkeys(commands, command))
        return
    tree = contextlib.nullcontext((directory / subject.text).resolve())
    with tree if subject.kind == "tree" else worktree(directory, subject.revision, data) as place:
        folders = tuple(package_folders(place))
        yield _build(Side(subject=subject, directory=place, commands=commands, folders=folders), benchmarks)


def _build(side: Side, benchmarks: Sequence[Benchmark]) -> Side:
    """Runs the benchmarks' build commands in a side's tree; returns the side with the reason of each failure."""
    failures: dict[str, str] = {}
    for build in dict.fromkeys(b.build for b in benchmarks if b.build):
        done = subprocess.run(
            [SHELL, "-c", build],
            cwd=side.directory,
            env=side.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            why = last_line(done.stderr, done.stdout) or f"exit {done.returncode}"
            failures |= {b.name: f"build_failed: {why}" for b in benchmarks if b.build == build}
    return replace(side, broken=failures)


def hash_sources(side: Side, benchmark: Benchmark) -> str:
    """Returns a hash, 12 hex digits, of the files in a side's tree that match the benchmark's `sources`."""
    digest = hashlib.sha256()
    for pattern in benchmark.sources:
        for path in sorted(p for p in side.directory.glob(pattern) if p.is_file()):
            digest.update(str(path.relative_to(side.directory)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def recipe_command(text: str) -> str:
    """Returns the shell command that measures one turn of a recipe; see `parse_recipe`."""
    from wallclock.bench.compare.recipe_turn import parse_recipe

    parse_recipe(text, "cpu")
    return shlex.join(["python", "-m", "wallclock.bench.compare.recipe_turn", text])


def choose_benchmarks(
    sides: Sequence[Subject], only: Sequence[str], commands: Sequence[str], timeout_s: float, repository: Path
) -> list[Benchmark]:
    """Returns the benchmarks that both sides run: given commands, declared benchmarks, or the two sides themselves.

    The base's declarations rule, so that no change can make its own test easier.

    Args:
        sides: the two sides, neither of them stored runs.
        only: names of the declared benchmarks to run; empty for all.
        commands: shell commands to run in place of the declared benchmarks, as `COMMAND` or `NAME=COMMAND`.
        timeout_s: seconds after which a command is killed and counts as failed.
        repository: folder in which paths and revisions are looked up.

    Raises:
        ValueError: if the two kinds of side cannot be compared, recipes are of two tasks, or a benchmark is unknown.
    """
    kinds = {side.kind for side in sides}
    if not kinds & {"cmd", "recipe"}:
        named = [(*_split_name(text), number) for number, text in enumerate(commands, start=1)]
        given = [
            Benchmark(name=name or f"command {number}", command=command, timeout_s=timeout_s)
            for name, command, number in named
        ]
        return given or _declared_benchmarks(sides, only, repository)
    if not kinds <= {"cmd", "recipe"}:
        raise ValueError("a revision runs benchmarks, a command or a recipe is one; name two of one sort")
    if only or commands:
        raise ValueError("commands and recipes are what is measured; leave out --benchmark and --command")
    if kinds != {"recipe"}:
        return [Benchmark(name="command", command="", timeout_s=timeout_s)]
    from wallclock.bench.compare.recipe_turn import parse_recipe

    rates = {task.name: task.rate for task in (parse_recipe(side.text, "cpu")[0] for side in sides)}
    if len(rates) > 1:
        raise ValueError(f"{' and '.join(sorted(rates))} have no figure in common; compare recipes of one task")
    ((task, rate),) = rates.items()
    return [Benchmark(name=task, command="", timeout_s=timeout_s, metrics=(rate,))]


def _declared_benchmarks(sides: Sequence[Subject], only: Sequence[str], repository: Path) -> list[Benchmark]:
    base, head = (settings_of(side, repository).benchmarks for side in sides)
    if not base and not head:
        raise ValueError(
            f'{repository / PROJECT} declares no benchmark; add [tool.wallclock.benchmarks.NAME] with command = "...", '
            "or give --command"
        )
    whole = {name: replace(b, of_head=head[name]) if head.get(name, b) != b else b for name, b in base.items()}
    whole |= {name: replace(b, only_on=BASE) for name, b in base.items() if name not in head}
    whole |= {name: replace(b, only_on=HEAD) for name, b in head.items() if name not in base}
    return [Settings(benchmarks=whole).named(name) for name in (only or whole)]


def _split_name(text: str) -> tuple[str, str]:
    """Returns name and command of `NAME=COMMAND`; the name is empty for `A=1 command`, which sets a variable."""
    name, equals, rest = text.partition("=")
    named = equals and name.replace("-", "").replace("_", "").isalnum() and not name.isupper() and " " not in name
    return (name, rest) if named and rest else ("", text)
