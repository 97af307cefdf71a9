"""The gate's exit code, its JUnit XML and its summary, also where there is no verdict."""

import math
import xml.etree.ElementTree as ET

import pytest

from wallclock.bench.cli import compare as compare_command
from wallclock.bench.compare.gate import exit_code, junit

ROW = {
    "benchmark": "b",
    "metric": "m",
    "verdict": "equivalent",
    "reason": "within_tolerance",
    "detectable": 0.03,
    "rounds": 12,
}


def rows(*verdicts, **fields):
    return [ROW | {"verdict": verdict} | fields for verdict in verdicts]


@pytest.mark.parametrize(
    ("given", "strict", "code", "message"),
    [
        (rows("equivalent"), True, 0, "no regression: 1 equivalent"),
        (rows("regressed", "invalid"), False, 1, "regression: 1 invalid, 1 regressed"),
        (rows("invalid", "equivalent"), False, 3, "invalid: 1 equivalent, 1 invalid"),
        (rows("removed", "added"), False, 3, "nothing was compared: 1 added, 1 removed"),
        ([], False, 3, "nothing was compared: no figure on either side"),
        (
            rows("inconclusive", detectable=0.163) + rows("equivalent"),
            False,
            0,
            "NOT SHOWN: a slow-down below 16% would not have been seen; 1 equivalent, 1 inconclusive",
        ),
        (
            rows("inconclusive", detectable=math.inf),
            True,
            4,
            "NOT SHOWN: no slow-down would have been seen in so few rounds; 1 inconclusive",
        ),
        (
            rows("inconclusive", reason="counts_overlap: they vary", detectable=None),
            False,
            0,
            "NOT SHOWN: counts vary from round to round; 1 inconclusive",
        ),
    ],
)
def test_the_code_and_the_line_say_what_was_shown(given, strict, code, message):
    assert exit_code(given, strict=strict) == (code, message)


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        (rows("regressed", "equivalent"), {"tests": "2", "failures": "1", "errors": "0", "skipped": "0"}),
        (rows("removed"), {"tests": "2", "failures": "0", "errors": "1", "skipped": "1"}),
        ([], {"tests": "1", "failures": "0", "errors": "1", "skipped": "0"}),
    ],
)
def test_junit_fails_where_the_gate_does(given, counts):
    suite = ET.fromstring(junit(given, strict=False))
    assert {name: suite.get(name) for name in counts} == counts
    code, _ = exit_code(given, strict=False)
    assert (counts["failures"], counts["errors"]) != ("0", "0") or code == 0


def test_junit_is_xml_whatever_a_program_writes():
    given = rows("invalid", reason="failed: \x1b[31mred\x1b[0m \x00\x0b", metric="m\x07")
    (case, *_) = ET.fromstring(junit(given, strict=False))
    assert case.get("name") == "m\ufffd" and case.find("error").get("message").startswith(
        "invalid: failed: red \ufffd\ufffd;"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [(["nowhere", "."], 2, "nowhere"), (["cmd:true", "cmd:false", "--rounds", "0"], 2, "expected at least 1")],
)
def test_files_are_written_where_there_is_no_verdict(arguments, code, why, tmp_path, wallclock):
    to = ("--junit", tmp_path / "deep" / "junit.xml", "--summary", tmp_path / "summary.md")
    assert wallclock("gate", *arguments, *to)[0] == code
    (case,) = ET.parse(tmp_path / "deep" / "junit.xml").getroot()
    assert why in case.find("error").get("message")
    assert "no verdict" in (tmp_path / "summary.md").read_text()


def test_a_fault_of_our_own_is_no_regression(tmp_path, wallclock, monkeypatch):
    """Python's exit code for a traceback is 1, by which `gate` says that something regressed."""
    monkeypatch.setattr(compare_command, "_compare_sides", lambda *a, **k: [].pop())
    code, out, err = wallclock("gate", "a", "b", "--junit", tmp_path / "junit.xml")
    assert code == 3 and out == "" and "IndexError" in err and "please report it" in err.splitlines()[-1]
    assert ET.parse(tmp_path / "junit.xml").getroot().get("errors") == "1"
