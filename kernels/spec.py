"""What an operation is to tests and benchmarks."""

import importlib.util
import os

import torch


def available(variant: str, device: torch.device) -> str:
    """Returns why a variant cannot run on a device; empty when it can.

    Args:
        variant: "triton" needs Triton, and a GPU or its interpreter; any other is plain PyTorch.
        device: to run on.
    """
    if variant != "triton":
        return ""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (Linux on x86-64 only)"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton needs a GPU; TRITON_INTERPRET=1 runs it on the CPU, right but slow"
    return ""
