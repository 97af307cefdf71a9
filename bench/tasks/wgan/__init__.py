"""Wasserstein GAN: critic iterations a second, what each lever gives, samples."""
