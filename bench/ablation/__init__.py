"""Ablations: variants of a task timed in turns, on one machine or over a Ray cluster."""
