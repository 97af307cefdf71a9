"""Training tasks that are timed, one in each folder."""
