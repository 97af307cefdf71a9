"""Benchmark suite for deep-learning training that targets wall-clock time, not FLOPs.

The packages inside are `wallclock.bench`, `wallclock.models`, `wallclock.loaders`, `wallclock.kernels` and
`wallclock.reports`. In a checkout they are links to the folders beside this one; a wheel holds them in here.
"""

PACKAGES = ("kernels", "models", "loaders", "bench", "reports")
