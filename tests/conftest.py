"""What tests of several folders share."""

from pathlib import Path

import pytest

REAL_IMAGES = Path(__file__).parents[1] / ".." / "shared" / "data" / "cifar10-jpeg"


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real images; a test that asks for it is skipped where they are not at hand."""
    if not (REAL_IMAGES / "train.parquet").exists():
        pytest.skip(f"no CIFAR-10 at {REAL_IMAGES}")
    return REAL_IMAGES
