"""The timer, the tasks that are timed, and the command line."""
