"""Every figure the README prints comes from a stored record."""

from pathlib import Path

import reports
from reports import tables

ROOT = Path(__file__).parents[1]


def test_the_tables_are_those_that_the_published_records_give() -> None:
    readme = (ROOT / "README.md").read_text()
    published = sorted(path for path in (ROOT / "reports" / "published").iterdir() if path.is_dir())
    assert published
    for folder in published:
        rows = tables.markdown(tables.accuracy_rows(reports.time_to_target(reports.load(folder)))).splitlines()
        assert len(rows) > 2
        missing = [row for row in rows if row not in readme]
        assert not missing, f"README.md lacks or rounds otherwise, from {folder.name}: {missing}"
