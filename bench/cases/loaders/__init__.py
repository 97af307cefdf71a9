"""Loading pipelines: images a second alone and while a network trains, and memory."""
