"""Loading pipelines: their images per second, alone and while a network trains, and their memory."""
