"""Losses of a CycleGAN's training, and the errors of test images after translation there and back."""

import pandas as pd

from wallclock.reports.format.plotly import Figure
from wallclock.reports.views.curves import loss_curves
from wallclock.reports.views.view import View

CYCLES = {"cycle_error": ("there and back", "solid"), "cycle_error_with_noise": ("with noise on the way", "dash")}
LOSSES = {
    "loss_gan": ("generators, least squares", "solid"),
    "loss_cycle": ("cycle", "dash"),
    "loss_identity": ("identity", "dot"),
    "loss_discriminator_a": ("discriminator of B", "dashdot"),
    "loss_discriminator_b": ("discriminator of A", "longdash"),
}

VIEW = View(("cyclegan",), curves=tuple(LOSSES))


@VIEW.figure("cycles", "CycleGAN: there and back")
def cycle_errors(samples: pd.DataFrame) -> Figure | None:
    """Test images against their translation there and back, in a range of 2.

    Far more error with noise on the translation says that the way back reads what the translation hides, not what it
    shows.
    """
    return loss_curves(samples, "cyclegan", CYCLES, "mean absolute error", "iterations")


@VIEW.figure("cyclegan-loss", "CycleGAN: losses")
def losses(samples: pd.DataFrame) -> Figure | None:
    """Of the generators together, and of each discriminator."""
    return loss_curves(samples, "cyclegan", LOSSES, "loss, as it is weighted", "iterations")
