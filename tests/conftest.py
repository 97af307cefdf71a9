"""What tests of several folders share."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports triton, which reads it once
    os.environ["TRITON_INTERPRET"] = "1"

REAL_IMAGES = Path(__file__).parents[1] / ".." / "shared" / "data" / "cifar10-jpeg"


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real images; a test that asks for it is skipped where they are not at hand."""
    if not (REAL_IMAGES / "train.parquet").exists():
        pytest.skip(f"no CIFAR-10 at {REAL_IMAGES}")
    return REAL_IMAGES


@pytest.fixture
def device() -> torch.device:
    """Where kernels run: the GPU, or the CPU through Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
