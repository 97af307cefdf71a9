"""The gate for CI: turns verdicts into an exit code, JUnit XML and Markdown."""

import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from wallclock.reports.format.text import interval_text, present, significant

FINE, REGRESSION, USAGE, INVALID, INCONCLUSIVE = range(5)
Row = Mapping[str, Any]


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
        return INVALID, f"nothing was compared: {summary or 'no figure on either side'}"
    if count.get("inconclusive") and strict:
        return INCONCLUSIVE, f"inconclusive: {summary}"
    if any(row["reason"] == "counted_beyond_tolerance" for row in rows):  # counts do not fall by chance
        summary += "; if the fall was not meant, find out why: the work may not be done any more"
    return FINE, f"no regression: {summary}"


def junit(rows: Sequence[Row], *, strict: bool) -> str:
    """Returns the verdicts as JUnit XML, with one test case for each metric of each benchmark."""
    kinds = dict.fromkeys(("inconclusive", "added", "removed"), "skipped") | {
        "regressed": "failure",
        "invalid": "error",
    }
    if strict:
        kinds["inconclusive"] = "failure"
    suite = ET.Element("testsuite", name="wallclock gate", tests=str(len(rows)))
    count = Counter[str]()
    for row in rows:
        case = ET.SubElement(suite, "testcase", classname=str(row["benchmark"]), name=str(row["metric"]))
        line = verdict_line(row)
        if kind := kinds.get(row["verdict"]):
            count[kind] += 1
            ET.SubElement(case, kind, {} if kind == "skipped" else {"type": row["verdict"]}, message=line)
        ET.SubElement(case, "system-out").text = line
    if not rows:
        count["error"] += 1
        case = ET.SubElement(suite, "testcase", classname="wallclock", name="gate")
        ET.SubElement(case, "error", type="invalid", message="nothing was compared")
    for name, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(count[kind]))
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


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
