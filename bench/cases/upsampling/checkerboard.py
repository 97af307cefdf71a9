"""Three scores of checkerboards in maps and images; each rises with the strength of a grid of 2x2 pixels.

Shape legend: N images, C channels, H, W height and width.
"""

import math

import torch
from torch import nn

PEAKS = {"columns": (0, 1), "rows": (1, 0), "diagonal": (1, 1)}  # frequencies (down, across), in units of pi
NEAR, FAR = 2, 3  # distances of the ring about a peak, in bins; a Hann window spreads the peak over one bin each way


def _even(x: torch.Tensor, edge: int = 0) -> torch.Tensor:
    """Returns a map in float64 without `edge` pixels on each side, cut to an even number of rows and columns."""
    if x.ndim != 4:
        raise ValueError(f"got a map of shape {tuple(x.shape)}; expected (images, channels, height, width)")
    height, width = ((size - 2 * edge) // 2 * 2 for size in x.shape[2:])
    return x.detach()[:, :, edge : edge + height, edge : edge + width].double()


def _phase_means(x: torch.Tensor) -> torch.Tensor:
    """Returns the mean over each of the four positions (phases) in a 2x2 grid, [N, C, 4]."""
    return torch.stack([x[:, :, row::2, column::2].mean((2, 3)) for row in (0, 1) for column in (0, 1)], dim=2)


@torch.no_grad()
def phase_spread(layer: nn.Module, channels_in: int, edge: int = 8) -> float:
    """Returns the strength of the grid that a layer adds to a constant map: deviation between phases over the mean.

    Both are root mean squares over the output channels, away from the border. 0 means no grid; a transposed convolution
    of independent taps, none of which two phases share, reaches sqrt(3) on average.

    Args:
        layer: layer that maps [1, channels_in, edge, edge] to twice the height and width.
        channels_in: number of channels of the constant map.
        edge: height and width of the constant map in pixels, at least 4.

    Source: Aitken et al., https://arxiv.org/abs/1707.02937
    """
    weight = next(layer.parameters())
    y = layer(torch.ones(1, channels_in, edge, edge, dtype=weight.dtype, device=weight.device))
    phases = _phase_means(_even(y, edge=2))
    between, mean = phases.var(2, correction=0).mean(), phases.mean(2).square().mean()
    return math.sqrt(between / mean) if mean > 0 else math.inf if between > 0 else 0.0


def phase_share(x: torch.Tensor) -> float:
    """Returns the share of the variance of maps that a pixel's position within a 2x2 grid explains.

    A grid of amplitude a over noise of standard deviation s has a share of a^2 / (a^2 + s^2), noise alone 3 / (H W).

    Args:
        x: maps, [N, C, H, W], at least 2x2 pixels.

    Returns:
        The share from 0 to 1, with variances summed over images and channels; 0 for constant maps.
    """
    x = _even(x)
    total = x.var((2, 3), correction=0).sum()
    return (_phase_means(x).var(2, correction=0).sum() / total).item() if total > 0 else 0.0


def spectrum(x: torch.Tensor) -> torch.Tensor:
    """Returns the mean power spectrum of maps under a Hann window, float64 [H, W], frequency zero at [0, 0].

    Args:
        x: maps, [N, C, H, W]; the last row or column of an odd number is left out.
    """
    x = _even(x)
    x = x - x.mean((2, 3), keepdim=True)
    windows = [torch.hann_window(size, dtype=torch.float64, device=x.device) for size in x.shape[2:]]
    power = torch.fft.fft2(x * windows[0][:, None] * windows[1]).abs().square()
    return power.mean((0, 1))


def spectral_peaks(x: torch.Tensor) -> dict[str, float]:
    """Returns the power of maps at the frequencies of a 2x2 grid, relative to the band about each; noise has 1.

    "columns" is at (0, pi): vertical stripes one pixel wide; "rows" at (pi, 0): horizontal stripes; "diagonal" at
    (pi, pi): the checkerboard itself.

    The band is the ring of bins at distance 2 and 3 from the peak. A checkerboard of amplitude a over white noise of
    standard deviation s has 1 + (4/9) H W (a / s)^2 at (pi, pi), since the window keeps 1/4 of its amplitude and 9/64
    of the noise's power.

    Args:
        x: maps, [N, C, H, W], at least 14 x 14 pixels, so that the rings of two peaks do not touch.

    Raises:
        ValueError: if the maps are smaller.
    """
    power = spectrum(x)
    if min(power.shape) < 14:
        raise ValueError(f"maps are {power.shape[0]} x {power.shape[1]}; expected at least 14 x 14 pixels")
    offsets = range(-FAR, FAR + 1)
    ring = [(r, c) for r in offsets for c in offsets if max(abs(r), abs(c)) >= NEAR]
    found = {}
    for name, (down, across) in PEAKS.items():
        row, column = down * power.shape[0] // 2, across * power.shape[1] // 2
        band = torch.stack([power[(row + r) % power.shape[0], (column + c) % power.shape[1]] for r, c in ring]).mean()
        found[name] = (power[row, column] / band).item() if band > 0 else 1.0
    return found
