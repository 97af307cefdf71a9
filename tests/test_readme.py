"""Every figure the README prints comes from a stored record."""

from pathlib import Path

import reports
from reports import tables
from reports.ablation import ALL, AS_IS, BASELINE, ablation_summary
from reports.calibration import calibration_summary
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
