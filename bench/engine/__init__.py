"""Ways to run a training step: compiled, as a CUDA graph, on several devices; and its checkpoint."""
