"""`VIEWS`: every view that reports show. A file of this folder that has a `View` adds it here by itself."""

import importlib
import pkgutil

from wallclock.reports import views
from wallclock.reports.views.view import View, in_order

# Order of the files, and so of the summaries in `--json`; one that is not listed comes before the last.
ORDER = (
    *("accuracy", "points", "curves", "step", "wgan", "cyclegan", "upsampling", "kernels", "static", "choices"),
    *("ablation", "scaling", "calibration", "comparison", "history", "loaders", "summaries", "machines"),
)
VIEWS: tuple[View, ...] = tuple(
    view
    for file in in_order(pkgutil.iter_modules(views.__path__), ORDER)
    if file.name != "registry"
    for view in vars(importlib.import_module(f"{views.__name__}.{file.name}")).values()
    if isinstance(view, View)
)
