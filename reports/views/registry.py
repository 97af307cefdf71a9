"""`VIEWS`: every view that reports show. A new one is a file beside this, and a name in the list."""

from wallclock.reports.views import (
    ablation,
    accuracy,
    calibration,
    choices,
    comparison,
    curves,
    cyclegan,
    history,
    kernels,
    loaders,
    machines,
    points,
    scaling,
    static,
    step,
    summaries,
    upsampling,
    wgan,
)
from wallclock.reports.views.view import View

VIEWS: tuple[View, ...] = (  # their summaries stand in this order in `--json`
    *(accuracy.VIEW, points.VIEW, curves.VIEW, step.VIEW, wgan.VIEW, cyclegan.VIEW, upsampling.VIEW),
    *(kernels.VIEW, kernels.FAILED, static.VIEW, choices.VIEW, ablation.VIEW, scaling.VIEW, calibration.VIEW),
    *(comparison.VIEW, history.VIEW, loaders.VIEW, summaries.VIEW, machines.VIEW),
)
