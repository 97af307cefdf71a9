"""A side's processes import the side's own packages, or the verdict is invalid."""

import pytest

from wallclock import reports
from wallclock.bench.compare.imports import foreign_import, own_packages, package_folders
from wallclock.reports.views.comparison import comparison_summary

PROJECT = '[tool.wallclock.benchmarks.work]\ncommand = "{}"\nmetrics = ["work_ms"]\n'
WORK = """print('{{"metric": "work_ms", "value": {}, "unit": "ms"}}')"""
COMMAND = "python -c 'import fastlib'"


def project(tmp_path, commit, command, folder="src", declared=""):
    """A repository of a package in a folder, with commits `fast` and `slow`."""
    place = tmp_path / "project"
    commit(place, "empty", pyproject_toml=PROJECT.format(command) + declared)
    (place / folder / "fastlib").mkdir(parents=True)
    for tag, ms in (("fast", 50), ("slow", 500)):
        (place / folder / "fastlib" / "__init__.py").write_text(WORK.format(ms))
        commit(place, tag)
    return place


def verdict(place, tmp_path, wallclock):
    code, _, _ = wallclock("gate", "fast", "slow", "--repository", place, "--rounds", "7", "--out", tmp_path / "runs")
    runs = tmp_path / "runs"
    (row,) = comparison_summary(reports.load(runs), reports.load_runs(runs)).to_dict("records")
    return code, row


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An editable install of the checkout, as `pip install -e .` leaves it, found on the user's own PYTHONPATH."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "project" / "src"))


def test_each_side_imports_its_own_src_before_what_is_installed(tmp_path, commit, wallclock, installed):
    code, row = verdict(project(tmp_path, commit, COMMAND), tmp_path, wallclock)
    assert code == 1 and row["verdict"] == "regressed" and row["ratio"] == pytest.approx(10)


def test_a_folder_that_pyproject_names_comes_before_too(tmp_path, commit, wallclock, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "project" / "lib"))
    declared = '[tool.setuptools.packages.find]\nwhere = ["lib"]\n'
    code, _ = verdict(project(tmp_path, commit, COMMAND, "lib", declared), tmp_path, wallclock)
    assert code == 1


def test_a_package_from_outside_makes_the_verdict_invalid(tmp_path, commit, wallclock):
    """Here the command itself puts the checkout first; an import hook of an editable install does the same."""
    checkout = tmp_path / "project" / "src"
    command = f"python -c 'import sys; sys.path.insert(0, \\\"{checkout}\\\"); import fastlib'"
    code, row = verdict(project(tmp_path, commit, command), tmp_path, wallclock)
    assert code == 3 and row["verdict"] == "invalid"
    assert f"it imported fastlib from {checkout / 'fastlib' / '__init__.py'}" in row["reason"]


def test_the_users_path_and_sitecustomize_stay(tmp_path, commit, wallclock, monkeypatch):
    """Both hold what the command needs, so that it fails without either."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "sitecustomize.py").write_text("import builtins\nbuiltins.theirs = 50\n")
    (theirs / "needed.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(theirs))
    command = "python -c 'import needed, fastlib; assert theirs == 50; import sitecustomize as s; assert s.builtins'"
    code, row = verdict(project(tmp_path, commit, command), tmp_path, wallclock)
    assert code == 1 and row["verdict"] == "regressed"


@pytest.mark.parametrize(
    ("declared", "folders"),
    [
        ("", ["src", "."]),
        ('[tool.setuptools.packages.find]\nwhere = ["lib", "nowhere"]', ["lib", "src", "."]),
        ('[tool.setuptools.package-dir]\n"" = "lib"', ["lib", "src", "."]),
        ('[tool.hatch.build.targets.wheel]\npackages = ["lib/one"]', ["lib", "src", "."]),
        ('[tool.poetry]\npackages = [{ include = "one", from = "lib" }, 3]', ["lib", "src", "."]),
        ('[tool.pdm.build]\npackage-dir = "lib"', ["lib", "src", "."]),
        ('[tool.maturin]\npython-source = "lib"', ["lib", "src", "."]),
        ("[tool.hatch]\nbuild = 3", ["src", "."]),
        ("[tool", ["src", "."]),
    ],
)
def test_folders_are_those_of_the_build_tools_then_src_then_the_tree(declared, folders, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "lib").mkdir()
    (tmp_path / "pyproject.toml").write_text(declared)
    assert package_folders(tmp_path) == [(tmp_path / name).resolve() for name in folders]


def test_own_packages_are_named_and_neither_data_nor_what_python_has(tmp_path):
    for name in ("one", "data", "json"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "__init__.py").write_text("")
    (tmp_path / "two.py").write_text("")
    (tmp_path / "types.py").write_text("")
    (tmp_path / "not-a-name.py").write_text("")
    assert own_packages([tmp_path]) == ["one", "two"]


def test_what_is_installed_inside_the_tree_is_foreign_too(tmp_path):
    inside = tmp_path / "src" / "one" / "__init__.py"
    installed = tmp_path / ".venv" / "lib" / "site-packages" / "one" / "__init__.py"
    folders = [tmp_path / "src", tmp_path]
    assert foreign_import(f"one\t{inside}\n", folders) == "" == foreign_import("", folders)
    assert str(installed) in foreign_import(f"one\t{inside}\none\t{installed}\n", folders)
