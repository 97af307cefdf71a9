"""The networks, each as its paper or program has it."""
