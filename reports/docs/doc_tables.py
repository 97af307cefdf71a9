"""Tables of stored records in README.md and docs, and the summary of each published folder.

`python -m wallclock.reports.docs.doc_tables` renews them.

A table is renewed below each line `<!-- table: FOLDER; TITLE; CASE; CASE -->`: FOLDER of runs, the beginning of TITLE
in `wallclock report FOLDER`, and the cases to show, if only some; `*` stands for anything in a case's name.
"""

import functools
import re
from fnmatch import fnmatch
from pathlib import Path

from wallclock.reports.format.text import Rows, markdown
from wallclock.reports.report import Report

SUMMARY = "summary.md"
MARK = re.compile(r"<!-- table: (?P<wanted>[^>]+) -->\n\n(?:\|.*\n)*")


def refresh(text: str, root: Path) -> str:
    """Returns Markdown with every marked table renewed; `root` is the folder to which the marks' folders are relative.

    Raises:
        StoreError: if a folder holds no run.
        ValueError: if a folder lacks the table, or a table lacks a case.
    """

    def made(mark: re.Match[str]) -> str:
        folder, title, *cases = (part.strip() for part in mark["wanted"].split(";"))
        tables = _tables(root / folder)
        rows = next((rows for name, rows in tables.items() if name.startswith(title)), None)
        if rows is None:
            raise ValueError(f"{folder} has no table '{title}'; tables: {', '.join(tables)}")
        return f"<!-- table: {mark['wanted']} -->\n\n{markdown(_of_cases(rows, cases) if cases else rows)}"

    return MARK.sub(made, text)


@functools.cache
def _tables(folder: Path) -> dict[str, Rows]:
    return Report(folder).tables()


def _of_cases(rows: Rows, cases: list[str]) -> Rows:
    """Returns the rows of the wanted cases, which may have `*` in their names; raises ValueError if one has no row."""
    header, cells = rows
    chosen = {case: [row for row in cells if fnmatch(" ".join(row[0].split()), case)] for case in cases}
    if missing := [case for case, found in chosen.items() if not found]:
        names = dict.fromkeys(" ".join(row[0].split()) for row in cells)
        raise ValueError(f"no case is called '{missing[0]}'; cases: {', '.join(names)}")
    return header, [row for found in chosen.values() for row in found]


def summary(folder: Path) -> str:
    """Returns the text of a published folder's `summary.md`: every table; the last one has machine and versions."""
    made_by = "Made by `uv run python -m wallclock.reports.docs.doc_tables` from the runs beside it."
    return f"# {folder.name}\n\n{made_by}\n\n{Report(folder).markdown()}"


def main() -> None:
    """Renews the tables of this checkout's README, docs and published summaries."""
    root = Path(__file__).resolve().parents[2]
    for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        path.write_text(refresh(path.read_text("utf-8"), root), "utf-8")
    for folder in sorted(path for path in (root / "reports" / "published").iterdir() if path.is_dir()):
        (folder / SUMMARY).write_text(summary(folder), "utf-8")


if __name__ == "__main__":
    main()
