"""The three scores on grids that were planted: their figures are known beforehand."""

import math

import pytest
import torch
from torch import nn

from wallclock.bench.cases.upsampling.checkerboard import phase_share, phase_spread, spectral_peaks, spectrum
from wallclock.loaders.data.synthetic import synthetic_split
from wallclock.models.upsampling import UPSAMPLINGS, upsample2x

ROWS, COLUMNS = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
GRIDS = {
    "rows": (-1) ** ROWS,
    "columns": (-1) ** COLUMNS,
    "diagonal": (-1) ** (ROWS + COLUMNS),
}


def noise(count=400, size=32, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def smooth(count=200, seed=0):
    """Waves of low frequency, of a phase and a direction of their own."""
    random = torch.Generator().manual_seed(seed)
    across, down, shift = (torch.rand(count, 1, 1, 1, generator=random) * 0.5 for _ in range(3))
    return torch.sin(across * COLUMNS + down * ROWS + 12 * shift)


def mean_peak(x):
    """The geometric mean of the three peaks."""
    return math.prod(spectral_peaks(x).values()) ** (1 / 3)


@pytest.mark.parametrize("amplitude", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("peak", GRIDS)
def test_a_known_grid_gives_the_known_figure(peak, amplitude):
    x = noise() + amplitude * GRIDS[peak]
    assert phase_share(x) == pytest.approx(amplitude**2 / (amplitude**2 + 1), abs=0.005)
    found = spectral_peaks(x)
    assert found[peak] == pytest.approx(1 + 4 / 9 * 32 * 32 * amplitude**2, rel=0.12)
    for other in GRIDS.keys() - {peak}:
        assert found[other] == pytest.approx(1, rel=0.12)


def test_smooth_images_score_low_and_a_grid_over_them_high():
    plain = smooth()
    gridded = plain + 0.05 * GRIDS["diagonal"]
    assert phase_share(plain) < 0.01 and phase_share(smooth(seed=1)) < 0.01
    base = spectral_peaks(plain)
    assert spectral_peaks(gridded)["diagonal"] > 1e3 * base["diagonal"]
    assert mean_peak(gridded) > 10 * mean_peak(plain) and 0.5 < mean_peak(smooth(seed=1)) / mean_peak(plain) < 2


def test_noise_has_what_is_said_of_it():
    assert phase_share(noise()) == pytest.approx(3 / 32**2, rel=0.1)
    assert mean_peak(noise()) == pytest.approx(1, rel=0.05)


def test_images_without_a_grid_have_none():
    images = synthetic_split(train=300, test=10).train.images_NHWC.permute(0, 3, 1, 2).float()
    assert phase_share(images) < 0.01
    assert 0.7 < mean_peak(images) < 1.4


def test_a_constant_map_scores_nothing():
    assert phase_share(torch.full((2, 3, 16, 16), 5.0)) == 0
    assert mean_peak(torch.full((2, 3, 16, 16), 5.0)) == 1


def test_odd_sizes_leave_a_row_out():
    assert phase_share(noise(20, 17)) == phase_share(noise(20, 17)[:, :, :16, :16])
    assert spectrum(noise(2, 17)).shape == (16, 16)


def test_maps_that_are_too_small_or_flat_are_refused():
    with pytest.raises(ValueError, match="maps are 8 x 8; expected at least 14 x 14"):
        spectral_peaks(noise(2, 8))
    with pytest.raises(ValueError, match=r"got a map of shape \(3, 4, 4\)"):
        phase_share(torch.zeros(3, 4, 4))


def test_spread_over_a_constant_map_of_each_kind_at_its_start():
    found = {}
    for kind in UPSAMPLINGS:
        torch.manual_seed(0)
        found[kind] = phase_spread(upsample2x(kind, 64, 64), 64)
    assert found.pop("deconv") == pytest.approx(math.sqrt(3), rel=0.2)
    assert max(found.values()) < 1e-6  # ICNR for the last


def test_uneven_overlap_spreads_what_equal_weights_do_not_in_even_overlap():
    even, uneven = (
        nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1, bias=False),
        nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1, bias=False),
    )
    for layer in (even, uneven):
        nn.init.ones_(layer.weight)
    assert phase_spread(even, 8) == 0
    # The phases see 1, 2, 2 and 4 taps: standard deviation sqrt(1.1875) over 2.25.
    assert phase_spread(uneven, 8) == pytest.approx(math.sqrt(1.1875) / 2.25)
    shuffled = upsample2x("pixelshuffle", 8, 8)
    nn.init.normal_(shuffled.weight)
    assert phase_spread(shuffled, 8) > 1  # without ICNR
