"""Runs that are recorded: how they begin and go on, and the jobs of `quick` and `suite`."""
