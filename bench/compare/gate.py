"""The gate for CI: turns verdicts into an exit code, JUnit XML and Markdown."""

import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from wallclock.reports.format.text import interval_text, present, significant

FINE, REGRESSION, USAGE, INVALID, INCONCLUSIVE = range(5)
Row = Mapping[str, Any]
NOTHING, NOT_SHOWN = "nothing was compared", "NOT SHOWN"


def exit_code(rows: Sequence[Row], *, strict: bool) -> tuple[int, str]:
    """Returns the exit code of the gate for rows of `reports.views.comparison`, and one line that gives the reason.

    The code is 1 if anything regressed; 3 if anything is invalid, or if nothing was compared, since an empty gate must
    not pass; 4 if anything is inconclusive and `strict` is set; else 0.
    """
    count = Counter(row["verdict"] for row in rows)
    summary = ", ".join(f"{n} {verdict}" for verdict, n in sorted(count.items()))
    if count.get("regressed"):
        return REGRESSION, f"regression: {summary}"
    if count.get("invalid"):
        return INVALID, f"invalid: {summary}"
    if not set(count) - {"added", "removed"}:
        return INVALID, f"{NOTHING}: {summary or 'no figure on either side'}"
    if any(row["reason"] == "counted_beyond_tolerance" for row in rows):  # counts do not fall by chance
        summary += "; if the fall was not meant, find out why: the work may not be done any more"
    if not count.get("inconclusive"):
        return FINE, f"no regression: {summary}"
    unclear = [row for row in rows if row["verdict"] == "inconclusive"]
    found = max(map(_detectable, unclear))
    unseen = "no slow-down would have been seen in so few rounds"
    if any(row["reason"].startswith("counts_overlap") for row in unclear):
        unseen = "counts vary from round to round"
    elif math.isfinite(found):
        unseen = f"a slow-down below {100 * found:.0f}% would not have been seen"
    return INCONCLUSIVE if strict else FINE, f"{NOT_SHOWN}: {unseen}; {summary}"


def _detectable(row: Row) -> float:
    return float(row["detectable"]) if present(row.get("detectable")) else math.inf


def junit(rows: Sequence[Row], *, strict: bool, trouble: str = "") -> str:
    """Returns the verdicts as JUnit XML, with one test case for each metric of each benchmark.

    Args:
        rows: rows of `reports.views.comparison`.
        strict: whether what is inconclusive counts as a failure.
        trouble: the error that ended the gate before there were verdicts, which becomes an error of its own.
    """
    kinds = dict.fromkeys(("inconclusive", "added", "removed"), "skipped") | {
        "regressed": "failure",
        "invalid": "error",
    }
    if strict:
        kinds["inconclusive"] = "failure"
    cases = [(row["benchmark"], row["metric"], row["verdict"], verdict_line(row)) for row in rows]
    if not trouble and not {row["verdict"] for row in rows} - {"added", "removed"}:
        trouble = NOTHING
    if trouble:
        cases.append(("wallclock", "gate", "invalid", trouble))
    suite, count = ET.Element("testsuite", name="wallclock gate", tests=str(len(cases))), Counter[str]()
    for benchmark, metric, verdict, told in cases:
        line = _xml_text(told)
        case = ET.SubElement(suite, "testcase", classname=_xml_text(benchmark), name=_xml_text(metric))
        if kind := kinds.get(verdict):
            count[kind] += 1
            ET.SubElement(case, kind, {} if kind == "skipped" else {"type": verdict}, message=line)
        ET.SubElement(case, "system-out").text = line
    for name, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(count[kind]))
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _xml_text(text: str) -> str:
    """Returns a text without a terminal's colours and without the characters that XML cannot hold."""
    plain = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", str(text))
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", plain)


def verdict_line(row: Row) -> str:
    """Returns a verdict as one line: its reason, the ratio with its interval, and the smallest detectable change."""
    parts = [f"{row['verdict']}: {row['reason'].replace('_', ' ')}"]
    if present(row.get("ratio")):
        interval = interval_text(row["ratio_low"], row["ratio_high"])
        parts.append(f"head / base {significant(row['ratio'], 4)} {interval}".strip())
    if present(row.get("detectable")) and math.isfinite(row["detectable"]):
        parts.append(f"{row['rounds']:g} rounds would have found {100 * row['detectable']:.1f}%")
    return "; ".join(parts)


def step_summary(rows: Sequence[Row], table: str, message: str) -> str:
    """Returns the Markdown summary that a CI step shows: the message of `exit_code`, a table, and what failed."""
    seen = [row for row in rows if row["verdict"] in ("regressed", "invalid")]
    lines = [f"### wallclock gate: {message}", "", table]
    lines += [f"- **{row['benchmark']} {row['metric']}** {verdict_line(row)}" for row in seen]
    return "\n".join(lines).rstrip() + "\n"
