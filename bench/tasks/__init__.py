"""The training jobs that are timed."""
