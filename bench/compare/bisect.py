"""Search for the commit that made a benchmark slower: `git bisect`, driven by the verdicts of `compare`.

A commit counts as slow if its slow-down against the good commit is more than half of the bad commit's. A commit that
does not build, fails, or stays inconclusive is skipped; git may then name several commits, one of them the first.
"""

import math
import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wallclock.bench.compare.benchmarks import Benchmark
from wallclock.bench.compare.git import git, worktree
from wallclock.bench.compare.plan import Plan
from wallclock.bench.compare.rounds import Comparison
from wallclock.bench.compare.sides import Subject, prepare_side
from wallclock.bench.measure.timing import Deadline
from wallclock.reports.stats.verdicts import Rule


@dataclass(frozen=True, kw_only=True)
class Step:
    """One commit that the bisection has judged.

    Attributes:
        revision: full hash of the commit.
        mark: what git is told about the commit: "good", "bad" or "skip".
        row: verdict of the commit against the good one, a row of `reports.views.comparison`.
    """

    revision: str
    mark: str
    row: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The outcome of a bisection.

    Attributes:
        candidates: hashes of the commits that may be the first slow one; a single one if the search succeeded.
        whole: verdict of the bad commit against the good one, a row of `reports.views.comparison`.
        steps: the commits that were judged on the way, in that order.
    """

    candidates: tuple[str, ...]
    whole: dict[str, Any]
    steps: tuple[Step, ...]


@dataclass(frozen=True, kw_only=True)
class Bisection:
    """A search for the commit that made one benchmark slower.

    Attributes:
        repository: path of the git repository that holds the commits.
        data: paths in it that each worktree gets links to.
        benchmark: the benchmark that became slower; the first metric that it judges decides.
        rule: turns the rounds of the good and the bad commit into a verdict (tolerance, error rate).
        step_s: time budget for each commit, in seconds.
        out: folder to which the runs are written, one for each commit.
        command: the command line as the user typed it, for the records.
    """

    repository: Path
    data: tuple[str, ...]
    benchmark: Benchmark
    rule: Rule
    step_s: float
    out: Path
    command: str

    def find(self, good: Subject, bad: Subject, observe: Callable[[str], None]) -> Found:
        """Runs the bisection between a revision that is fast and a later one that is slow, and returns its outcome.

        `observe` is called with one line of text for each commit: its hash, its verdict and its mark.

        Raises:
            ValueError: if `bad` does not descend from `good`, or is not slower; the message gives the verdict.
        """
        if good.revision not in git(self.repository, "rev-list", bad.revision).split()[1:]:
            raise ValueError(f"{bad.text} is no later commit than {good.text}; name the good one first")
        whole = self._compare(good, bad.revision, self.rule)
        observe(f"{bad.revision[:12]}: {_verdict_line(whole)}")
        if whole["verdict"] != "regressed":
            raise ValueError(
                f"{bad.text} is not slower than {good.text}: {_verdict_line(whole)}; there is nothing to find"
            )
        worse = whole["ratio"] if whole["better"] == "lower" else 1 / whole["ratio"]
        rule = replace(self.rule, tolerance=min(0.99, math.sqrt(worse) - 1))
        steps: list[Step] = []
        with worktree(self.repository, bad.revision) as place:
            answer = git(place, "bisect", "start", bad.revision, good.revision)
            while not (candidates := find_candidates(answer)):
                revision = git(place, "rev-parse", "HEAD")
                row = self._compare(good, revision, rule)
                mark = _mark(row, rule)
                steps.append(Step(revision=revision, mark=mark, row=row))
                observe(f"{revision[:12]}: {_verdict_line(row)}, {mark}")
                answer = _mark_commit(place, mark)
            with suppress(ValueError):
                git(place, "bisect", "reset")
        return Found(candidates=tuple(candidates), whole=whole, steps=tuple(steps))

    def _compare(self, good: Subject, revision: str, rule: Rule) -> dict[str, Any]:
        head = Subject(kind="git", text=revision[:12], revision=revision)
        benchmarks = [replace(self.benchmark, tolerance=None)]
        with ExitStack() as stack:
            fast, slow = (
                stack.enter_context(prepare_side(one, benchmarks, self.repository, self.data)) for one in (good, head)
            )
            plan, deadline = Plan(rule=replace(rule, spend=True)), Deadline(self.step_s)
            run = Comparison(benchmarks, fast, slow, plan, self.out, self.command, deadline=deadline)
            run.execute(lambda text: None)
        rows = run.verdicts().to_dict("records")
        if not rows:
            raise ValueError(f"neither side has a figure '{self.benchmark.metrics[0]}'; name one with --metric")
        return {str(key): value for key, value in rows[0].items()}


def _mark(row: dict[str, Any], rule: Rule) -> str:
    if row["verdict"] == "regressed":
        return "bad"
    if row["verdict"] in ("equivalent", "improved"):
        return "good"
    if row["verdict"] == "inconclusive":  # also good if even the interval's slow end is within the tolerance
        worst = row["ratio_high"] if row["better"] == "lower" else 1 / row["ratio_low"]
        if worst < 1 + rule.tolerance:
            return "good"
    return "skip"


def _mark_commit(place: Path, mark: str) -> str:
    """Marks a commit and returns git's answer; if only skipped ones are left, git fails, and its log names them."""
    try:
        return git(place, "bisect", mark)
    except ValueError:
        return git(place, "bisect", "log")


def find_candidates(answer: str) -> list[str]:
    """Returns the commits that git's answer names as the first bad one or its candidates; none during the search."""
    found = re.search(r"^([0-9a-f]{40}) is the first '?bad'? commit", answer, re.MULTILINE)
    if found:
        return [found.group(1)]
    return re.findall(r"^# possible first '?bad'? commit: \[([0-9a-f]{40})\]", answer, re.MULTILINE)


def _verdict_line(row: dict[str, Any]) -> str:
    ratio = f", ratio {row['ratio']:.3f}" if isinstance(row.get("ratio"), float) and math.isfinite(row["ratio"]) else ""
    why = "" if row["verdict"] in ("regressed", "improved", "equivalent") else f" ({row['reason']})"
    return f"{row['verdict']}{ratio}{why}"
