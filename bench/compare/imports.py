"""The packages of a project's tree: where they lie, and whether a process imported them from there."""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPORT = Path(__file__).parent / "import_report"  # holds the `sitecustomize` that writes what a process imported


def package_folders(tree: Path) -> list[Path]:
    """Returns the folders of a project's tree that hold its packages, in the order in which Python is to look.

    They are those that pyproject.toml names for setuptools, hatch, Poetry, PDM or maturin, `src`, and the tree itself.
    """
    try:
        tools: Any = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8")).get("tool", {})
    except (OSError, ValueError):
        tools = {}
    named = [tree / name for name in [*_declared_folders(tools), "src", "."]]
    return list(dict.fromkeys(folder.resolve() for folder in named if folder.is_dir()))


def _declared_folders(tools: Any) -> Iterator[str]:
    """Yields the names of folders in the tables of build tools; what has an unexpected form is passed over."""
    yield from _texts(tools, "setuptools", "packages", "find", "where")
    package_dir = _at(tools, "setuptools", "package-dir")
    if isinstance(package_dir, dict):
        yield from _texts(package_dir, "")
    for path in _texts(tools, "hatch", "build", "targets", "wheel", "packages"):
        yield str(Path(path).parent)
    yield from _texts(tools, "hatch", "build", "targets", "wheel", "sources")
    packages = _at(tools, "poetry", "packages")
    for package in packages if isinstance(packages, list) else ():
        yield from _texts(package, "from")
    yield from _texts(tools, "pdm", "build", "package-dir")
    yield from _texts(tools, "maturin", "python-source")


def _at(table: Any, *keys: str) -> Any:
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table


def _texts(table: Any, *keys: str) -> list[str]:
    found = _at(table, *keys)
    return [text for text in (found if isinstance(found, list) else [found]) if isinstance(text, str)]


def own_packages(folders: list[Path]) -> list[str]:
    """Returns the names of the packages and modules in some folders, without those of the standard library."""
    found = [path for folder in folders for path in folder.iterdir()]
    names = {path.stem for path in found if path.suffix == ".py" or (path / "__init__.py").exists()}
    return sorted(name for name in names - sys.stdlib_module_names if name.isidentifier())


def foreign_import(report: str, folders: list[Path]) -> str:
    """Returns what a process imported from outside the folders, in words; empty if nothing.

    Args:
        report: the lines that `import_report` wrote.
        folders: the folders of the side's packages.
    """
    for line in report.splitlines():
        name, _, file = line.partition("\t")
        inside = (Path(file).resolve().relative_to(f) for f in folders if Path(file).resolve().is_relative_to(f))
        if all("site-packages" in path.parts for path in inside):
            return f"it imported {name} from {file}, which is not in this side's tree"
    return ""
