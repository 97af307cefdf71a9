"""Recorded runs: how they begin and are resumed, and the jobs of `quick` and `suite`."""
