"""Measures whether a generator's images are good, varied and its own, so that speed is not bought with collapse."""

from wallclock.bench.quality.measures import Figures, Judge, problems

__all__ = ["Figures", "Judge", "problems"]
