"""Data sets: from files to arrays in memory."""
