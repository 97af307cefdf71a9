"""Git as a comparison uses it: commits, branches, and worktrees of their own for revisions."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


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


def last_line(*texts: str) -> str:
    """Returns the last line that is not empty, of the first text that has one; Valgrind's own lines do not count."""
    lines = (line.strip() for text in texts for line in reversed(text.splitlines()))
    return next((line for line in lines if line and not line.startswith("==")), "")


def find_commit(directory: Path, revision: str) -> str:
    """Returns a revision's commit, or an empty text if there is none."""
    with contextlib.suppress(ValueError):
        return git(directory, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    return ""


def list_branches(directory: Path) -> list[str]:
    """Returns the names of branches and tags; none where there is no repository."""
    with contextlib.suppress(ValueError):
        return git(directory, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags").split()
    return []


@contextlib.contextmanager
def worktree(repository: Path, revision: str) -> Iterator[Path]:
    """Gives a revision checked out in a folder of its own, and removes it afterwards.

    Raises:
        ValueError: if git cannot.
    """
    git(repository, "worktree", "prune")  # worktrees of processes that were killed before they could clear up
    with tempfile.TemporaryDirectory(prefix="wallclock-", ignore_cleanup_errors=True) as folder:
        place = Path(folder) / revision[:12]
        git(repository, "worktree", "add", "--detach", "--quiet", str(place), revision)
        try:
            yield place
        finally:
            with contextlib.suppress(ValueError):
                git(repository, "worktree", "remove", "--force", str(place))
