"""Triton code, one file for each operation, which alone launches it; `tile` and `multi_tensor` hold shared parts."""
