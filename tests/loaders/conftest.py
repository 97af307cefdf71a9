"""Data that the tests of loaders share."""

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    """Unpaired domains: two images in each of four folders."""
    for part in ("trainA", "trainB", "testA", "testB"):
        (tmp_path / part).mkdir()
        for place in range(2):
            Image.new("RGB", (20, 12), (100 + 10 * place, 40, 40)).save(tmp_path / part / f"{place}.png")
    return tmp_path
