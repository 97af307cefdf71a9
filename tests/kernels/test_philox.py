"""The generator against the published test vectors."""

import pytest
import torch

from wallclock.kernels.philox import philox_ref


@pytest.mark.parametrize(
    ("seed", "words", "expected"),
    [  # Random123's kat_vectors, philox4x32 10: counters whose highest word is zero
        (0, (0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ],
)
def test_the_published_vectors(seed, words, expected):
    found = philox_ref(seed, torch.tensor([words[0]]), *words[1:])
    assert tuple(int(word) for word in found) == expected


def test_words_are_spread_evenly_and_differ_by_every_part_of_the_key():
    counters = torch.arange(100_000)
    first = philox_ref(3, counters)
    for word in first:
        assert abs(word.double().mean() / 2**32 - 0.5) < 0.004  # 4.4 standard deviations
        assert len(word.unique()) > 99_990
    for other in (philox_ref(4, counters), philox_ref(3 + 2**32, counters), philox_ref(3, counters, 1)):
        assert (other[0] == first[0]).sum() < 3
    assert (philox_ref(3, counters, 0, 1)[0] == first[0]).sum() < 3
