"""Which commit made it slower: git's bisection, each commit compared with the good one by the verdict of `compare`.

A commit counts as slow where it is slower than the good one by more than half of what the bad one is. One that does
not build, fails, or stays inconclusive is skipped, and git says which commits it may then be.
"""

import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wallclock.bench.compare.rounds import Plan, new_comparison
from wallclock.bench.compare.sides import Benchmark, Subject, git, prepared, worktree
from wallclock.bench.measure.timing import Deadline
from wallclock.reports.stats.verdicts import Rule
from wallclock.reports.store.read import load, load_runs
from wallclock.reports.views.comparison import comparison_summary


@dataclass(frozen=True, kw_only=True)
class Step:
    """One commit, as it was judged.

    Attributes:
        revision: the commit.
        mark: "good", "bad" or "skip".
        row: its verdict against the good commit, as `reports.views.comparison` gives it.
    """

    revision: str
    mark: str
    row: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a bisection came to.

    Attributes:
        candidates: commits that may be the first slow one; a single one where it is found.
        whole: of the bad commit against the good one, a row.
        steps: that were taken.
    """

    candidates: tuple[str, ...]
    whole: dict[str, Any]
    steps: tuple[Step, ...]


class Bisection:
    """A search for the commit that made one benchmark slower.

    Args:
        repository: that holds the commits.
        benchmark: that became slower; its first judged metric decides unless it names one.
        rule: of the verdict between good and bad.
        step_s: seconds that each commit may take.
        out: folder that holds the runs, one for each commit.
        command: as typed.
    """

    def __init__(
        self, repository: Path, benchmark: Benchmark, rule: Rule, step_s: float, out: Path, command: str
    ) -> None:
        self.repository, self.benchmark, self.out, self.command = repository, benchmark, out, command
        self.rule, self.step_s = replace(rule, spend=True), step_s

    def find(self, good: Subject, bad: Subject, observe: Callable[[str], None]) -> Found:
        """Searches, and returns what was found.

        Args:
            good: a revision, known to be fast.
            bad: a later one, known to be slow.
            observe: is told each commit's verdict, in a line.

        Raises:
            ValueError: if the bad one is not later, or is not slower than the good one: says what was measured.
        """
        if good.revision not in git(self.repository, "rev-list", bad.revision).split()[1:]:
            raise ValueError(f"{bad.text} is no later commit than {good.text}; name the good one first")
        whole = self._compared(good, bad.revision, self.rule)
        observe(f"{bad.revision[:12]}: {_said(whole)}")
        if whole["verdict"] != "regressed":
            raise ValueError(f"{bad.text} is not slower than {good.text}: {_said(whole)}; there is nothing to find")
        worse = whole["ratio"] if whole["better"] == "lower" else 1 / whole["ratio"]
        rule = replace(self.rule, tolerance=min(0.99, math.sqrt(worse) - 1))
        steps: list[Step] = []
        with worktree(self.repository, bad.revision) as place:
            told = git(place, "bisect", "start", bad.revision, good.revision)
            while not (candidates := _candidates(told)):
                revision = git(place, "rev-parse", "HEAD")
                row = self._compared(good, revision, rule)
                mark = _mark(row, rule)
                steps.append(Step(revision=revision, mark=mark, row=row))
                observe(f"{revision[:12]}: {_said(row)}, {mark}")
                told = _told(place, mark)
            with suppress(ValueError):
                git(place, "bisect", "reset")
        return Found(candidates=tuple(candidates), whole=whole, steps=tuple(steps))

    def _compared(self, good: Subject, revision: str, rule: Rule) -> dict[str, Any]:
        head = Subject(kind="git", text=revision[:12], revision=revision)
        benchmarks = [replace(self.benchmark, tolerance=None)]
        with (
            prepared(good, benchmarks, self.repository) as base_side,
            prepared(head, benchmarks, self.repository) as head_side,
        ):
            deadline = Deadline(self.step_s)
            run = new_comparison(
                benchmarks, base_side, head_side, Plan(rule=rule), self.out, self.command, deadline=deadline
            )
            run.execute(lambda text: None)
        rows = comparison_summary(load(run.writer.path), load_runs(run.writer.path)).to_dict("records")
        return {str(key): value for key, value in rows[0].items()}


def _mark(row: dict[str, Any], rule: Rule) -> str:
    if row["verdict"] == "regressed":
        return "bad"
    if row["verdict"] in ("equivalent", "improved"):
        return "good"
    if row["verdict"] == "inconclusive":  # not slower by as much, for sure: it need not be as fast
        worst = row["ratio_high"] if row["better"] == "lower" else 1 / row["ratio_low"]
        if worst < 1 + rule.tolerance:
            return "good"
    return "skip"


def _told(place: Path, mark: str) -> str:
    """What git says to a mark; where only skipped commits are left it says so and fails."""
    try:
        return git(place, "bisect", mark)
    except ValueError:
        return git(place, "bisect", "log")


def _candidates(told: str) -> list[str]:
    """The commits that git names as the first bad one, or as those it may be."""
    found = re.search(r"^([0-9a-f]{40}) is the first '?bad'? commit", told, re.MULTILINE)
    if found:
        return [found.group(1)]
    return re.findall(r"^# possible first '?bad'? commit: \[([0-9a-f]{40})\]", told, re.MULTILINE)


def _said(row: dict[str, Any]) -> str:
    ratio = f", ratio {row['ratio']:.3f}" if isinstance(row.get("ratio"), float) and math.isfinite(row["ratio"]) else ""
    why = "" if row["verdict"] in ("regressed", "improved", "equivalent") else f" ({row['reason']})"
    return f"{row['verdict']}{ratio}{why}"


def described(repository: Path, revisions: Sequence[str]) -> list[str]:
    """Returns each commit in a line: its hash, author, date and subject."""
    return [git(repository, "show", "-s", "--format=%h %an %as: %s", revision) for revision in revisions]
