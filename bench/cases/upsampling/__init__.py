"""Transposed convolution compared with upsampling plus convolution, alone and in a small GAN, with pictures."""
