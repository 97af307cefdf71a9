"""Runs at the start of each Python process of a comparison; at its end, writes from where it imported its packages.

Python imports it since its folder comes first on PYTHONPATH; then it lets the user's own `sitecustomize` run. One line
for each of the project's packages that the process has imported: name, tab, file. See `bench.compare.imports`.
"""

import atexit
import os
import sys


def report() -> None:
    """Appends the lines to the file that the environment names."""
    with open(os.environ["WALLCLOCK_IMPORTS"], "a", encoding="utf-8") as file:
        for name in os.environ["WALLCLOCK_PACKAGES"].split(","):
            if place := getattr(sys.modules.get(name), "__file__", None):
                file.write(f"{name}\t{place}\n")


if "WALLCLOCK_IMPORTS" in os.environ:
    atexit.register(report)
sys.path.remove(os.path.dirname(__file__))
own = sys.modules.pop("sitecustomize")
try:
    import sitecustomize  # type: ignore[import-not-found] # noqa: F401 - the user's
except ImportError:
    sys.modules["sitecustomize"] = own
