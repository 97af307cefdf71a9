"""Measuring: timers, processes, GPU telemetry, machine and numeric settings, profiles, turns in a drawn order."""
