"""A short adversarial training for each upsampling, and scores of the grid in its images and its critic's gradient.

All kinds train alike: with hinge loss and Adam, as a DCGAN with 16 base channels at the size of the images.

Shape legend: N images, S edge of an image in pixels.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from wallclock.bench.cases.upsampling.checkerboard import phase_share, phase_spread, spectral_peaks, spectrum
from wallclock.models.networks.dcgan import Critic, Generator
from wallclock.models.upsampling import CollapsedConv, ResizeConv, ShuffleConv

BATCH, BASE_CHANNELS, LOOKED_AT = 64, 16, 256
GENERATOR_LR, CRITIC_LR, BETAS = 2e-4, 4e-4, (0.5, 0.999)
RANGE_DB, RESIDUE_TIMES, GAP = 20.0, 4, 4  # pictures: decibels from grey to white, factor, pixels
Pixels = npt.NDArray[np.uint8]


class GanDiverged(RuntimeError):
    """An exception for a training whose loss is no longer finite."""


@dataclass(frozen=True)
class Score:
    """One figure for the records; the parameters `of` say which layer, image or gradient it describes."""

    metric: str
    unit: str
    value: float
    of: dict[str, str | int] = field(default_factory=dict)


def doublings(generator: nn.Module) -> list[Any]:
    """Returns the generator's layers that double a map, from the smallest map to the largest."""
    own = (ResizeConv, CollapsedConv, ShuffleConv)
    return [
        layer
        for layer in generator.modules()
        if isinstance(layer, own) or (isinstance(layer, nn.ConvTranspose2d) and layer.stride == (2, 2))
    ]


def as_input(images_NHWC: torch.Tensor) -> torch.Tensor:
    """Maps uint8 [N, S, S, 3] to float32 [N, 3, S, S] in [-1, 1]."""
    return images_NHWC.permute(0, 3, 1, 2).float() / 127.5 - 1


class SmallGan:
    """A generator with one kind of `models.upsampling.UPSAMPLINGS` and its critic, both newly initialised.

    Args:
        images_NHWC: real images, uint8 [N, S, S, 3], N at least 64, S a power of two from 16 up.
        seed: seed of the weights, the noise and the choice of images.
    """

    def __init__(self, kind: str, images_NHWC: torch.Tensor, *, seed: int, device: torch.device) -> None:
        self.images, self.device = as_input(images_NHWC).to(device), device
        size = images_NHWC.shape[1]
        torch.manual_seed(seed)
        self.critic = Critic(image_size=size, base_channels=BASE_CHANNELS, norm="layer").to(device)
        self.generator = Generator(image_size=size, base_channels=BASE_CHANNELS, upsampling=kind).to(device)
        self._random = torch.Generator().manual_seed(seed)
        self._fixed_noise = self._noise(LOOKED_AT)
        adam = torch.optim.Adam
        self._critic_adam = adam(self.critic.parameters(), CRITIC_LR, betas=BETAS)
        self._generator_adam = adam(self.generator.parameters(), GENERATOR_LR, betas=BETAS)

    def _noise(self, count: int) -> torch.Tensor:
        noise = torch.randn(count, self.generator.noise_channels, 1, 1, generator=self._random)
        return noise.to(self.device)

    def train(self, steps: int) -> None:
        """Trains for a number of steps."""
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        """Trains the critic and then the generator, on one batch each.

        Raises:
            GanDiverged: if a loss is no longer finite.
        """
        chosen = torch.randint(len(self.images), (BATCH,), generator=self._random).to(self.device)
        with torch.no_grad():
            fake = self.generator(self._noise(BATCH))
        critic_loss = F.relu(1 - self.critic(self.images[chosen])).mean() + F.relu(1 + self.critic(fake)).mean()
        self._critic_adam.zero_grad()
        critic_loss.backward()
        self._critic_adam.step()
        generator_loss = -self.critic(self.generator(self._noise(BATCH))).mean()
        self._generator_adam.zero_grad()
        generator_loss.backward()
        self._generator_adam.step()
        if not math.isfinite(critic_loss.item() + generator_loss.item()):
            raise GanDiverged(f"losses are {critic_loss.item()} and {generator_loss.item()}")

    @torch.no_grad()
    def generated(self) -> torch.Tensor:
        """Returns images from the fixed noise, [256, 3, S, S] in (-1, 1), with batch norm in training mode."""
        return self.generator(self._fixed_noise)

    def gradient(self) -> torch.Tensor:
        """Returns the critic's gradient with respect to the first 256 or fewer real images, [N, 3, S, S]."""
        images = self.images[:LOOKED_AT].clone().requires_grad_()
        return torch.autograd.grad(self.critic(images).sum(), images)[0]

    def look(self) -> tuple[list[Score], Pixels]:
        """Returns the current figures of layers, images and gradient, and a picture of images and gradient."""
        images, gradient = self.generated(), self.gradient()
        found = [
            Score("constant_spread", "ratio", phase_spread(layer, layer.in_channels), {"of": "layer", "stage": stage})
            for layer, stage in zip(doublings(self.generator), (4 * 2**i for i in range(16)), strict=False)
        ]
        real = spectral_peaks(self.images[:LOOKED_AT])
        found += _scores_of("images", images, real)
        found += _scores_of("gradient", gradient)
        return found, self._picture(images, gradient)

    def _picture(self, images: torch.Tensor, gradient: torch.Tensor) -> Pixels:
        """Returns the panels that `CAPTION` names side by side, uint8 [2 S, 10 S + gaps, 3]."""
        residue = images - F.interpolate(F.avg_pool2d(images, 2), scale_factor=2)
        panels = [
            _tiles((images + 1) / 2),
            _tiles(residue * RESIDUE_TIMES + 0.5),
            _decibels(spectrum(images) / spectrum(self.images[:LOOKED_AT]).clamp_min(1e-12)),
            _tiles(gradient / (6 * gradient.std()).clamp_min(1e-12) + 0.5),
            _decibels((power := spectrum(gradient)) / power[power > 0].median().clamp_min(1e-30)),
        ]
        gap = np.full((panels[0].shape[0], GAP, 3), 255, np.uint8)
        return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


CAPTION = (
    f"images at fixed noise · their residue over the mean of each 2x2 pixels, times {RESIDUE_TIMES} · their spectrum "
    "over that of real images · the critic's gradient at real images · its spectrum"
)


def real_scores(images_NHWC: torch.Tensor) -> list[Score]:
    """Returns the figures of real images, uint8 [N, S, S, 3], with which those of generated images are compared."""
    return _scores_of("images", as_input(images_NHWC[:LOOKED_AT]))


def _scores_of(what: str, x: torch.Tensor, relative_to: dict[str, float] | None = None) -> list[Score]:
    peaks = {name: peak / (relative_to or {}).get(name, 1.0) for name, peak in spectral_peaks(x).items()}
    scores = [Score("spectral_peak", "ratio", peak, {"of": what, "peak": name}) for name, peak in peaks.items()]
    return [Score("phase_share", "fraction", phase_share(x), {"of": what}), *scores]


def _pixels(x: torch.Tensor) -> Pixels:
    return (255 * x.clamp(0, 1)).round().byte().cpu().numpy()


def _tiles(x: torch.Tensor) -> Pixels:
    """Returns the first four images of [N, 3, S, S] in [0, 1] as a 2x2 mosaic, uint8 [2 S, 2 S, 3]."""
    rows = [torch.cat([x[i], x[i + 1]], dim=2) for i in (0, 2)]
    return _pixels(torch.cat(rows, dim=1).permute(1, 2, 0))


def _decibels(power: torch.Tensor) -> Pixels:
    """Returns a power spectrum [S, S] in decibels as grey pixels, enlarged twofold, uint8 [2 S, 2 S, 3]."""
    level = 10 * power.clamp_min(1e-30).log10() / (2 * RANGE_DB) + 0.5
    grey = _pixels(level.repeat_interleave(2, 0).repeat_interleave(2, 1))
    return np.repeat(grey[..., None], 3, axis=2)
