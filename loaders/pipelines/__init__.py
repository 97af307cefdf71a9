"""Pipelines: from a data set to batches on the device, all with the same augmentation."""
