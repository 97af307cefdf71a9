"""Measuring: the timer, processes, telemetry, the machine, its numerics, profiles, drawn turns."""
