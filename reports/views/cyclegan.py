"""Losses of a CycleGAN's training, and how far test images come back from their translation."""

from wallclock.reports.views.curves import loss_curves
from wallclock.reports.views.view import Plot, View

CYCLES = {"cycle_error": ("there and back", "solid"), "cycle_error_with_noise": ("with noise on the way", "dash")}
LOSSES = {
    "loss_gan": ("generators, least squares", "solid"),
    "loss_cycle": ("cycle", "dash"),
    "loss_identity": ("identity", "dot"),
    "loss_discriminator_a": ("discriminator of B", "dashdot"),
    "loss_discriminator_b": ("discriminator of A", "longdash"),
}

VIEW = View(
    made_from=("cyclegan",),
    plots=(
        Plot(
            name="cycles",
            title="CycleGAN: there and back",
            draw=lambda records: loss_curves(records.samples, "cyclegan", CYCLES, "mean absolute error", "iterations"),
            caption="Test images against their translation there and back, in a range of 2. Far more error with noise "
            "on the translation says that the way back reads what the translation hides, not what it shows.",
        ),
        Plot(
            name="cyclegan-loss",
            title="CycleGAN: losses",
            draw=lambda records: loss_curves(
                records.samples, "cyclegan", LOSSES, "loss, as it is weighted", "iterations"
            ),
            caption="Of the generators together, and of each discriminator.",
        ),
    ),
    curves=tuple(LOSSES),
)
