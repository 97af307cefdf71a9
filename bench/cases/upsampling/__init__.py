"""Transposed convolution against upsampling and a convolution: alone, in a small GAN, and their pictures."""
