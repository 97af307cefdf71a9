"""The page in a browser: every figure is drawn, and no script complains."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from reports import build_page, load, load_runs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--no-first-run", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)")
def test_every_figure_is_drawn(cifar_root: Path, tmp_path: Path) -> None:
    page = build_page(load(cifar_root), load_runs(cifar_root), tmp_path / "page.html")
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", *QUIET, f"--user-data-dir={tmp_path / 'profile'}"]
        + ["--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert 'data-ready="yes"' in done.stdout, done.stderr
    drawn = re.findall(
        r'<div class="plot[^>]*data-figure="(\w+)"[^>]*>.{0,2000}?<svg class="main-svg"', done.stdout, re.S
    )
    assert drawn == ["accuracy", "target", "phases", "loss"]
    assert done.stdout.count('class="trace scatter') >= 3 and 'class="trace bars"' in done.stdout
    assert not re.findall(r"CONSOLE.*(?:Uncaught|Error).*", done.stderr)
