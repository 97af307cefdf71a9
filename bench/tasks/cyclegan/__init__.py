"""The CycleGAN task, declared in `task`."""
