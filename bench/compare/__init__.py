"""Comparison of two sides in turns: revisions, recipes, commands; the gate for CI, bisection, calibration."""
