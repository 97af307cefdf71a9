"""Statistics: intervals, and verdicts on changes."""
