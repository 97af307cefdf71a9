"""The classifier task on CIFAR-10: time to a target accuracy, the gain of each lever, tuning of recipes."""
