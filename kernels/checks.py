"""Checks of arguments that several operations share."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_vectors(channels: int, **vectors: Tensor | None) -> None:
    """Checks vectors that must be given together or not at all.

    Raises:
        ValueError: if one of several vectors is missing, or one is not [channels] in dense memory.
    """
    for name, vector in vectors.items():
        if vector is not None and vector.shape != (channels,):
            raise ValueError(f"{name} has shape {tuple(vector.shape)}; expected ({channels},), one value a channel")
        if vector is not None and not vector.is_contiguous():
            raise ValueError(f"{name} has stride {vector.stride(0)}; expected a dense vector, call .contiguous()")
    if len({vector is None for vector in vectors.values()}) > 1:
        raise ValueError(f"{' and '.join(vectors)} are given together or not at all")


def check_act(act: str, known: Sequence[str]) -> None:
    """Raises a ValueError if an activation is not one of the known ones."""
    if act not in known:
        raise ValueError(f"act is '{act}'; expected one of {', '.join(known)}")


def check_residual(residual: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raises a ValueError if a given residual has another type or shape."""
    if residual is not None and (residual.shape != shape or residual.dtype != dtype):
        raise ValueError(f"residual is {residual.dtype} {tuple(residual.shape)}; expected {dtype} {shape}")
