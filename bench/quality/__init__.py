"""Measures whether a generator's images are good, varied and new, so that speed is not gained by collapse."""

from wallclock.bench.quality.measures import Figures, Judge, problems

__all__ = ["Figures", "Judge", "problems"]
