"""Every figure the README prints comes from a stored record."""

from pathlib import Path

import pytest

from wallclock import reports
from wallclock.reports.docs.doc_tables import refresh, summary
from wallclock.reports.views.ablation import ALL, AS_IS, BASELINE, ablation_summary
from wallclock.reports.views.calibration import calibration_summary

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "reports" / "published"
FOLDERS = sorted(path for path in PUBLISHED.iterdir() if path.is_dir())
NO_SCORES = {"2026-11-25-interpreter"}  # of forty images: a loss curve, which tests/reports/test_published.py looks at


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_the_marked_tables_are_those_that_the_published_records_give(path: Path) -> None:
    """What `python -m wallclock.reports.docs.doc_tables` writes."""
    text = path.read_text()
    assert refresh(text, ROOT) == text
    if path.name == "README.md":
        assert text.count("<!-- table: ") == text.count("| case |") >= 4  # each table of figures has its mark


def test_every_score_that_is_published_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    scored = [
        folder.name
        for folder in FOLDERS
        if folder.name not in NO_SCORES and len(reports.time_to_target(reports.load(folder)))
    ]
    assert len(scored) >= 2
    for name in scored:
        assert f"<!-- table: reports/published/{name}; Time to accuracy -->" in readme


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_each_published_summary_is_what_its_records_give(folder: Path) -> None:
    assert (folder / "summary.md").read_text() == summary(folder)


def test_the_sentences_hold_the_figures_of_the_published_records() -> None:
    """Ratios with their intervals, as the text around the tables gives them."""
    readme = " ".join((ROOT / "README.md").read_text().split())
    xeon = ROOT / "reports" / "published" / "2026-11-26-xeon-2-cores"
    samples, runs = reports.load(xeon), reports.load_runs(xeon)
    levers = ablation_summary(samples)
    cyclegan = levers[levers["benchmark"] == "cyclegan ablation"].set_index("variant")
    told = f"loop makes {cyclegan.loc[BASELINE, 'it_per_s']:.3f} iterations a second"
    assert told in readme
    for variant in (ALL, f"{ALL}, bf16"):
        row = cyclegan.loc[variant]
        low, high = row["over_baseline_low"], row["over_baseline_high"]
        assert f"{row['over_baseline']:.2f} times as many" in readme and f"[{low:.2f}, {high:.2f}]" in readme, variant
    study = levers[levers["benchmark"] == "cifar ablation"].set_index("variant")
    flop = study.loc["four groups", "step_flop"] / study.loc[AS_IS, "step_flop"]
    slower = 1 / study.loc["four groups", "over_baseline"]
    assert f"takes {flop:.2f} times the FLOPs of three, and {slower:.2f} times the time" in readme
    truth = calibration_summary(samples, runs).set_index(["noise", "planted"])
    same = truth.loc[("this machine", 0.0)]
    false, many = same["regressed"] + same["improved"], same["regressed_of_many"] + same["improved_of_many"]
    words = (
        f"of {same['comparisons']:g} comparisons of a program with itself {false:g} were called changed, and {many:g}"
    )
    assert words in readme
    found = [100 * truth.loc[("this machine", p), "regressed"] / 40 for p in (0.05, 0.1)]
    stated = [100 * truth.loc[("this machine", p), "stated_power"] for p in (0.05, 0.1)]
    assert f"were found in {found[0]:.0f}% and {found[1]:.0f}% of 40, where the rows state" in readme
    assert f"state {stated[0]:.0f}% and {stated[1]:.0f}%" in readme
    printed, true = (100 * same[f"{name}_detectable"] for name in ("printed", "true"))
    assert f"print {printed:.1f}% as the slow-down" in readme and f"and {true:.1f}% is what they find" in readme
