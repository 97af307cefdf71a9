"""The Wasserstein GAN task, declared in `task`."""
