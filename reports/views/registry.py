"""`VIEWS`: every view that reports show. A new view is a file in this folder, and an entry in the list."""

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

VIEWS: tuple[View, ...] = (  # the order of their summaries in `--json`
    *(accuracy.VIEW, points.VIEW, curves.VIEW, step.VIEW, wgan.VIEW, cyclegan.VIEW, upsampling.VIEW),
    *(kernels.VIEW, kernels.FAILED, static.VIEW, choices.VIEW, ablation.VIEW, scaling.VIEW, calibration.VIEW),
    *(comparison.VIEW, history.VIEW, loaders.VIEW, summaries.VIEW, machines.VIEW),
)
