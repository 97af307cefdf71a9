"""Data sets (`cifar10`, `synthetic`) and pipelines (`device`) behind one contract (`batches`)."""
