"""Every figure the README prints comes from a stored record."""

from pathlib import Path

import reports
from reports import tables
from reports.kernels import kernel_rows, kernel_summary

ROOT = Path(__file__).parents[1]
NO_SCORES = {"2026-11-25-interpreter"}  # of forty images: a loss curve, which tests/reports/test_published.py looks at


def test_the_tables_are_those_that_the_published_records_give() -> None:
    readme = (ROOT / "README.md").read_text()
    folders = (path for path in (ROOT / "reports" / "published").iterdir() if path.is_dir())
    published = sorted(path for path in folders if path.name not in NO_SCORES)
    assert published
    scored = 0
    for folder in published:
        rows = tables.markdown(tables.accuracy_rows(reports.time_to_target(reports.load(folder)))).splitlines()
        if len(rows) <= 2:
            continue
        scored += 1
        missing = [row for row in rows if row not in readme]
        assert not missing, f"README.md lacks or rounds otherwise, from {folder.name}: {missing}"
    assert scored >= 2


def test_the_kernel_table_holds_rows_of_the_published_records() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    recorded: list[str] = []
    for folder in (path for path in (ROOT / "reports" / "published").iterdir() if path.is_dir()):
        header, rows = kernel_rows(kernel_summary(reports.load(folder)))
        recorded += tables.markdown((header, rows)).splitlines()
    starts = [place for place, line in enumerate(lines) if line == recorded[0]]
    assert len(starts) == 2  # of a GPU, and of a CPU
    for start in starts:
        shown = lines[start + 2 : lines.index("", start)]
        assert len(shown) >= 3
        missing = [row for row in shown if row not in recorded]
        assert not missing, f"README.md rounds or names otherwise: {missing}"
