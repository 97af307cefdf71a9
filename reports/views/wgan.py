"""Losses of a WGAN's training, and the distance that its critic estimates."""

from wallclock.reports.views.curves import loss_curves
from wallclock.reports.views.view import Plot, View

DISTANCES = {
    "em_train": ("distance to training images", "solid"),
    "em_held_out": ("distance to held-out images", "dash"),
}
LOSSES = {"critic_loss": ("critic loss", "solid"), "generator_loss": ("generator loss", "dot")}

VIEW = View(
    made_from=("wgan",),
    plots=(
        Plot(
            name="distance",
            title="WGAN: estimated distance",
            draw=lambda records: loss_curves(
                records.samples, "wgan", DISTANCES, "estimate, D(fake) - D(x)", "critic steps"
            ),
            caption="The critic's estimate of the earth mover's distance, up to its slope. A distance to held-out "
            "images that stays above that to training images shows learning by heart.",
        ),
        Plot(
            name="wgan-loss",
            title="WGAN: losses",
            draw=lambda records: loss_curves(records.samples, "wgan", LOSSES, "loss", "critic steps"),
            caption="The critic's is D(real) - D(fake), averaged over the steps before each generator step; the "
            "generator's is D(fake).",
        ),
    ),
    curves=(*LOSSES, *DISTANCES),
)
