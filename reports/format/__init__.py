"""Formats of tables and figures, independent of their content."""
