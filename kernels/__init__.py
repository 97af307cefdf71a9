"""Fused operations, one file each, beside the plain PyTorch reference that defines them."""
