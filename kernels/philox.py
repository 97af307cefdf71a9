"""Philox 4x32-10, a counter-based generator: random numbers that depend on their key and counter alone.

`triton.language.philox` gives the same numbers in a kernel as this module does in plain PyTorch, on any device.
"""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85


def _high_word(factor: int, x: Tensor) -> Tensor:
    """Returns the upper 32 bits of a product of two 32-bit numbers, whose 64 bits would overflow int64."""
    return (factor * (x >> 16) + (factor * (x & 0xFFFF) >> 16)) >> 16


def philox_ref(seed: int, counter: Tensor, word1: int = 0, word2: int = 0) -> tuple[Tensor, ...]:
    """Returns four random words for each counter.

    Args:
        seed: 64-bit key.
        counter: lowest of the counter's four 32-bit words, int64.
        word1: second word of the counter.
        word2: third word; the fourth is zero.

    Returns:
        Four int64 tensors of the counter's shape, each in [0, 2**32).

    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
    """
    c0 = counter & _MASK
    c1, c2, c3 = (torch.full_like(c0, word & _MASK) for word in (word1, word2, 0))
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        c0, c1, c2, c3 = (
            _high_word(_ROUND_B, c2) ^ c1 ^ k0,
            (_ROUND_B * c2) & _MASK,
            _high_word(_ROUND_A, c0) ^ c3 ^ k1,
            (_ROUND_A * c0) & _MASK,
        )
        k0, k1 = (k0 + _KEY_A) & _MASK, (k1 + _KEY_B) & _MASK
    return c0, c1, c2, c3
