"""CycleGAN: iterations a second, what each lever gives, translations."""
