"""CycleGAN: one of the tasks; `task` declares it."""
