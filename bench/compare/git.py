"""The git commands that a comparison needs: finding commits, listing branches, checking out worktrees."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path


def git(directory: Path, *arguments: str) -> str:
    """Runs git in a directory and returns its standard output without surrounding white space.

    Raises:
        ValueError: if git is not installed or fails; the message holds what git said.
    """
    if shutil.which("git") is None:
        raise ValueError("git is not installed; install it, or compare commands and stored runs")
    done = subprocess.run(["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"git {arguments[0]}: {' '.join(done.stderr.split()) or f'exit {done.returncode}'}")
    return done.stdout.strip()


def last_line(*texts: str) -> str:
    """Returns the last non-empty line of the first text that has one, skipping Valgrind's lines ("==...")."""
    lines = (line.strip() for text in texts for line in reversed(text.splitlines()))
    return next((line for line in lines if line and not line.startswith("==")), "")


def find_commit(directory: Path, revision: str) -> str:
    """Returns the full hash of a revision's commit; empty if the repository has no such revision."""
    with contextlib.suppress(ValueError):
        return git(directory, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    return ""


def why_no_commit(directory: Path) -> str:
    """Returns why a repository may lack a commit: what git says of it, or that it is shallow; empty if neither."""
    try:
        shallow = git(directory, "rev-parse", "--is-shallow-repository") == "true"
    except ValueError as error:
        return "" if "not a git repository" in str(error) else str(error)
    return "the clone is shallow: fetch more of it (fetch-depth: 0 of actions/checkout)" if shallow else ""


def list_branches(directory: Path) -> list[str]:
    """Returns the names of branches and tags; an empty list outside a repository."""
    with contextlib.suppress(ValueError):
        return git(directory, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags").split()
    return []


@contextlib.contextmanager
def worktree(repository: Path, revision: str, data: Sequence[str] = ()) -> Iterator[Path]:
    """Checks a revision out in a temporary worktree, yields its path, and removes it afterwards.

    Args:
        repository: a folder of the repository.
        revision: the revision, whose submodules are checked out too.
        data: paths in `repository` that the worktree gets links to, such as data that git ignores.

    Raises:
        ValueError: if git cannot create the worktree or its submodules, or there is nothing at a path of `data`.
    """
    git(repository, "worktree", "prune")  # worktrees of processes that were killed before they could clear up
    with tempfile.TemporaryDirectory(prefix="wallclock-", ignore_cleanup_errors=True) as folder:
        place = Path(folder) / revision[:12]
        git(repository, "worktree", "add", "--detach", "--quiet", str(place), revision)
        try:
            if (place / ".gitmodules").exists():
                git(place, "submodule", "update", "--init", "--recursive", "--quiet")
            for name in data:
                source, link = (repository / name).resolve(), place / name
                if not source.exists():
                    raise ValueError(f"nothing at {source}, which pyproject.toml declares as data; put it there")
                if not link.exists():
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(source)
            yield place
        finally:
            with contextlib.suppress(ValueError):
                git(repository, "worktree", "remove", "--force", "--force", str(place))
