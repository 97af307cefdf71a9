"""Wasserstein GAN: one of the tasks; `task` declares it."""
