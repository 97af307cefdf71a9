"""The gate for CI: what verdicts come to as an exit code, as JUnit XML and as Markdown."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

from wallclock.reports.format.text import interval_text, present, significant

FINE, REGRESSION, USAGE, INVALID, INCONCLUSIVE = range(5)
Row = Mapping[str, Any]


def exit_code(rows: Sequence[Row], *, strict: bool) -> tuple[int, str]:
    """Returns the exit code, and why in a line.

    Args:
        rows: verdicts, as `reports.views.comparison` gives them.
        strict: whether an inconclusive verdict fails too.

    Returns:
        1 if anything regressed; 3 if anything is invalid, or nothing was compared: an empty gate is no pass; 4 if
        anything is inconclusive and `strict`; else 0.
    """
    count = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in {row["verdict"] for row in rows}}
    told = ", ".join(f"{n} {verdict}" for verdict, n in sorted(count.items()))
    if count.get("regressed"):
        return REGRESSION, f"regression: {told}"
    if count.get("invalid"):
        return INVALID, f"invalid: {told}"
    if not set(count) - {"added", "removed"}:
        return INVALID, f"nothing was compared: {told or 'no figure on either side'}"
    if count.get("inconclusive") and strict:
        return INCONCLUSIVE, f"inconclusive: {told}"
    if any(row["reason"] == "counted_beyond_tolerance" for row in rows):  # counts do not fall by luck
        told += "; if the fall was not meant, find out why: the work may not be done any more"
    return FINE, f"no regression: {told}"


def junit(rows: Sequence[Row], *, strict: bool) -> str:
    """Returns the verdicts as JUnit XML, one test case for each metric of each benchmark."""
    suite = ET.Element("testsuite", name="wallclock gate", tests=str(len(rows)))
    failures = errors = skipped = 0
    for row in rows:
        case = ET.SubElement(suite, "testcase", classname=str(row["benchmark"]), name=str(row["metric"]))
        verdict, text = row["verdict"], told(row)
        if verdict == "regressed" or (verdict == "inconclusive" and strict):
            failures += 1
            ET.SubElement(case, "failure", type=verdict, message=text)
        elif verdict == "invalid":
            errors += 1
            ET.SubElement(case, "error", type=verdict, message=text)
        elif verdict in ("inconclusive", "added", "removed"):
            skipped += 1
            ET.SubElement(case, "skipped", message=text)
        ET.SubElement(case, "system-out").text = text
    if not rows:
        errors += 1
        case = ET.SubElement(suite, "testcase", classname="wallclock", name="gate")
        ET.SubElement(case, "error", type="invalid", message="nothing was compared")
    for name, number in (("failures", failures), ("errors", errors), ("skipped", skipped)):
        suite.set(name, str(number))
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def told(row: Row) -> str:
    """Returns a verdict in a line: what, by how much, and how sure."""
    parts = [f"{row['verdict']}: {row['reason'].replace('_', ' ')}"]
    if present(row.get("ratio")):
        interval = interval_text(row["ratio_low"], row["ratio_high"])
        parts.append(f"head / base {significant(row['ratio'], 4)} {interval}".strip())
    if present(row.get("detectable")) and math.isfinite(row["detectable"]):
        parts.append(f"{row['rounds']:g} rounds would have found {100 * row['detectable']:.1f}%")
    return "; ".join(parts)


def step_summary(rows: Sequence[Row], table: str, message: str) -> str:
    """Returns the gate's Markdown for a CI step.

    Args:
        rows: verdicts.
        table: of them, as Markdown.
        message: from `exit_code`.
    """
    seen = [row for row in rows if row["verdict"] in ("regressed", "invalid")]
    lines = [f"### wallclock gate: {message}", "", table]
    lines += [f"- **{row['benchmark']} {row['metric']}** {told(row)}" for row in seen]
    return "\n".join(lines).rstrip() + "\n"
