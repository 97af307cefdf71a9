"""The plan of a comparison, the request stored in its record, and the check before a run is resumed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wallclock.bench.compare.benchmarks import Benchmark
from wallclock.bench.compare.git import git
from wallclock.bench.compare.sides import Side, hash_sources
from wallclock.bench.runs.resume import begun_run, check_same_place
from wallclock.reports.stats.verdicts import Rule
from wallclock.reports.store.layout import StoreError
from wallclock.reports.views.comparison import BASE, BENCHMARK, CONTEXT, HEAD


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Rounds, warm-up and order of turns of a comparison.

    Attributes:
        rule: turns rounds into verdicts (tolerance, error rate, looks).
        rounds: number of rounds, in each of which every side has a turn; 0, which needs `rule.spend`, takes as many as
            make the verdicts clear, or as the time holds.
        again: whether the base has a second turn in each round, which shows how far two equal sides differ here.
        seed: seed of the order of turns.
        counts: whether counts, among them Callgrind's instructions, are recorded in place of times.
        accept_changed: whether a benchmark that the head declares otherwise is measured, by each side's own command.
        warm_up: whether each side runs before the first round, until two processes in a row take equally long.
    """

    rule: Rule = field(default_factory=Rule)
    rounds: int = 0
    again: bool = True
    seed: int = 0
    counts: bool = False
    warm_up: bool = True
    accept_changed: bool = False


def new_request(benchmarks: Sequence[Benchmark], base: Side, head: Side, plan: Plan) -> dict[str, Any]:
    """Returns a comparison's request as its record stores it: what was compared, and by which rule to judge it."""
    added, removed = ([b.name for b in benchmarks if b.only_on == arm] for arm in (HEAD, BASE))
    invalid: dict[str, str] = {}
    for benchmark in benchmarks:
        for arm, side in ((BASE, base), (HEAD, head)):
            if benchmark.name in side.broken:
                invalid[benchmark.name] = f"{side.broken[benchmark.name]} ({arm})"
        if (changes := benchmark.changes()) and not plan.accept_changed:
            invalid[benchmark.name] = f"declared_otherwise: {changes}; --accept-changed-benchmarks measures it"
        if benchmark.sources and hash_sources(base, benchmark) != hash_sources(head, benchmark):
            invalid[benchmark.name] = f"benchmark_differs: {', '.join(benchmark.sources)} is not the same on both sides"
    return {
        "benchmark": BENCHMARK,
        BASE: _describe_side(base),
        HEAD: _describe_side(head),
        "rule": asdict(plan.rule),
        "rounds": plan.rounds,
        "seed": plan.seed,
        "again": plan.again,
        "counts": plan.counts,
        "tolerances": {b.name: b.tolerance for b in benchmarks if b.tolerance is not None},
        "context": list(CONTEXT),
        "metrics": {b.name: list(b.metrics) for b in benchmarks if b.metrics},
        "invalid": {name: why for name, why in invalid.items() if name not in (*added, *removed)},
        "added": added,
        "removed": removed,
    }


def _describe_side(side: Side) -> dict[str, Any]:
    subject = side.subject
    described: dict[str, Any] = {"kind": subject.kind, "text": subject.text, "commands": dict(side.commands)}
    if subject.revision:
        described["revision"] = subject.revision
    if subject.kind == "tree":
        described["dirty"] = bool(git(side.directory, "status", "--porcelain")) if subject.revision else None
    return described


def check_same_comparison(path: Path, request: dict[str, Any], place: dict[str, Any]) -> None:
    """Checks that the stored run in `path` can be resumed: same request, committed sources, same machine and software.

    `request` is from `new_request`, `place` from `bench.measure.environment.provenance`.

    Raises:
        StoreError: if the requests differ, a tree has uncommitted changes, or the machine or its software differs.
    """
    run = begun_run(path, BENCHMARK)
    now = json.loads(json.dumps(request))
    changed = [name for name in sorted({*run.request, *now}) if run.request.get(name) != now.get(name)]
    if changed:
        raise StoreError(f"{path} was begun with another {' and '.join(changed)}; give the same command, or begin anew")
    if any(now[arm].get("dirty") for arm in (BASE, HEAD)):
        raise StoreError(f"{path} is of a tree whose changes nobody committed, and may be others by now; begin anew")
    check_same_place(run, place, path)
