"""What can be compared: stored runs, git revisions, the tree as it is, recipes, and shell commands."""

import contextlib
import difflib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from wallclock.reports.store.write import RECORDS, SAMPLE_TABLE

Kind = Literal["run", "git", "tree", "recipe", "cmd"]
KINDS: tuple[Kind, ...] = ("run", "git", "tree", "recipe", "cmd")
Counted = Literal["callgrind", "printed", "never"]
PROJECT = "pyproject.toml"
SHELL = "/bin/sh"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One command that both sides run.

    Attributes:
        name: of it, in the records.
        command: a shell's; what it prints as `{"metric": ..., "value": ..., "unit": ...}` lines is recorded too.
        timeout_s: after which it is killed, and has failed.
        tolerance: a change up to this share is no matter; None for the comparison's.
        metrics: that are judged; empty for its time and all it prints.
        build: a shell's command, run once in each side's tree.
        sources: files that are the benchmark itself; if the sides' differ, they measure different things.
        counted: "callgrind" counts its instructions where counts are compared; "printed" is a benchmark of counts
            alone, those that it prints; "never" one of times alone.
        declared: whether a project declares it, rather than the command line.
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


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One side of a comparison, as it was named.

    Attributes:
        kind: of it.
        text: without a prefix that names the kind.
        revision: of a git revision, the commit.
    """

    kind: Kind
    text: str
    revision: str = ""

    @property
    def stored(self) -> bool:
        """Whether it has been measured already."""
        return self.kind == "run"


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a comparison, ready to run.

    Attributes:
        subject: that it is.
        directory: to run in.
        commands: of each benchmark, by name; a shell's.
        tree: whether `directory` holds the sources that are compared, and comes first on Python's path.
        broken: why a benchmark cannot run, by name.
        declared: names of the benchmarks that its own project declares; None where that decides nothing.
    """

    subject: Subject
    directory: Path
    commands: Mapping[str, str]
    tree: bool = False
    broken: Mapping[str, str] = field(default_factory=dict)
    declared: frozenset[str] | None = None

    def environment(self) -> dict[str, str]:
        """Returns the environment of its processes; `python` is the interpreter that runs this."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        own = {"PYTHONPATH": str(self.directory)} if self.tree else {}
        # Bytecode may be written: a fresh worktree would be compiled in each round, and the tree as it is would not.
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {**kept, "PATH": path, **own}


def git(directory: Path, *arguments: str) -> str:
    """Returns what git prints.

    Raises:
        ValueError: if there is no git, or it fails, with its last line.
    """
    if shutil.which("git") is None:
        raise ValueError("git is not installed; install it, or compare commands and stored runs")
    done = subprocess.run(["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"git {arguments[0]}: {last_line(done.stderr) or f'exit {done.returncode}'}")
    return done.stdout.strip()


def last_line(text: str) -> str:
    """Returns the last line that says something."""
    lines = (line.strip() for line in reversed(text.splitlines()))
    return next((line for line in lines if line and not line.startswith("==")), "")  # valgrind's begin so


def commit_of(directory: Path, revision: str) -> str:
    """Returns a revision's commit, or an empty text if there is none."""
    try:
        return git(directory, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except ValueError:
        return ""


def parse_subject(text: str, directory: Path) -> Subject:
    """Returns what a text names: by its prefix (`run:`, `git:`, `tree:`, `recipe:`, `cmd:`), or by what it can be.

    Args:
        text: a path of stored runs, `.` for the tree as it is, `sprint` or `wgan/lesson precision=bf16`, a revision,
            or a command.
        directory: in which paths, revisions and commands are looked for.

    Raises:
        ValueError: if it names nothing.
    """
    prefix, colon, rest = text.partition(":")
    if colon and prefix in KINDS:
        return _of_kind(prefix, rest.strip(), directory)
    from wallclock.bench.tasks.registry import TASKS

    words = text.split()
    if not words:
        raise ValueError("a subject is empty; name a stored run, a git revision, a recipe or a command")
    path = directory / text
    if (
        path.suffix == ".json"
        and path.is_file()
        or path.is_dir()
        and not (path / PROJECT).exists()
        and _holds_runs(path)
    ):
        return _of_kind("run", text, directory)
    if path.is_dir():
        return _of_kind("tree", text, directory)
    if words[0].partition("/")[0] in TASKS or words[0] in _cifar_recipes():
        return _of_kind("recipe", text, directory)
    if commit_of(directory, text):
        return _of_kind("git", text, directory)
    if shutil.which(words[0]) or (len(words) > 1 and (directory / words[0]).exists()):
        return _of_kind("cmd", text, directory)
    known = [*_cifar_recipes(), *_branches(directory)]
    near = difflib.get_close_matches(text, known, n=1, cutoff=0.6)
    raise ValueError(
        f"'{text}' is no stored run, git revision, recipe or command here; "
        + (f"did you mean {near[0]}?" if near else "say which with run:, git:, tree:, recipe: or cmd: before it")
    )


def _holds_runs(path: Path) -> bool:
    if not path.is_dir() or (path / PROJECT).exists():  # a project is a tree, whatever it has stored
        return False
    return any(next(path.rglob(name), None) is not None for name in (RECORDS, SAMPLE_TABLE))


def _of_kind(kind: Kind, text: str, directory: Path) -> Subject:
    if kind == "git":
        revision = commit_of(directory, text)
        if not revision:
            near = difflib.get_close_matches(text, _branches(directory), n=1, cutoff=0.5)
            raise ValueError(
                f"no git revision '{text}' in {directory}" + (f"; did you mean {near[0]}?" if near else "")
            )
        return Subject(kind=kind, text=text, revision=revision)
    if kind == "tree":
        with contextlib.suppress(ValueError):
            return Subject(kind=kind, text=text, revision=git(directory / text, "rev-parse", "HEAD"))
    return Subject(kind=kind, text=text)


def _branches(directory: Path) -> list[str]:
    try:
        return git(directory, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags").split()
    except ValueError:
        return []


def _cifar_recipes() -> tuple[str, ...]:
    from wallclock.models.recipes import RECIPES

    return tuple(RECIPES)


def read_benchmarks(directory: Path, only: Sequence[str] = ()) -> list[Benchmark]:
    """Returns the benchmarks that a project declares in `[tool.wallclock.benchmarks]` of its pyproject.toml.

    Args:
        directory: of the project.
        only: names to keep; empty for all.

    Raises:
        ValueError: if there are none, or one is not as it should be.
    """
    declared = settings(directory).get("benchmarks", {})
    if not declared:
        raise ValueError(
            f'{directory / PROJECT} declares no benchmark; add [tool.wallclock.benchmarks.NAME] with command = "...", '
            "or give --command"
        )
    for name in only:
        if name not in declared:
            near = difflib.get_close_matches(name, declared, n=1, cutoff=0.5)
            raise ValueError(
                f"no benchmark '{name}'; {f'did you mean {near[0]}? ' if near else ''}there are {', '.join(declared)}"
            )
    return [_benchmark(name, table) for name, table in declared.items() if not only or name in only]


def declared_by(subject: Subject, directory: Path) -> set[str]:
    """Returns the names of the benchmarks that a side's own pyproject.toml declares.

    Args:
        subject: a revision, or a tree.
        directory: of the project.

    Raises:
        ValueError: if the file is no TOML.
    """
    if subject.kind == "tree":
        return set(settings(directory / subject.text).get("benchmarks", {}))
    try:
        text = git(directory, "show", f"{subject.revision}:./{PROJECT}")
    except ValueError:  # it has none
        return set()
    return set(_settings(text, f"{subject.text}:{PROJECT}").get("benchmarks", {}))


def settings(directory: Path) -> dict[str, Any]:
    """Returns `[tool.wallclock]` of a project's pyproject.toml; empty where there is none.

    Raises:
        ValueError: if the file is no TOML.
    """
    try:
        text = (directory / PROJECT).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    return _settings(text, str(directory / PROJECT))


def _settings(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text).get("tool", {}).get("wallclock", {})
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where}: {error}") from None


def _benchmark(name: str, table: dict[str, Any]) -> Benchmark:
    known = ("command", "timeout_s", "tolerance", "metrics", "build", "sources", "counted")
    if unknown := [key for key in table if key not in known]:
        raise ValueError(f"benchmark '{name}' has an unknown key '{unknown[0]}'; there are {', '.join(known)}")
    if not table.get("command"):
        raise ValueError(f"benchmark '{name}' has no command; add command = \"...\"")
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    return Benchmark(name=name, declared=True, **fields)


@contextlib.contextmanager
def prepared(subject: Subject, benchmarks: Sequence[Benchmark], directory: Path) -> Iterator[Side]:
    """Gives a side that can run, and clears up after it: a revision gets a worktree of its own, and is built there.

    Args:
        subject: a revision, a tree, a recipe or a command.
        benchmarks: of the comparison.
        directory: of the repository, and where commands run.
    """
    if subject.kind == "cmd":
        yield Side(subject=subject, directory=directory, commands={b.name: subject.text for b in benchmarks})
        return
    if subject.kind == "recipe":
        command = recipe_command(subject.text)
        yield Side(subject=subject, directory=directory, commands={b.name: command for b in benchmarks})
        return
    fields: dict[str, Any] = {"subject": subject, "commands": {b.name: b.command for b in benchmarks}, "tree": True}
    if all(b.declared for b in benchmarks):
        fields["declared"] = frozenset(declared_by(subject, directory))
    if subject.kind == "tree":
        yield _built(Side(directory=(directory / subject.text).resolve(), **fields), benchmarks)
        return
    with worktree(directory, subject.revision) as place:
        yield _built(Side(directory=place, **fields), benchmarks)


@contextlib.contextmanager
def worktree(repository: Path, revision: str) -> Iterator[Path]:
    """Gives a revision checked out in a folder of its own, and removes it afterwards.

    Raises:
        ValueError: if git cannot.
    """
    git(repository, "worktree", "prune")  # of what was killed before it could clear up
    with tempfile.TemporaryDirectory(prefix="wallclock-", ignore_cleanup_errors=True) as folder:
        place = Path(folder) / revision[:12]
        git(repository, "worktree", "add", "--detach", "--quiet", str(place), revision)
        try:
            yield place
        finally:
            with contextlib.suppress(ValueError):
                git(repository, "worktree", "remove", "--force", str(place))


def _built(side: Side, benchmarks: Sequence[Benchmark]) -> Side:
    """The side with what its benchmarks need built, and with the reason for each whose build failed."""
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
            why = last_line(done.stderr) or last_line(done.stdout) or f"exit {done.returncode}"
            failures |= {b.name: f"build_failed: {why}" for b in benchmarks if b.build == build}
    return replace(side, broken=failures)


def sources_hash(side: Side, benchmark: Benchmark) -> str:
    """Returns a hash of the files that are the benchmark itself, in a side's tree."""
    digest = hashlib.sha256()
    for pattern in benchmark.sources:
        for path in sorted(p for p in side.directory.glob(pattern) if p.is_file()):
            digest.update(str(path.relative_to(side.directory)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def recipe_command(text: str) -> str:
    """Returns the command that measures a recipe.

    Args:
        text: `sprint`, `wgan/lesson`, with `field=value` words after it.

    Raises:
        ValueError: if there is no such recipe, or no such field.
    """
    import shlex

    from wallclock.bench.compare.recipe_turn import parse_recipe

    parse_recipe(text, "cpu")
    return shlex.join(["python", "-m", "wallclock.bench.compare.recipe_turn", text])
