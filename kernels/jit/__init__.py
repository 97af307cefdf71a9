"""Triton code, one file for each operation, which alone calls it; `tile` and `multi_tensor` hold shared parts."""
