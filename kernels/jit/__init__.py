"""Triton code, one file for each operation; nothing here is called but by the operation of the same name."""
