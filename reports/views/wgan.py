"""Losses of a WGAN's training, and the distance that its critic estimates."""

import pandas as pd

from wallclock.reports.format.plotly import Figure
from wallclock.reports.views.curves import loss_curves
from wallclock.reports.views.view import View

DISTANCES = {
    "em_train": ("distance to training images", "solid"),
    "em_held_out": ("distance to held-out images", "dash"),
}
LOSSES = {"critic_loss": ("critic loss", "solid"), "generator_loss": ("generator loss", "dot")}

VIEW = View(("wgan",), curves=(*LOSSES, *DISTANCES))


@VIEW.figure("distance", "WGAN: estimated distance")
def distances(samples: pd.DataFrame) -> Figure | None:
    """The critic's estimate of the earth mover's distance, up to its slope.

    A distance to held-out images that stays above that to training images shows learning by heart.
    """
    return loss_curves(samples, "wgan", DISTANCES, "estimate, D(fake) - D(x)", "critic steps")


@VIEW.figure("wgan-loss", "WGAN: losses")
def losses(samples: pd.DataFrame) -> Figure | None:
    """The critic's is D(real) - D(fake), averaged over the steps before each generator step.

    The generator's is D(fake).
    """
    return loss_curves(samples, "wgan", LOSSES, "loss", "critic steps")
